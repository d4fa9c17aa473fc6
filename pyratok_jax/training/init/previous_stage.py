"""Starting a stage from the tokenizer of the stage before (`config.init_from`).

That is the newest checkpoint of a working folder, a published folder (`python -m
pyratok_jax.publish`), one on the Hub, or a tokenizer that is shipped with the package.

A later stage may train more than the one before it: a loss that gains a weight can bring a head of
its own (stage 3 of `configs/tpu_v5.py`: the projection `drift.*`). Arrays that both stages train
are taken from the checkpoint; new ones keep their initial values and are reported by name.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.checkpoints.working_folder import newest_step, read_parameters
from pyratok_jax.errors import UserError
from pyratok_jax.io.progress import PlainConsole
from pyratok_jax.io.remote import AnyPath
from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.text_statistics import counted
from pyratok_jax.tokenizer import DESCRIPTION
from pyratok_jax.tokenizer.loading import (
    PARAMETERS,
    read_description,
    tokenizer_folder,
    trained_arrays,
)
from pyratok_jax.training.optimizer import is_statistic

_NAMED = 8  # fresh arrays that are named at most


class Handover(NamedTuple):
    """What a stage took over from the one before.

    Attributes:
        step: of the checkpoint; None for a published folder.
        taken: names of the arrays that were read from it.
        fresh: names of trainable arrays that it lacks, which keep their initial values.
        left: names of its arrays that this stage has no place for.
    """

    step: int | None
    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    left: tuple[str, ...]


def start_from(
    folder: str,
    partition: Partition,
    *,
    levels: int = 0,
    level_parts: Sequence[str] = (),
    locate: Callable[[str], AnyPath] = tokenizer_folder,
) -> Handover:
    """Put the trainable arrays of another training into the partition.

    Args:
        folder: as `load_tokenizer` takes it.
        partition: of the model to be trained; changed in place.
        levels: how many of the first levels are taken over; 0: all.
        level_parts: of the model's quantiser (`Quantizer.level_parts`); read with `levels` alone.
        locate: the local folder of what `folder` names.

    Raises:
        UserError: the folder holds no checkpoint, an array has another shape, or the checkpoint and
            the partition have no array in common.
    """
    workdir = locate(folder)
    step = newest_step(workdir)
    if step is None and not (workdir / PARAMETERS).is_file():
        raise UserError(f"config.init_from {folder} holds no checkpoint; name a --workdir")
    arrays = read_parameters(workdir, step) if step is not None else trained_arrays(workdir, None)
    arrays |= counted({n: jnp.asarray(x) for n, x in arrays.items() if is_statistic(n)})
    if levels:
        arrays = {n: x for n, x in arrays.items() if _level(n, level_parts) < levels}
    taken = tuple(name for name in partition.trainable if name in arrays)
    if not taken:
        raise UserError(
            f"config.init_from {folder} shares no trainable array with this config's model; both "
            "stages need the same model"
        )
    for name in taken:
        found, wanted = tuple(arrays[name].shape), tuple(partition.trainable[name].shape)
        if found != wanted:
            raise UserError(
                f"config.init_from {folder} does not fit this config's model at {name} (shape "
                f"{found}, expected {wanted}); both stages need the same model"
            )
    partition.trainable.update({name: arrays[name] for name in taken})
    fresh = tuple(name for name in partition.trainable if name not in arrays)
    left = tuple(name for name in arrays if name not in partition.trainable)
    return Handover(step, taken, fresh, left)


def check_alike(folder: str, backbone: str, language: str, config: PyraTokConfig) -> None:
    """Refuse a tokenizer to start from whose arrays mean something else here, in equal shapes.

    Args:
        folder: as `load_tokenizer` takes it.
        backbone, language: SHA-256 of the frozen weights of this training.
        config: of the tokenizer that is trained.

    Raises:
        UserError: other frozen weights, heads of attention, codes or scale of the adapters.
    """
    workdir = tokenizer_folder(folder)
    if not (workdir / DESCRIPTION).exists():
        return
    said = read_description(workdir)
    for key, found in (("backbone", backbone), ("language_model", language)):
        if said[key] and said[key]["sha256"] != found:
            raise UserError(
                f"config.init_from {folder} was trained with other weights of the {key} "
                f"(SHA-256 {said[key]['sha256'][:16]}, here {found[:16]}); give it those"
            )
    made, wanted = said["tokenizer"], config.to_dict()
    adapted = made.get("lora_rank") and wanted["lora_rank"]
    for key in ("heads", "vocabulary", *(["lora_alpha"] if adapted else [])):
        if key in made and made[key] != wanted[key]:
            raise UserError(
                f"config.model.tokenizer.{key} is {wanted[key]}, but {made[key]} in "
                f"config.init_from {folder}: its arrays mean something else there"
            )


def _level(name: str, parts: Sequence[str]) -> int:
    """The level that an array belongs to, from 0; -1 for what belongs to none."""
    found = re.match(rf"tokenizer\.({'|'.join(parts)})\.(\d+)\.", name)
    return int(found[2]) if found else -1


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def report_handover(folder: str, handover: Handover) -> None:
    """Print, on process 0, what was taken over and which arrays start afresh."""
    if jax.process_index():
        return
    step = "" if handover.step is None else f", step {handover.step}"
    text = f"started from {folder}{step}: {len(handover.taken)} arrays taken over"
    if handover.fresh:
        text += f"; new in this stage, kept as initialised: {_listed(handover.fresh)}"
    if handover.left:
        text += f"; without a place in this stage, left behind: {_listed(handover.left)}"
    PlainConsole().print(text, soft_wrap=True)
