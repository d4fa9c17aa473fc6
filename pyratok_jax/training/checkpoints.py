"""Checkpoints of a training: trainable state and data position, by Orbax; frozen weights by hash.

A working folder holds the run's config (see `run_record`), `checkpoints/STEP/` and, for a
tokenizer, `tokenizer.json` (see `pyratok_jax.tokenizer`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.working_folder import newest_step
from pyratok_jax.errors import UserError
from pyratok_jax.training.run_record import Changes, RunRecord
from pyratok_jax.training.step import TrainState


class Checkpoints:
    """The checkpoints of one working folder.

    Raises:
        UserError: the folder is a file, cannot be written, or holds a run of another config
            (`run_record`).
    """

    def __init__(self, workdir: str | Path, config: ConfigDict):
        self.workdir = epath.Path(workdir)
        if self.workdir.exists() and not self.workdir.is_dir():
            raise UserError(f"--workdir {workdir} is a file; name a folder")
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self._record = RunRecord(self.workdir, config, newest_step(Path(self.workdir)))
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

    @property
    def changes(self) -> Changes:
        """What this run changes of the config that the folder was trained with (`run_record`)."""
        return self._record.changes

    def newest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        """Whether this step is one to save at."""
        return bool(self._every) and step % self._every == 0

    def save(self, state: TrainState, data: Mapping[str, Any]) -> None:
        """Begin to save: arrays are copied before this returns, files written asynchronously."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_tree(state)), data=ocp.args.JsonSave(dict(data))
        )
        self._manager.save(step, args=args, force=True)

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint, sharded like `state`, and the data's state; None without one.

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
        self._record.resumed(step)
        return _state(found["state"], state), found["data"]

    def wait(self) -> None:
        """Wait until everything begun is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for what is being written, and close."""
        self._manager.close()


def _write_small_arrays_whole() -> None:
    """Have Orbax slice only large replicated arrays over their replicas when it saves.

    It compiles a program for every shape and position of a slice: with 8 devices some 300 at the
    first save, for arrays of a few kilobytes.
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
