"""A trained projector of codes into a language model, read from its working folder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from pyratok_jax.checkpoints.partition import restore_module
from pyratok_jax.checkpoints.verification import weights_hash
from pyratok_jax.checkpoints.working_folder import newest_step, read_parameters
from pyratok_jax.errors import UserError
from pyratok_jax.io.documents import read_json, refusing
from pyratok_jax.models.projector import Projector
from pyratok_jax.tokenizer import Tokenizer

FORMAT = "pyratok-jax-projector-1"


DESCRIPTION = "projector.json"


@dataclasses.dataclass(frozen=True)
class _Description:
    """What `DESCRIPTION` holds: the projector's sizes, and the hash of its tokenizer."""

    projector: dict[str, Any]
    tokenizer: str


def make_projector(arguments: Mapping[str, Any], rngs: nnx.Rngs) -> Projector:
    """A projector of stored sizes."""
    return Projector(**{**arguments, "most": tuple(arguments["most"])}, rngs=rngs)


def load_projector(folder: str | Path, tokenizer: Tokenizer) -> tuple[Projector, str]:
    """The projector in a working folder, and the hash of its weights.

    Raises:
        UserError: there is none, or it was trained for another tokenizer.
    """
    path = Path(folder) / DESCRIPTION
    if not path.exists():
        raise UserError(
            f"{path} does not exist; train a projector with --config configs/vqa_projector.py"
        )
    record = read_json(path, _Description, advice="it is no description of a projector")
    arguments, owner = record.projector, record.tokenizer
    with refusing(f"{path}: projector"):
        nnx.eval_shape(lambda: make_projector(arguments, nnx.Rngs(0)))
    if owner != tokenizer.checkpoint_hash:
        raise UserError(
            f"the projector in {folder} was trained for the tokenizer {owner[:12]}, not for "
            f"{tokenizer.checkpoint_hash[:12]}; train one for this checkpoint"
        )
    step = newest_step(Path(folder))
    if step is None:
        raise UserError(f"{folder} holds no checkpoint of a projector yet")
    stored = read_parameters(Path(folder), step)
    projector, values = restore_module(
        lambda: make_projector(arguments, nnx.Rngs(0)),
        "projector",
        stored,
        f"{folder}: its checkpoint does not fit its {DESCRIPTION}",
    )
    return projector, weights_hash({k: np.asarray(v) for k, v in values.items()})
