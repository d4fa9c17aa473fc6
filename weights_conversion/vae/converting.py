"""Recognise, match, load and write the VAEs of all families but Wan's, which has its own module.

`compare` runs a converted VAE beside diffusers' on the same weights.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pyratok_jax.checkpoints.conversion import ConversionPlan, load_arrays, match
from pyratok_jax.checkpoints.foreign.sources import TensorSource, open_tensors
from pyratok_jax.checkpoints.partition import build_module, module_arrays, module_shapes
from pyratok_jax.checkpoints.weights import FORMAT, load_checkpoint, read_config
from pyratok_jax.errors import UserError, short
from pyratok_jax.io.atomic import new_folder
from pyratok_jax.io.documents import WRONG_VALUE, check_sizes, read_json, refusing
from pyratok_jax.models.vae_config import VideoVAEConfig
from pyratok_jax.models.vae_families import config_from_dict, vae_family
from pyratok_jax.models.video_vae import VideoVAE, build_vae
from weights_conversion.vae.cogvideox import CONVERTER as COGVIDEOX
from weights_conversion.vae.hunyuan_video import CONVERTER as HUNYUAN_VIDEO
from weights_conversion.vae.mochi import CONVERTER as MOCHI
from weights_conversion.vae.naming import (
    Converter,
    LoadOptions,
    Naming,
    entries,
    to_diffusers_tensors,
)
from weights_conversion.vae.svd import CONVERTER as SVD

if TYPE_CHECKING:
    from torch import Tensor

# By the names in `pyratok_jax.models.vae_families`.
CONVERTERS: dict[str, Converter] = {
    one.family: one for one in (COGVIDEOX, HUNYUAN_VIDEO, MOCHI, SVD)
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Layout(NamedTuple):
    """What a file holds: its family's converter, the naming, and a prefix on every name."""

    converter: Converter
    naming: Naming
    prefix: str


def recognise(source: TensorSource, family: str | None = None) -> Layout | None:
    """The layout of a file, from its keys; None where it is of no family of `CONVERTERS`."""
    for name, converter in CONVERTERS.items():
        for naming in converter.namings:
            prefix = naming.prefix(source)
            if prefix is not None and family in (None, name):
                return Layout(converter, naming, prefix)
    return None


