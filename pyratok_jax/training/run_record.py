"""The config that a working folder is trained with: how the run began, and every change since.

`config.json` is the config of step 0. It is written when a run begins and never again.
`config_changes.jsonl` has one line for each resume with other values: the step that it resumed from
and `{key: [old, new]}`. Together they are the config in force, which a resume is compared with:

| keys | a resume with another value |
|---|---|
| `OPERATIONAL`: length, logging, machines, what is only read at step 0 | accepted |
| `IDENTITY`: what the checkpoint is a checkpoint of | refused |
| all others: loss, optimizer, data, masking, batch size, ... | refused, unless \
`config.resume_with_changes` |
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping

import jax
from etils import epath
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.working_folder import newest_step
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.atomic import write_json, write_text
from pyratok_jax.io.documents import checked, parse_json, read_json, read_lines, read_text
from pyratok_jax.io.remote import AnyPath
from pyratok_jax.models.pyratok.inputs import UNNAMED_INPUTS

CONFIG, CHANGES = "config.json", "config_changes.jsonl"
OPERATIONAL = (
    "steps", "checkpoint", "log_every", "evaluators", "max_bad_steps", "collapse", "report", "mesh",
    "multi_host", "host_timeout", "step_timeout", "profile_steps", "init_from",
    "init_levels", "remat", "fused_attention", "calibration",
    "data.workers", "data.threads", "data.prefetch", "data.phases", "model.vae",
    "language.size", "vision.size",
    "sampling", "conditioning.stored", "tokens.threads", "tokens.workers", "tokens.ahead",
)  # fmt: skip
IDENTITY = ("task", "seed", "model", "language", "tokenizer", "projector", "conditioning")
# Keys that configs did not always have, and what held before.
_ADDED: dict[str, Json] = {
    "model.tokenizer.inputs": UNNAMED_INPUTS,
    "model.tokenizer.surrogate": "identity",
    "loss.formulas": "",
    "loss.hidden_captions": 0.0,
    "conditioning.stored": "",
    "fused_attention": True,
    "loss.settings.text_levels": [1.0],
    "report.tasks": 0,
}
# Those of them that a run's results depend on all the same.
_OF_RESULTS = ("report", "calibration", "init_from", "init_levels", "data.phases")
_FLAG = "resume_with_changes"
_NAMED = 4  # Changed keys that a message names.

Flat = dict[str, Json]
Changes = dict[str, tuple[Json, Json]]


@dataclasses.dataclass(frozen=True)
class _Change:
    """A line of `CHANGES`, as far as it is read back."""

    changes: Changes


class RunRecord:
    """The record of one working folder, compared with the config of the run at hand.

    Attributes:
        changes: key -> (old, new) of everything that differs from the config in force.
    """

    def __init__(self, workdir: epath.Path, config: ConfigDict, newest: int | None):
        """Begin the record, or compare with the one that is there.

        Args:
            workdir: an existing folder.
            config: of this run.
            newest: step of the newest checkpoint; None: the run begins, whatever an earlier one
                that saved nothing has left.

        Raises:
            UserError: values differ that must not, or the record cannot be read.
        """
        self._workdir = workdir
        self.changes: Changes = {}
        current = json.loads(config.to_json_best_effort())
        if newest is not None and (workdir / CONFIG).exists():
            in_force = _in_force(workdir)
            self.changes = dict(_differences(in_force, dict(_flat(current))))
            _check(workdir, self.changes, newest, allowed=bool(config.get(_FLAG)))
        elif jax.process_index() == 0:
            write_json(workdir / CONFIG, current)
            (workdir / CHANGES).unlink(missing_ok=True)

    def resumed(self, step: int) -> None:
        """Note the changes as made at `step`, once its checkpoint has been restored."""
        if self.changes and jax.process_index() == 0:
            path = self._workdir / CHANGES
            line = json.dumps({"step": step, "changes": self.changes})
            # Atomically: what is there already must outlive a crash and a full disk.
            write_text(path, (read_text(path) if path.exists() else "") + line + "\n")


def results_hash(config: ConfigDict) -> str:
    """Of all values that a run's results depend on, but for its length."""
    values = dict(_of_results(_flat(json.loads(config.to_json_best_effort()))))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def changed_keys(workdir: AnyPath, config: ConfigDict) -> list[str]:
    """Keys of `results_hash` whose values are not those that a working folder was trained with.

    Raises:
        UserError: the folder has no record, or a damaged one.
    """
    old = dict(_of_results(_in_force(epath.Path(workdir)).items()))
    new = dict(_of_results(_flat(json.loads(config.to_json_best_effort()))))
    return [key for key, _ in _differences(old, new)]


