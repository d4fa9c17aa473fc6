"""Writing and reading a trained tokenizer's folder.

A working folder holds `tokenizer.json` (sizes, frozen parts by specification and hash) and
`checkpoints/` (what training changed).
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import Field

from pyratok_jax.checkpoints.partition import restore_module
from pyratok_jax.checkpoints.pretrained import load_backbone, load_language
from pyratok_jax.checkpoints.verification import weights_hash
from pyratok_jax.checkpoints.working_folder import is_step, newest_step, read_parameters
from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.errors import UserError
from pyratok_jax.io import documents
from pyratok_jax.io.atomic import write_json
from pyratok_jax.io.documents import checked, refusing
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.models.language.text import TextEncoder
from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.tokenizer.tokenizer import Tokenizer

FORMAT = "pyratok-jax-tokenizer-1"
DESCRIPTION = "tokenizer.json"
_ADVICE = "restore the file as the training wrote it, or resume the training, which writes it"


def write_description(
    workdir: Path,
    config: PyraTokConfig,
    *,
    backbone: dict[str, str],
    language_model: dict[str, Any] | None,
    alignment: dict[str, Any] | None,
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
    write_json(workdir / DESCRIPTION, values)


def load_tokenizer(checkpoint: str | Path) -> Tokenizer:
    """The tokenizer in a working folder (its newest checkpoint) or in its `checkpoints/STEP`.

    Raises:
        UserError: no such folder, no tokenizer's, or frozen weights that are not those it was
            trained with.
    """
    workdir, step = locate(Path(checkpoint))
    description = read_description(workdir)
    where = str(workdir / DESCRIPTION)
    with refusing(where, _ADVICE):
        config = PyraTokConfig.from_dict(description["tokenizer"])
    backbone = load_backbone(description["backbone"]["spec"])
    _same(workdir, "backbone", description["backbone"], backbone.sha256)
    arrays = read_parameters(workdir, step)
    names = {f"tokenizer.vae.{name}": jnp.asarray(v) for name, v in backbone.arrays.items()}
    misfit = f"{workdir}: its checkpoint does not fit its {DESCRIPTION}"
    dtype = jnp.dtype(description.get("dtype", "float32"))
    with refusing(where, _ADVICE):
        model, _ = restore_module(
            lambda: PyraTok(config, rngs=nnx.Rngs(0), dtype=dtype),
            "tokenizer",
            names | dict(arrays),
            misfit,
        )
    text, captions, language_hash = None, None, ""
    if description["language_model"]:
        said = description["language_model"]
        language = load_language(said["spec"], bits=said.get("bits", 0))
        _same(workdir, "language model", said, language.sha256)
        text, captions = (
            TextEncoder(language.model),
            CaptionTokenizer(language.tokenizer, said["length"]),
        )
        language_hash = language.sha256
    alignment = None
    if description["alignment"]:
        values = description["alignment"]
        with refusing(f"{where}: alignment", _ADVICE):
            alignment, _ = restore_module(
                lambda: Alignment(**values, rngs=nnx.Rngs(0)), "alignment", arrays, misfit
            )
    own = {k: np.asarray(v) for k, v in arrays.items()}
    parts = [weights_hash(own), backbone.sha256, language_hash, config.fingerprint()]
    digest = hashlib.sha256("|".join(parts).encode()).hexdigest()
    return Tokenizer(
        model,
        text=text,
        captions=captions,
        alignment=alignment,
        checkpoint_hash=digest,
        folder=workdir,
    )


def locate(path: Path) -> tuple[Path, int]:
    """(working folder, step) of what the user named."""
    if not path.exists():
        raise UserError(f"--checkpoint {path}: no such folder; name the --workdir of a training")
    if path.parent.name == "checkpoints" and is_step(path.name):
        return path.parent.parent, int(path.name)
    step = newest_step(path) if path.is_dir() else None
    if step is None:
        raise UserError(f"--checkpoint {path} holds no checkpoint; name a training's --workdir")
    return path, step


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

    tokenizer: dict[str, Any]
    backbone: FrozenPart
    language_model: FrozenLanguage | None
    alignment: dict[str, Any] | None
    # Before descriptions had a dtype, every tokenizer was read as float32.
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


def read_description(workdir: Path) -> dict[str, Any]:
    """The content of `tokenizer.json`, with the keys of `Description`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    values = documents.read_description(workdir, DESCRIPTION, FORMAT, "tokenizer")
    checked(values, Description, str(workdir / DESCRIPTION), _ADVICE)
    return values


def _same(workdir: Path, what: str, said: dict[str, str], found: str) -> None:
    if said["sha256"] != found:
        raise UserError(
            f"the {what} {said['spec']} is not the one that {workdir} was trained with (SHA-256 "
            f"{found[:12]}, expected {said['sha256'][:12]}); put the original weights back"
        )
