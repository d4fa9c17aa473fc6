"""The published PyraTok checkpoint: its check, the plan, and the folder that is written."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pyratok_jax.checkpoints.conversion import ConversionPlan, check_apart, match, write_checkpoint
from pyratok_jax.checkpoints.foreign.sources import TensorSource, open_tensors
from pyratok_jax.checkpoints.weights import read_config
from pyratok_jax.errors import UserError, short
from pyratok_jax.io.atomic import new_folder
from pyratok_jax.io.documents import WRONG_VALUE, check_sizes, read_json
from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.vae_families import config_to_dict
from pyratok_jax.models.wan_vae.config import WAN21, WanVAEConfig
from pyratok_jax.tokenizer.loading import load_tokenizer, write_description
from weights_conversion.networks import wan_vae
from weights_conversion.networks.wan_vae_published import Layout, detect, entries, reference

BITS = 16  # per stage: one for each channel of the latent
_QUANTIZER = re.compile(r"lapq_quantizer\.(?:.+\.)?(\d+)\.([^.]+(?:\.[^.]+)*)$")
_UNUSED = "text layers; the published model multiplies what they give by zero"
_NEAR_ZERO = 1e-3  # a residual below this may have either sign after other rounding


class Published(NamedTuple):
    """A published checkpoint: its tensors, the naming of its VAE, sizes, and number of stages."""

    source: TensorSource
    layout: Layout
    vae: WanVAEConfig
    stages: int


def open_published(path: str | Path) -> Published:
    """Open a folder (its weights may be in `vae/`) or a checkpoint_step_N.pt, and check it.

    Raises:
        UserError: not such a checkpoint, or of sizes that were not published.
    """
    path = Path(path)
    if (path / "vae").is_dir():
        path = path / "vae"
    source = open_tensors(path)
    stages = _check_quantizer(source)
    folder = path if path.is_dir() else path.parent
    return Published(source, detect(source), _vae_config(folder / "config.json", stages), stages)


def _vae_config(file: Path, stages: int) -> WanVAEConfig:
    """The VAE's sizes with unit statistics: the published model knows none."""
    values: Any = read_json(file) if file.is_file() else {}
    sizes = values if isinstance(values, dict) and "z_dim" in values else {}
    for name, value in sizes.items():
        expected = {"num_quantizers": stages, "codebook_dim": BITS}
        found = next((known for known in expected if name.endswith(known)), None)
        if found and value != expected[found]:
            raise UserError(f"{file}: {name} is {value}, the weights have {expected[found]}")
    unit = {"latents_mean": (0.0,) * BITS, "latents_std": (1.0,) * BITS}
    try:
        config = WanVAEConfig.from_dict((sizes or WAN21.to_dict()) | unit)
    except WRONG_VALUE as error:
        reason = short(str(error))
        raise UserError(f"{file}: no usable VAE configuration ({reason})") from error
    return check_sizes(config, str(file))


def _check_quantizer(source: TensorSource) -> int:
    """Number of stages; refuses codes other than the signs of 16 channels, highest bit first."""
    buffers: dict[int, dict[str, str]] = {}
    for key in source.keys():  # noqa: SIM118 - no mapping
        found = _QUANTIZER.match(key)
        if found and found[2] in ("bitmask", "codebook"):
            buffers.setdefault(int(found[1]), {})[found[2]] = key
    if not buffers or sorted(buffers) != list(range(len(buffers))):
        raise UserError(
            f"{source.path}: no lapq_quantizer with stages 0, 1, ...; this is no published PyraTok "
            "(for a VAE use weights_conversion.vae)"
        )
    places = 2 ** np.arange(BITS - 1, -1, -1)
    signs = np.where(np.arange(2**BITS)[:, None] & places, 1.0, -1.0)
    for index, names in buffers.items():
        for name, expected in (("bitmask", places), ("codebook", signs)):
            if name not in names:
                raise UserError(f"{source.path}: stage {index} of lapq_quantizer has no {name}")
            values = np.asarray(source.read(names[name]), np.float64)
            if values.shape != expected.shape or not np.array_equal(values, expected):
                raise UserError(
                    f"{source.path}: {names[name]} is not that of {BITS} signs, highest bit first"
                )
    return len(buffers)


