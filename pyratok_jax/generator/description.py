"""`generator.json`: what a working folder's prior is, and which frozen parts it needs."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pyratok_jax.io import documents
from pyratok_jax.io.atomic import write_json
from pyratok_jax.io.documents import checked

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
    """

    prior: dict[str, Any]
    tokenizer: str
    tokenizer_hash: str
    language: FrozenText | None
    classes: tuple[str, ...]
    sampling: dict[str, Any]
    size: tuple[int, int, int]
    fps: float
    dtype: str = "float32"


def write_description(workdir: Path, description: GeneratorDescription) -> None:
    """Write `generator.json` into a working folder, atomically."""
    write_json(workdir / DESCRIPTION, {"format": FORMAT, **dataclasses.asdict(description)})


def read_description(workdir: Path) -> GeneratorDescription:
    """The description in a working folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    values = documents.read_description(workdir, DESCRIPTION, FORMAT, "generator")
    return checked(values, GeneratorDescription, str(workdir / DESCRIPTION), ADVICE)
