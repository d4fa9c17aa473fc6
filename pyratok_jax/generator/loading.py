"""Reading a trained prior from its working folder, or from a published one.

`generator.json` says what the prior is, and which frozen parts it needs.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from pydantic import Field

from pyratok_jax.checkpoints.hub import checkpoint_folder
from pyratok_jax.checkpoints.partition import restore_module
from pyratok_jax.checkpoints.pretrained import load_language
from pyratok_jax.checkpoints.verification import weights_hash
from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.errors import UserError
from pyratok_jax.generator.generator import Generator
from pyratok_jax.io import Json, documents
from pyratok_jax.io.atomic import write_json
from pyratok_jax.io.documents import checked, refusing
from pyratok_jax.io.remote import AnyPath, is_remote
from pyratok_jax.models.language.model import TextEncoder
from pyratok_jax.models.prior.config import PriorConfig, Sampling
from pyratok_jax.models.prior.model import Prior, narrowed
from pyratok_jax.tokenizer import Tokenizer, load_tokenizer
from pyratok_jax.tokenizer.loading import frozen_part, locate, trained_arrays

WORLD = "builtin:world"  # the prior that is shipped with this package, a published folder
SHIPPED = Path(str(resources.files("pyratok_jax") / "assets" / "world_prior"))
TOKENIZER = "tokenizer"  # of a published folder: the bundled tokenizer

DESCRIPTION = "generator.json"
FORMAT = "pyratok-jax-generator-1"
ADVICE = "restore the file as the training wrote it, or resume the training, which writes it"


@dataclasses.dataclass(frozen=True)
class FrozenText:
    """The language model that embeds captions.

    Attributes:
        spec: its specification; empty: that of the tokenizer.
        sha256: of its weights; empty with the specification.
        length: tokens per caption.
    """

    spec: str
    sha256: str
    length: Annotated[int, Field(ge=1, le=1 << 20)]


@dataclasses.dataclass(frozen=True)
class GeneratorDescription:
    """What `generator.json` holds beside its format.

    Attributes:
        prior: sizes, see `PriorConfig.to_dict`.
        tokenizer: working folder of the tokenizer.
        tokenizer_hash: its `checkpoint_hash`.
        language: None where nothing is conditioned on text.
        classes: names of the classes; empty where there are none.
        sampling: defaults of `generate`.
        size: (frames, height, width) of a clip of the dataset, padded; the default size.
        fps: of that clip.
        dtype: of activations.
        captioned: whether the clips of the dataset were encoded under their captions.
    """

    prior: dict[str, Json]
    tokenizer: str
    tokenizer_hash: str
    language: FrozenText | None
    classes: tuple[str, ...]
    sampling: dict[str, Json]
    size: tuple[int, int, int]
    fps: float
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    captioned: bool = True


def write_description(workdir: AnyPath, description: GeneratorDescription) -> None:
    """Write `generator.json` into a working folder, atomically."""
    write_json(workdir / DESCRIPTION, {"format": FORMAT, **dataclasses.asdict(description)})


def read_description(workdir: AnyPath) -> GeneratorDescription:
    """The description in a working folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    values = documents.read_description(workdir, DESCRIPTION, FORMAT, "generator")
    return checked(values, GeneratorDescription, str(workdir / DESCRIPTION), ADVICE)