def _of_results(values: Iterable[tuple[str, Json]]) -> Iterator[tuple[str, Json]]:
    for key, value in values:
        if key != _FLAG and (_within(key, _OF_RESULTS) or not _within(key, OPERATIONAL)):
            yield key, value


def refuse_another_owner(description: AnyPath, key: str, owner: str) -> None:
    """Refuse to resume a training for another tokenizer than it began with.

    A tokenizer that was trained further under the same name is another one.

    Args:
        description: the JSON file in the working folder that names the tokenizer's hash.
        key: where in it.
        owner: hash of the tokenizer at hand.

    Raises:
        UserError: it differs, or the file is damaged.
    """
    if newest_step(description.parent) is None or not description.exists():
        return
    advice = "restore it from a copy, or name another --workdir"
    found = read_json(description, dict[str, Json], advice=advice).get(key)
    if found != owner:
        raise UserError(
            f"{description.parent} was trained for the tokenizer {str(found)[:12]}, not for "
            f"{owner[:12]}; give it that tokenizer, or name another --workdir"
        )


def _in_force(workdir: epath.Path) -> Flat:
    advice = "restore it from a copy, or name another --workdir"
    values = dict(_flat(read_json(workdir / CONFIG, dict[str, Json], advice=advice)))
    if (workdir / CHANGES).exists():
        for number, line in enumerate(read_lines(workdir / CHANGES), start=1):
            where = f"{workdir / CHANGES}, line {number}"
            entry = checked(
                parse_json(line, where), _Change, where,
                "repair or remove that line, or name another --workdir",
            )  # fmt: skip
            values |= {key: new for key, (_, new) in entry.changes.items()}
    return values


def _flat(values: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    """(dotted key, value) of all that is no dictionary."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _differences(old: Flat, new: Flat) -> Iterator[tuple[str, tuple[Json, Json]]]:
    for key in sorted(old.keys() | new.keys()):
        before = old.get(key, _ADDED.get(key))
        if key != _FLAG and before != new.get(key):
            yield key, (before, new.get(key))


def _check(workdir: epath.Path, changes: Changes, step: int, *, allowed: bool) -> None:
    method = {key: pair for key, pair in changes.items() if not _within(key, OPERATIONAL)}
    identity = {key: pair for key, pair in method.items() if _within(key, IDENTITY)}
    if identity:
        raise UserError(
            f"{workdir} holds a run of another config: {_told(identity)}; name another --workdir, "
            "or give the config that it was started with"
        )
    if method and not allowed:
        raise UserError(
            f"{workdir} was trained with other values: {_told(method)}; give the old ones, name "
            f"another --workdir, or change them from step {step} on with "
            f"--config.{_FLAG}=true (kept in {CHANGES})"
        )


def _within(key: str, parts: tuple[str, ...]) -> bool:
    return any(key == part or key.startswith(part + ".") for part in parts)


def _told(changes: Changes) -> str:
    named = [f"{key} was {old!r}, is {new!r}" for key, (old, new) in changes.items()]
    more = f"; and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return "; ".join(named[:_NAMED]) + more