def vae_shapes(config: VideoVAEConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every array of the VAE."""
    return module_shapes(lambda: build_vae(config, rngs=nnx.Rngs(0)))


def make_plan(source: TensorSource, layout: Layout, config: VideoVAEConfig) -> ConversionPlan:
    """Match a source against the VAE of `config`; call `check()` on the result."""
    prefix, naming = layout.prefix, layout.naming
    shapes = vae_shapes(config)

    def skip(key: str) -> str | None:
        if prefix and not key.startswith(prefix):
            return f"not under {prefix}"
        return naming.skip(key.removeprefix(prefix))

    return match(source, entries(shapes, naming, prefix), shapes, skip=skip)


def source_config(
    source: TensorSource, layout: Layout, path: str | Path | None = None
) -> VideoVAEConfig:
    """The VAE's sizes: from `path`, from a config.json beside the weights, or the published ones.

    Args:
        source: the weights.
        layout: as recognised.
        path: a published config.json, or sizes as our own folders hold them under "config".

    Raises:
        UserError: an unreadable file, or the configuration of another model.
    """
    converter = layout.converter
    folder = source.path if source.path.is_dir() else source.path.parent
    file = Path(path) if path else folder / "config.json"
    if not path and not file.is_file():
        return converter.published
    values = read_json(file)
    name = values.get("_class_name") if isinstance(values, dict) else None
    try:
        if name in converter.class_names:
            return check_sizes(converter.from_diffusers(values), str(file))
        if isinstance(values, dict) and values.get("family") == converter.family:
            return check_sizes(config_from_dict(values), str(file))
    except WRONG_VALUE as error:
        reason = short(str(error))
        raise UserError(f"{file}: no usable VAE configuration ({reason})") from error
    if not path:
        return converter.published  # The config.json beside original files is the video model's.
    found = short(str(name or "something else"), 60)
    raise UserError(f"{file}: describes {found}, expected {converter.class_names[0]}")


def load_vae(path: str | Path, **options: Unpack[LoadOptions]) -> VideoVAE:
    """The VAE of a converted folder of any family, or of a published file of `CONVERTERS`.

    Args:
        path: a converted folder, or anything that the command reads.
        options: see `LoadOptions`.

    Raises:
        UserError: nothing usable there, or keys that do not fit.
    """
    from pyratok_jax.models.vae_families import kinds

    path, families = Path(path), kinds()
    if is_converted(path):
        record = read_config(path, *families)
        where = f"{path}/config.json"
        with refusing(where):
            config = config_from_dict({"family": families[record["kind"]], **record["config"]})
        config = check_sizes(config, where)
        dtype, sharding = options.get("param_dtype"), options.get("sharding")
        arrays = load_checkpoint(path, vae_shapes(config), dtype=dtype, sharding=sharding)
        return _built(config, arrays, options)
    source = open_vae(path)
    layout = recognise(source)
    if layout is None:
        raise UserError(f"{path}: of no known VAE; known are {', '.join(CONVERTERS)}")
    config = source_config(source, layout)
    return load_planned(config, make_plan(source, layout, config), options)


def load_planned(config: VideoVAEConfig, plan: ConversionPlan, options: LoadOptions) -> VideoVAE:
    """The VAE of a published file, read directly.

    Raises:
        UserError: keys that do not fit.
    """
    dtype = options.get("param_dtype") or jnp.float32
    arrays = load_arrays(plan, dtype=dtype, sharding=options.get("sharding"))
    return _built(config, arrays, options)


def _built(
    config: VideoVAEConfig, arrays: Mapping[str, jax.Array], options: LoadOptions
) -> VideoVAE:
    settings: dict[str, Any] = {"dtype": options.get("dtype", jnp.float32)}
    settings["remat"] = options.get("remat", "none")
    return build_module(lambda: build_vae(config, rngs=nnx.Rngs(0), **settings), arrays)


def open_vae(path: str | Path) -> TensorSource:
    """Tensors of a VAE: a file, a folder with one set of weights, or one with both of its halves.

    Names in encoder.safetensors and decoder.safetensors, which may be equal, are prefixed with the
    half's name.

    Raises:
        UserError: as `open_tensors`.
    """
    path = Path(path)
    files = {side: path / f"{side}.safetensors" for side in ("encoder", "decoder")}
    missing = [file.name for file in files.values() if not file.is_file()]
    if len(missing) == 1:
        raise UserError(
            f"{path}: holds one half of a VAE, {missing[0]} is missing; fetch it into the same "
            "folder, or name the file to read"
        )
    if missing:
        return open_tensors(path)
    halves = {side: open_tensors(file) for side, file in files.items()}
    info = {f"{side}.{key}": value for side, half in halves.items()
            for key, value in half.info.items()}  # fmt: skip

    def read(key: str) -> np.ndarray:
        side, name = key.split(".", 1)
        return halves[side].read(name)

    return TensorSource(path, "safetensors", files.values(), info, read)


def is_converted(path: Path) -> bool:
    """Whether `path` is a folder that this project wrote."""
    try:
        record = read_json(path / "config.json")
    except UserError:
        return False
    return isinstance(record, dict) and record.get("format") == FORMAT


def kind_of(config: VideoVAEConfig) -> str:
    """`kind` of a converted folder of this family."""
    return vae_family(config.family).kind


def write_diffusers(
    output: str | Path,
    arrays: Mapping[str, Any],
    config: VideoVAEConfig,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a folder that diffusers reads; it appears when it is complete.

    Raises:
        UserError: when the folder exists, or cannot be written.
    """
    from safetensors.numpy import save_file

    output, converter = Path(output), CONVERTERS[config.family]
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists; name a new folder or pass --overwrite")
    with new_folder(output) as folder:
        tensors = dict(to_diffusers_tensors(arrays, converter))
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        values = {"_class_name": converter.class_names[0], **converter.to_diffusers(config)}
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    return output / WEIGHTS


# Relative L2 error: rounding of float32 sums; a narrower dtype also rounds every weight.
TOLERANCE, ROUNDED_TOLERANCE = 1e-4, 5e-2


def diffusers_vae(converter: Converter, config: Any, arrays: dict[str, np.ndarray]) -> Any:
    """diffusers' VAE in float32 with the values of our arrays.

    Raises:
        UserError: when diffusers or torch is not installed.
    """
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise UserError("--verify needs the reference: pip install diffusers torch") from error
    make = getattr(diffusers, converter.class_names[0])
    model = make(**converter.to_diffusers(config)).eval()
    state = {
        name: torch.from_numpy(np.array(values, np.float32))
        for name, values in to_diffusers_tensors(arrays, converter)
    }
    model.load_state_dict(state)
    return model


def verify(source: TensorSource, layout: Layout, vae: VideoVAE) -> Iterator[str]:
    """Encode and decode noise with both; yields a line per quantity.

    Raises:
        UserError: when an error exceeds the tolerance.
    """
    converter, config = layout.converter, vae.config
    plan = make_plan(source, layout, config).check()
    model = diffusers_vae(converter, config, dict(plan.arrays("float32")))
    arrays = module_arrays(vae)
    stored = {info.dtype for info in source.info.values()}
    kernels = {str(value.dtype) for value in arrays.values()}
    exact = kernels == {"float32"} or stored == kernels
    same = converter.comparable(config)
    vae = build_module(lambda: build_vae(same, rngs=nnx.Rngs(0)), arrays)
    return compare(
        vae,
        lambda video: converter.encode(model, video).chunk(2, dim=1)[0],
        lambda z: converter.decode(model, z),
        exact=exact,
    )


def compare(
    vae: VideoVAE,
    encode: "Callable[[Tensor], Tensor]",
    decode: "Callable[[Tensor], Tensor]",
    *,
    exact: bool,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> Iterator[str]:
    """Encode and decode noise with the VAE and with diffusers; yields a line per quantity.

    Args:
        vae: ours.
        encode: diffusers' mean (b, z, t, h, w) of a video (b, 3, t, h, w).
        decode: diffusers' video of a latent.
        exact: whether both have the same weights, unrounded.
        limits: to which `decode` clamps.

    Raises:
        UserError: when an error exceeds the tolerance.
    """
    import torch

    config, limit = vae.config, TOLERANCE if exact else ROUNDED_TOLERANCE
    side = 4 * config.spatial_factor
    shape = (1, 1 + 2 * config.frame_step, side, side + config.spatial_factor, 3)
    video = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    with jax.default_matmul_precision("highest"), torch.no_grad():
        z = encode(torch.from_numpy(video).permute(0, 4, 1, 2, 3))
        decoded = decode(z).permute(0, 2, 3, 4, 1).numpy()
        latent = z.permute(0, 2, 3, 4, 1).numpy()
        mean = np.asarray(vae.encode(jnp.asarray(video)).mean)
        ours = np.asarray(jnp.clip(vae.decode(jnp.asarray(latent)), *limits))
    for name, value, expected in (("encode", mean, latent), ("decode", ours, decoded)):
        error = float(np.linalg.norm(value - expected) / np.linalg.norm(expected))
        if not error <= limit:
            raise UserError(
                f"verification failed: {name} differs from diffusers by {error:.2e} (relative), "
                f"the limit is {limit:.0e}; do not use these weights"
            )
        yield f"verified {name}: relative error {error:.1e} against diffusers (limit {limit:.0e})"