def load_generator(
    checkpoint: str | AnyPath,
    *,
    tokenizer: str | AnyPath | Tokenizer | None = None,
    language: str | None = None,
) -> Generator:
    """The generator in a working folder (its newest checkpoint) or in its `checkpoints/STEP`.

    Args:
        checkpoint: the `--workdir` of a training with `task="generator"`, a folder written by
            `python -m pyratok_jax.publish`, either on the Hub (`hf://ORG/NAME`), or
            "builtin:world", a small prior of `builtin:world` videos that is shipped with this
            package.
        tokenizer: in place of the folder that the training names, where it has moved.
        language: likewise of its language model, where that is not the tokenizer's.

    Raises:
        UserError: no such folder, no generator's, or another tokenizer or language model than it
            was trained with.
    """
    workdir, step = locate(generator_folder(checkpoint))
    description = read_description(workdir)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = load_tokenizer(tokenizer or _tokenizer_of(workdir, description.tokenizer))
    if tokenizer.checkpoint_hash != description.tokenizer_hash:
        raise UserError(
            f"{workdir} was trained on tokens of another tokenizer "
            f"({description.tokenizer_hash[:12]}, not {tokenizer.checkpoint_hash[:12]}); name the "
            "one that made them"
        )
    where = str(workdir / DESCRIPTION)
    with refusing(where, ADVICE):
        sizes = PriorConfig.from_dict(description.prior)
        sampling = Sampling.from_dict(description.sampling)
    if sizes.strides != tokenizer.config.grids or sizes.bits != tokenizer.config.bits:
        raise UserError(f"{where}: its grids or bits are not those of the tokenizer; {ADVICE}")
    prior, digest = restored_prior(workdir, description, trained_arrays(workdir, step))
    text, captions = _text_of(workdir, description.language, tokenizer, language)
    return Generator(
        narrowed(prior),
        tokenizer,
        text=text,
        captions=captions,
        classes=description.classes,
        sampling=sampling,
        size=description.size,
        fps=description.fps,
        captioned=description.captioned,
        checkpoint_hash=digest,
    )


def restored_prior(
    workdir: AnyPath, description: GeneratorDescription, arrays: Mapping[str, np.ndarray | Array]
) -> tuple[Prior, str]:
    """The prior of trained arrays, and the hash that identifies it together with its tokenizer.

    Args:
        workdir: where they are from, for messages.
        description: of the prior.
        arrays: by stored name.

    Raises:
        UserError: sizes of no prior, or arrays of other sizes.
    """
    with refusing(str(workdir / DESCRIPTION), ADVICE):
        sizes = PriorConfig.from_dict(description.prior)
    prior, own = restore_module(
        lambda: Prior(sizes, rngs=nnx.Rngs(0), dtype=jnp.dtype(description.dtype)),
        "prior",
        {name: jnp.asarray(value) for name, value in arrays.items()},
        f"{workdir}: its checkpoint does not fit its {DESCRIPTION}",
    )
    values = weights_hash({name: np.asarray(value) for name, value in own.items()})
    parts = [values, description.tokenizer_hash, repr(sizes)]
    return prior, hashlib.sha256("|".join(parts).encode()).hexdigest()


def generator_folder(checkpoint: str | AnyPath) -> AnyPath:
    """The folder of a prior: shipped, on the Hub, on a storage service, or on this machine.

    Raises:
        UserError: no such shipped prior, or the Hub cannot be reached.
    """
    folder = checkpoint_folder(checkpoint, "prior", {WORLD: SHIPPED})
    if folder == SHIPPED and not (SHIPPED / DESCRIPTION).is_file():
        raise UserError(
            f"this installation ships no prior {WORLD}; train one, see docs/generation.md"
        )
    return folder


def _tokenizer_of(workdir: AnyPath, spec: str) -> str:
    """Where a prior's tokenizer is: bundled, or where the training had it.

    Raises:
        UserError: it is nowhere.
    """
    bundled = workdir / TOKENIZER
    if bundled.is_dir():
        return str(bundled)
    if not spec.startswith("builtin:") and not is_remote(spec) and not Path(spec).exists():
        raise UserError(
            f"the tokenizer that {workdir} was trained with was at {spec}, which does not exist "
            "here; give its folder with --tokenizer DIR (load_generator(..., tokenizer=DIR))"
        )
    return spec


def _text_of(
    workdir: AnyPath, said: FrozenText | None, tokenizer: Tokenizer, language: str | None
) -> tuple[TextEncoder | None, CaptionTokenizer | None]:
    """What embeds prompts, and its word tokenizer; neither for a prior without text.

    Raises:
        UserError: the language model is missing, or another one than in training.
    """
    if said is None:
        return None, None
    if said.spec:
        spec = language or frozen_part(workdir, dataclasses.asdict(said), "language")
        found = load_language(spec)
        if found.sha256 != said.sha256:
            raise UserError(
                f"the language model {spec} is not the one that {workdir} was trained with; put "
                "the original weights back"
            )
        text, words = TextEncoder(found.model), found.tokenizer
    elif tokenizer.text is not None and tokenizer.captions is not None:
        text, words = tokenizer.text, tokenizer.captions.tokenizer
    else:
        raise UserError("the tokenizer has no language model; name the one it was trained with")
    return text, CaptionTokenizer(words, said.length)
