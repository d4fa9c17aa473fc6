"""Checkpoints of a training: trainable state and data position, by Orbax; frozen weights by hash.

A working folder holds `config.json` (the training config), `checkpoints/STEP/` and, for a
tokenizer, `tokenizer.json` (see `pyratok_jax.tokenizer`).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from pyratok_jax.errors import UserError
from pyratok_jax.training.step import TrainState

# What may differ between the run that wrote a checkpoint and the one that goes on with it: how
# long and how watched a training is, and how its work is laid over machines, not what it computes.
_FREE = ("steps", "checkpoint", "log_every", "max_bad_steps", "collapse", "report", "mesh",
         "multi_host", "host_timeout", "step_timeout", "profile_steps", "init_from", "remat",
         "loss", "optimizer", "data.workers", "data.threads", "data.prefetch",
         "data.phases", "data.clips", "data.shares", "data.augment", "data.photos", "model.vae",
         "language.size", "vision.size")  # fmt: skip


class Checkpoints:
    """The checkpoints of one working folder.

    Raises:
        UserError: the folder is a file, cannot be written, or holds a run of another config.
    """

    def __init__(self, workdir: str | Path, config: ConfigDict):
        self.workdir = epath.Path(workdir)
        if self.workdir.exists() and not self.workdir.is_dir():
            raise UserError(f"--workdir {workdir} is a file; name a folder")
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            _check_config(self.workdir / "config.json", config)
        except OSError as error:
            raise UserError(f"--workdir {workdir}: {error.strerror or error}") from error
        _write_small_arrays_whole()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.checkpoint.keep or None,
            keep_period=config.checkpoint.keep_every or None,
            enable_async_checkpointing=True,
            # What a killed run had begun to write.
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(
            (self.workdir / "checkpoints").resolve(), options=options
        )
        self._every = config.checkpoint.every

    def newest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        """Whether this step is one to save at."""
        return bool(self._every) and step % self._every == 0

    def save(self, state: TrainState, data: Mapping[str, Any]) -> None:
        """Begin to save; the arrays are copied before this returns, files are written behind."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_tree(state)), data=ocp.args.JsonSave(dict(data))
        )
        self._manager.save(step, args=args, force=True)

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint, laid out like `state`, with its data's state; None without one.

        Raises:
            UserError: it does not fit the model, or cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _tree(state))
        try:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
                ),
            )
        except (ValueError, KeyError, FileNotFoundError, OSError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(
                f"{self.workdir}/checkpoints/{step} cannot be restored into this config's model: "
                f"{reason}; use the config that it was trained with, or another --workdir"
            ) from error
        return _state(found["state"], state), found["data"]

    def wait(self) -> None:
        """Until everything begun is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait and let go of the folder."""
        self._manager.close()


def _write_small_arrays_whole() -> None:
    """Let Orbax share out only large arrays over the devices that hold copies of them.

    It cuts them by a program for every shape and place of a slice: with 8 devices some 300 to
    compile at the first save, for arrays of a few kilobytes.
    """
    handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=1 << 20)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # It warns that its own handler is replaced.
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    logging.set_verbosity(verbosity)


def _tree(state: TrainState) -> dict[str, Any]:
    """Plain nested dictionaries: readable by any version of the optimizer's classes."""
    leaves = jax.tree.leaves(state.opt_state)
    return state._asdict() | {"opt_state": {str(i): leaf for i, leaf in enumerate(leaves)}}


def _state(tree: Mapping[str, Any], like: TrainState) -> TrainState:
    """The inverse of `_tree`; an empty dictionary may have been left out when it was written."""
    leaves = [tree["opt_state"][str(i)] for i in range(len(tree["opt_state"]))]
    opt_state = jax.tree.unflatten(jax.tree.structure(like.opt_state), leaves)
    return TrainState(
        step=tree["step"],
        params=tree["params"],
        opt_state=opt_state,
        ema=tree.get("ema") or {},
        skipped=tree["skipped"],
        skipped_in_a_row=tree["skipped_in_a_row"],
    )


def newest_step(workdir: Path) -> int | None:
    """Step of the newest complete checkpoint of a working folder."""
    folder = workdir / "checkpoints"
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    return max(steps, default=None)


def read_parameters(workdir: Path, step: int, prefer_ema: bool = True) -> dict[str, Any]:
    """Trainable arrays by name of one checkpoint (their averages, where it keeps some).

    Raises:
        UserError: it cannot be read.
    """
    path = (workdir / "checkpoints" / str(step) / "state").absolute()
    try:
        with _reader() as checkpointer:
            meta = checkpointer.metadata(path).item_metadata
            tree = jax.tree.map(_abstract_on_host, dict(meta))
            state = checkpointer.restore(path, args=ocp.args.StandardRestore(tree))
    except (ValueError, KeyError, FileNotFoundError, OSError, TypeError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"{path.parent}: not a readable checkpoint ({reason})") from error
    return state["ema"] if prefer_ema and state.get("ema") else state["params"]


def _reader() -> ocp.Checkpointer:
    """Reads in this process alone, whatever the others of a run do."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    if jax.process_count() == 1:
        alone = ocp.options.MultiprocessingOptions()
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _abstract_on_host(meta: Any) -> jax.ShapeDtypeStruct:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(meta.shape, meta.dtype, sharding=device)


def _check_config(path: epath.Path, config: ConfigDict) -> None:
    """Write the config beside the checkpoints, or compare with the one that is there."""
    current = json.loads(config.to_json_best_effort())
    if path.exists():
        try:
            stored = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is not JSON; name another --workdir") from error
        key = first_difference(stored, current, lambda key: not _is_free(key))
        if key is not None:
            raise UserError(
                f"{path.parent} holds a run of another config: {key} differs; name another "
                "--workdir, or give the config that it was started with"
            )
    if jax.process_index() == 0:
        scratch = path.parent / ".config.json.tmp"
        scratch.write_text(json.dumps(current, indent=1) + "\n")
        scratch.rename(path) if not path.exists() else scratch.replace(path)


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in _FREE)


def first_difference(a: Any, b: Any, counts: Callable[[str], bool], key: str = "") -> str | None:
    """The first dotted key (for which `counts` holds) at which two nested dictionaries differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in sorted(a.keys() | b.keys()):
            below = f"{key}.{name}" if key else str(name)
            found = first_difference(a.get(name), b.get(name), counts, below)
            if found is not None:
                return found
        return None
    return key if a != b and counts(key) else None
