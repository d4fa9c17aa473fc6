"""Writing and reading a trained tokenizer's folder.

A working folder holds `tokenizer.json` (sizes, frozen parts by specification and hash) and
`checkpoints/` (what training changed); a published one `model.safetensors` in their place.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import Field

from pyratok_jax.checkpoints import verification
from pyratok_jax.checkpoints.hub import checkpoint_folder
from pyratok_jax.checkpoints.partition import Arrays, restore_module
from pyratok_jax.checkpoints.pretrained import load_backbone, load_language
from pyratok_jax.checkpoints.weights import damage_refused
from pyratok_jax.checkpoints.working_folder import is_step, newest_step, read_parameters
from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json, documents
from pyratok_jax.io.atomic import write_json
from pyratok_jax.io.documents import check_sizes, check_types, checked, read_json, refusing
from pyratok_jax.io.mirror import cached_file
from pyratok_jax.io.remote import AnyPath, is_remote
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.models.language.model import TextEncoder
from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.models.vae_families import UNNAMED, config_from_dict, vae_family
from pyratok_jax.tokenizer.tokenizer import Tokenizer

FORMAT = "pyratok-jax-tokenizer-1"
DESCRIPTION = "tokenizer.json"
PARAMETERS = "model.safetensors"  # of a published folder: what training changed
FROZEN = "frozen"  # of a published folder: bundled weights
WORLD = "builtin:world"  # the tokenizer that is shipped with this package, a published folder
_ADVICE = "restore the file as the training wrote it, or resume the training, which writes it"


def write_description(
    workdir: AnyPath,
    config: PyraTokConfig,
    *,
    backbone: dict[str, str],
    language_model: dict[str, Json] | None,
    alignment: dict[str, Json] | None,
    dtype: str = "float32",
) -> None:
    """Write `tokenizer.json` into a working folder, atomically.

    Args:
        workdir: the folder.
        config: sizes.
        backbone: spec and sha256.
        language_model: spec, sha256, length (tokens per caption) and bits (of its kernels).
        alignment: arguments of `Alignment`.
        dtype: of activations in training. Tokens are of it: in another some signs differ.
    """
    values = {
        "format": FORMAT,
        "tokenizer": config.to_dict(),
        "backbone": backbone,
        "language_model": language_model,
        "alignment": alignment,
        "dtype": dtype,
    }
    values["sha256"] = verification.record_hash(_settings(values))
    write_json(workdir / DESCRIPTION, values)


def _settings(description: Mapping[str, Json]) -> dict[str, Json]:
    """What of a description has a hash: all but where frozen parts are, which may move."""
    return {name: description.get(name) for name in ("tokenizer", "alignment", "dtype")}


def load_tokenizer(
    checkpoint: str | AnyPath, *, backbone: str | None = None, language: str | None = None
) -> Tokenizer:
    """The tokenizer in a working folder (its newest checkpoint) or in its `checkpoints/STEP`.

    Args:
        checkpoint: such a folder, one written by `python -m pyratok_jax.publish`, either on the
            Hub, `hf://ORG/NAME[@REVISION][/SUBFOLDER]`, or "builtin:world", a small tokenizer of
            `builtin:world` videos that is shipped with this package.
        backbone: where its frozen VAE is, in place of what its description says (`frozen_part`).
        language: likewise its language model.

    Raises:
        UserError: no such folder, no tokenizer's, or frozen weights that are not those it was
            trained with.
    """
    workdir, step = locate(tokenizer_folder(checkpoint))
    description = read_description(workdir)
    where = str(workdir / DESCRIPTION)
    config = stored_config(description, where)
    said = description["backbone"]
    vae = load_backbone(backbone or frozen_part(workdir, said, "backbone"))
    _same(workdir, "backbone", said, vae.sha256)
    arrays = trained_arrays(workdir, step)
    names = {f"tokenizer.vae.{name}": jnp.asarray(v) for name, v in vae.arrays.items()}
    misfit = f"{workdir}: its checkpoint does not fit its {DESCRIPTION}"
    dtype = jnp.dtype(description.get("dtype", "float32"))
    with refusing(where, _ADVICE):
        model, _ = restore_module(
            lambda: PyraTok(config, rngs=nnx.Rngs(0), dtype=dtype),
            "tokenizer",
            names | dict(arrays),
            misfit,
        )
    text = captions = None
    if description["language_model"]:
        said = description["language_model"]
        spec = language or frozen_part(workdir, said, "language")
        model_of_text = load_language(spec, bits=said.get("bits", 0))
        _same(workdir, "language model", said, model_of_text.sha256)
        text, captions = (
            TextEncoder(model_of_text.model),
            CaptionTokenizer(model_of_text.tokenizer, said["length"]),
        )
    alignment = None
    if description["alignment"]:
        values = description["alignment"]
        with refusing(f"{where}: alignment", _ADVICE):
            alignment, _ = restore_module(
                lambda: Alignment(**values, rngs=nnx.Rngs(0)), "alignment", arrays, misfit
            )
    verification.verify_record(
        where, _settings(description), description.get("sha256", ""), _ADVICE
    )
    return Tokenizer(
        model,
        text=text,
        captions=captions,
        alignment=alignment,
        checkpoint_hash=hash_of(description, config, arrays),
        # What is named by a specification stays so: its folder is another on every machine.
        folder=workdir if isinstance(workdir, Path) and Path(checkpoint).exists() else None,
    )


def hash_of(description: Mapping[str, Json], config: PyraTokConfig, arrays: Arrays) -> str:
    """`Tokenizer.checkpoint_hash`: SHA-256 over all weights, by their hashes, and the sizes.

    Args:
        description: the content of `tokenizer.json`.
        config: the sizes in it.
        arrays: the trained ones, by name.
    """
    own = {name: np.asarray(value) for name, value in arrays.items()}
    language = description["language_model"]
    frozen = [description["backbone"]["sha256"], language["sha256"] if language else ""]
    parts = [verification.weights_hash(own), *frozen, config.fingerprint()]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def tokenizer_folder(checkpoint: str | AnyPath) -> AnyPath:
    """The local folder of a tokenizer: shipped, on the Hub, or on this machine.

    Raises:
        UserError: no such shipped tokenizer, or the Hub cannot be reached.
    """
    shipped = Path(str(resources.files("pyratok_jax") / "assets" / "world"))
    return checkpoint_folder(checkpoint, "tokenizer", {WORLD: shipped})


def locate(path: AnyPath) -> tuple[AnyPath, int | None]:
    """(working folder, step) of what the user named; no step for a published folder."""
    if not path.exists():
        raise UserError(f"--checkpoint {path}: no such folder; name the --workdir of a training")
    if path.parent.name == "checkpoints" and is_step(path.name):
        return path.parent.parent, int(path.name)
    step = newest_step(path) if path.is_dir() else None
    if step is None and not (path / PARAMETERS).exists():
        raise UserError(f"--checkpoint {path} holds no checkpoint; name a training's --workdir")
    return path, step


def trained_arrays(workdir: AnyPath, step: int | None) -> Arrays:
    """The trained arrays by name: of a checkpoint, or of a published folder's safetensors.

    Args:
        workdir, step: as `locate` gives them.

    Raises:
        UserError: a damaged file.
    """
    if step is not None:
        return read_parameters(workdir, step)
    import safetensors

    path, advice = workdir / PARAMETERS, "download or publish the folder again"
    with (
        damage_refused(lambda error: f"{path} is damaged ({error}); {advice}"),
        safetensors.safe_open(cached_file(path), "flax") as file,
    ):
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        recorded = (file.metadata() or {}).get("sha256")
    if verification.enabled() and recorded:
        found = verification.weights_hash({k: np.asarray(x) for k, x in arrays.items()})
        if found != recorded:
            raise UserError(f"{path} holds other values than were published; {advice}")
    return arrays


def frozen_part(workdir: AnyPath, said: Mapping[str, Json], name: str) -> str:
    """Where the frozen weights of a description are: a specification for `pretrained`.

    They are known by their hash. Looked for, in this order: where the training had them, in the
    folder `frozen/NAME` of the tokenizer (where `publish --bundle` puts them), and in the folders
    below those that the environment variable PYRATOK_WEIGHTS lists.

    Args:
        workdir: of the tokenizer.
        said: `backbone` or `language_model` of the description.
        name: "backbone" or "language", of the option that names another folder.

    Raises:
        UserError: they are nowhere.
    """
    spec = str(said["spec"])
    if spec.startswith("builtin:") or is_remote(spec) or Path(spec).exists():
        return spec
    places: list[AnyPath] = [workdir / FROZEN / name]
    for root in filter(None, os.environ.get("PYRATOK_WEIGHTS", "").split(os.pathsep)):
        places += sorted(path.parent for path in Path(root).glob("*/config.json"))
    for place in places:
        if (place / "config.json").exists():
            found = read_json(place / "config.json")
            if isinstance(found, dict) and found.get("sha256") == said["sha256"]:
                return str(place)
    raise UserError(
        f"the {name} weights of {workdir} were trained with at {spec}, which does not exist here; "
        f"give their folder with --{name} DIR (load_tokenizer(..., {name}=DIR)), or list the "
        "folder above it in PYRATOK_WEIGHTS"
    )


@dataclasses.dataclass(frozen=True)
class FrozenPart:
    """Frozen weights in a description."""

    spec: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class FrozenLanguage(FrozenPart):
    """The language model in a description: tokens per caption, and bits of its kernels."""

    length: Annotated[int, Field(ge=1, le=1 << 20)]
    bits: Literal[0, 4, 8] = 0


@dataclasses.dataclass(frozen=True)
class Description:
    """What `tokenizer.json` holds, see `write_description`."""

    tokenizer: dict[str, Json]
    backbone: FrozenPart
    language_model: FrozenLanguage | None
    alignment: dict[str, Json] | None
    # Before descriptions had a dtype, every tokenizer was read as float32.
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    sha256: str = ""  # of the settings; older ones have none


def read_description(workdir: AnyPath) -> dict[str, Json]:
    """The content of `tokenizer.json`, with the keys of `Description`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    values = documents.read_description(workdir, DESCRIPTION, FORMAT, "tokenizer")
    checked(values, Description, str(workdir / DESCRIPTION), _ADVICE)
    return values


