"""What a training left in its working folder: the newest checkpoint and its parameters."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from pyratok_jax.errors import UserError


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
