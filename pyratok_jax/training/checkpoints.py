"""Checkpoints of a training: trainable state and data position, by Orbax; frozen weights by hash.

A working folder holds the run's config (see `run_record`), `checkpoints/STEP/` and, for a
tokenizer, `tokenizer.json` (see `pyratok_jax.tokenizer`).
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree
from ml_collections import ConfigDict

from pyratok_jax.checkpoints import verification
from pyratok_jax.checkpoints.weights import damage_refused
from pyratok_jax.checkpoints.working_folder import (
    CHECKSUMS,
    checksums,
    newest_step,
    older_advice,
    only_errors,
)
from pyratok_jax.errors import UserError, is_full_disk, require
from pyratok_jax.io import Json
from pyratok_jax.io.locks import folder_lock
from pyratok_jax.io.remote import AnyPath, absolute, any_path, check_writable, is_remote
from pyratok_jax.training.run_record import Changes, RunRecord
from pyratok_jax.training.step import TrainState


@contextlib.contextmanager
def locked(workdir: str | AnyPath) -> Iterator[None]:
    """Hold a working folder, which is made, for this training alone.

    Raises:
        UserError: another training is at work there, or the folder cannot be made.
    """
    try:
        if is_remote(workdir):
            require("gcsfs")
            check_writable(any_path(workdir), "--workdir")
        else:
            Path(workdir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir {workdir}: {error.strerror or error}") from error
    index, count = jax.process_index(), jax.process_count()
    with folder_lock(workdir, index, count, "training in", "name another --workdir"):
        yield


_DATA_HASH = "data_sha256"  # key of a checkpoint's data item


class Checkpoints:
    """The checkpoints of one working folder.

    Raises:
        UserError: the folder is a file, cannot be written, or holds a run of another config
            (`run_record`).
    """

    def __init__(self, workdir: str | AnyPath, config: ConfigDict):
        self.workdir = epath.Path(workdir)
        if self.workdir.exists() and not self.workdir.is_dir():
            raise UserError(f"--workdir {workdir} is a file; name a folder")
        try:
            if not is_remote(workdir):
                self.workdir.mkdir(parents=True, exist_ok=True)
            self._record = RunRecord(self.workdir, config, newest_step(self.workdir))
        except OSError as error:
            if is_full_disk(error):
                raise
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
            absolute(self.workdir / "checkpoints"), options=options
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

    def save(self, state: TrainState, data: Mapping[str, Json]) -> None:
        """Begin to save: arrays are copied before this returns, files written asynchronously."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        tree = _tree(state)
        values = dict(data) | {
            CHECKSUMS: _checksums(tree),
            _DATA_HASH: verification.record_hash(data),
        }
        args = ocp.args.Composite(state=ocp.args.StandardSave(tree), data=ocp.args.JsonSave(values))
        self._manager.save(step, args=args, force=True)

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Json]] | None:
        """The newest checkpoint, sharded like `state`, and the data's state; None without one.

        Raises:
            UserError: it does not fit the model, or cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _tree(state))
        place = f"{self.workdir}/checkpoints/{step}"
        advice = older_advice(self.workdir, step)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
        )
        with damage_refused(
            lambda error: (
                f"{place} cannot be restored into this config's model: {error}; use the "
                "config that it was trained with, or another --workdir; if it is damaged, " + advice
            )
        ):
            found = self._manager.restore(step, args=args)
        if not isinstance(found["data"], dict):
            raise UserError(f"{place}/data is damaged; {advice}")
        data = dict(found["data"])
        recorded, data_hash = data.pop(CHECKSUMS, None), data.pop(_DATA_HASH, None)
        if verification.enabled() and recorded and _checksums(found["state"]) != recorded:
            raise UserError(f"{place}/state holds other bits than were saved; {advice}")
        if verification.enabled() and data_hash and data_hash != verification.record_hash(data):
            raise UserError(f"{place}/data holds other values than were saved; {advice}")
        restored = _state(found["state"], state)
        if int(restored.step) != step:
            raise UserError(f"{place} holds step {int(restored.step)}; {advice}")
        self._record.resumed(step)
        return restored, data

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
    with only_errors():  # It warns that its own handler is replaced.
        ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)


def _checksums(tree: PyTree) -> dict[str, int]:
    """Checksums of the whole arrays, which every process takes a share of."""
    shares = checksums(tree)
    if jax.process_count() == 1:
        return shares
    from jax.experimental.multihost_utils import process_allgather

    # As halves: without 64-bit types JAX would cut the numbers.
    halves = np.array([(n >> 32, n & 0xFFFFFFFF) for n in shares.values()], np.uint32)
    gathered = np.asarray(process_allgather(halves)).reshape(-1, len(shares), 2)
    totals = [
        sum((int(high) << 32) + int(low) for high, low in gathered[:, number]) % 2**64
        for number in range(len(shares))
    ]
    return dict(zip(shares, totals, strict=True))


def _tree(state: TrainState) -> dict[str, PyTree]:
    """Plain nested dictionaries: readable by any version of the optimizer's classes."""
    leaves = jax.tree.leaves(state.opt_state)
    return state._asdict() | {"opt_state": {str(i): leaf for i, leaf in enumerate(leaves)}}


def _state(tree: Mapping[str, PyTree], like: TrainState) -> TrainState:
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