def make_plan(published: Published) -> ConversionPlan:
    """Match the VAE's tensors; everything of the text layers is left out, with the reason."""
    shapes = wan_vae.vae_shapes(published.vae)
    prefix = published.layout.prefix

    def skip(key: str) -> str | None:
        name = key.removeprefix(prefix)
        if re.match(r"lapq_quantizer\..*(bitmask|codebook)$", name):
            return "constants of the codes, as expected"
        return _UNUSED if name.startswith(("lapq_quantizer.", "lapq_text_mlp.")) else None

    found = entries(shapes, published.vae, published.layout)
    return match(published.source, found, shapes, skip=skip)


def tokenizer_config(published: Published) -> PyraTokConfig:
    """Our tokenizer of which the published one is a special case."""
    vae = published.vae
    grids = ((vae.temporal_factor, vae.spatial_factor),) * published.stages
    return PyraTokConfig(
        vae=vae, grids=grids, bits=BITS, quantizer="residual", text_guidance=False,
        standardised_text=False, text_width=1, lora_rank=0,
    )  # fmt: skip


def write_workdir(
    output: str | Path, published: Published, plan: ConversionPlan, *, overwrite: bool = False,
    dtype: str = "float32",
) -> Path:  # fmt: skip
    """Write `vae/`, `tokenizer.json` and `checkpoints/0`; the folder appears when complete.

    Raises:
        UserError: when the folder exists, holds the checkpoint, or cannot be written.
    """
    import orbax.checkpoint as ocp

    output = Path(output).absolute()
    check_apart(output, plan.source.files)
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists; name a new folder or pass --overwrite")
    plan.check()
    config = tokenizer_config(published)
    with new_folder(output) as folder:
        vae, sizes = folder / "vae", config_to_dict(published.vae)
        write_checkpoint(vae, kind=wan_vae.KIND, config=sizes, plan=plan, dtype=dtype)
        backbone = {"spec": str(output / "vae"), "sha256": read_config(vae, wan_vae.KIND)["sha256"]}
        write_description(folder, config, backbone=backbone, language_model=None, alignment=None)
        arrays = {
            "tokenizer.null_text": jnp.zeros((config.text_width,)),
            "tokenizer.mask_value": jnp.zeros((3,)),
        }
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            state = folder / "checkpoints" / "0" / "state"
            checkpointer.save(state, args=ocp.args.StandardSave({"params": arrays}))
    return output


def residual_ids(latent: np.ndarray, stages: int) -> tuple[np.ndarray, np.ndarray]:
    """The published rule: ids (..., stages), and where every residual is clear of zero."""
    places, left, ids = 2 ** np.arange(BITS - 1, -1, -1), latent.copy(), []
    clear = np.ones(latent.shape[:-1], bool)
    for stage in range(stages):
        clear &= np.all(np.abs(left) > _NEAR_ZERO, axis=-1)
        signs = np.where(left >= 0, 1.0, -1.0)
        ids.append(((signs > 0) * places).sum(axis=-1))
        left = left - signs * 2.0**-stage
    return np.stack(ids, axis=-1), clear


def verify(published: Published, workdir: Path) -> Iterator[str]:
    """Compare ids with diffusers' VAE under the published rule; yields what was found.

    Raises:
        UserError: an id differs.
    """
    import torch

    model = reference(published.source, published.vae, published.layout)
    side = 4 * published.vae.spatial_factor
    shape = (1, 9, side, side + published.vae.spatial_factor, 3)
    video = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    with torch.no_grad():
        mean = model.encode(torch.from_numpy(video).permute(0, 4, 1, 2, 3)).latent_dist.mean
    expected, clear = residual_ids(mean.permute(0, 2, 3, 4, 1).numpy(), published.stages)
    tokenizer = load_tokenizer(workdir)
    ids = np.stack([np.asarray(x) for x in tokenizer.model.tokenize(jnp.asarray(video))], axis=-1)
    wrong = int(np.sum((ids != expected).any(axis=-1) & clear))
    if wrong or not clear.any():
        raise UserError(
            f"verification failed: {wrong} of {clear.sum()} positions have other ids than the "
            "published rule gives; do not use this folder"
        )
    yield f"verified: ids of {clear.sum()} of {clear.size} positions equal (others are near zero)"