def stored_config(description: dict[str, Json], where: str) -> PyraTokConfig:
    """The sizes in the content of a `tokenizer.json`.

    Args:
        description: as `read_description` gives it.
        where: the file, for messages.

    Raises:
        UserError: a value of a wrong type or size.
    """
    values, place = description["tokenizer"], f"{where}: tokenizer"
    vae = checked(values.get("vae"), dict[str, Json], f"{place}.vae", _ADVICE)
    # Types and sizes first: with absurd ones, what is computed from them would never finish.
    check_types(values, PyraTokConfig, place, _ADVICE)
    with refusing(f"{place}.vae", _ADVICE):
        family = vae_family(vae.get("family", UNNAMED)).config
        check_types(vae, family, f"{place}.vae", _ADVICE)
        check_sizes(config_from_dict(vae), f"{place}.vae", _ADVICE)
    with refusing(where, _ADVICE):
        config = PyraTokConfig.from_dict(values)
        if config.vocabulary_size > 2**config.bits:
            raise ValueError(f"vocabulary {config.vocabulary} is more than {config.bits} bits have")
    return config


def _same(workdir: AnyPath, what: str, said: dict[str, str], found: str) -> None:
    if said["sha256"] != found:
        raise UserError(
            f"the {what} {said['spec']} is not the one that {workdir} was trained with (SHA-256 "
            f"{found[:12]}, expected {said['sha256'][:12]}); put the original weights back"
        )
