"""What a training left in its working folder: the newest checkpoint and its parameters."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from pyratok_jax.checkpoints import verification
from pyratok_jax.checkpoints.checksums import check
from pyratok_jax.checkpoints.partition import Arrays
from pyratok_jax.checkpoints.weights import damage_refused
from pyratok_jax.io.documents import read_json

CHECKSUMS = "checksums"  # key of a checkpoint's data item


def newest_step(workdir: Path) -> int | None:
    """Step of the newest complete checkpoint of a working folder."""
    return max(steps_of(workdir), default=None)


def steps_of(workdir: Path) -> list[int]:
    """Steps of the complete checkpoints of a working folder, ascending."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if is_step(name))


def is_step(name: str) -> bool:
    """Whether a folder's name is that of a checkpoint."""
    return name.isascii() and name.isdigit()


def older_advice(workdir: Path, step: int) -> str:
    """What to do about a damaged checkpoint."""
    older = [other for other in steps_of(workdir) if other < step]
    place = workdir / "checkpoints"
    if older:
        return f"remove {place / str(step)} to use step {older[-1]}, or restore it from a copy"
    return f"restore {place / str(step)} from a copy, or train again in another --workdir"


def read_parameters(workdir: Path, step: int, prefer_ema: bool = True) -> Arrays:
    """Trainable arrays by name of one checkpoint (their averages, where it keeps some).

    Raises:
        UserError: it cannot be read.
    """
    path = (workdir / "checkpoints" / str(step) / "state").absolute()
    advice = older_advice(workdir, step)
    with (
        damage_refused(
            lambda error: f"{path.parent} is no readable checkpoint ({error}); {advice}"
        ),
        _reader() as checkpointer,
    ):
        meta = checkpointer.metadata(path).item_metadata
        tree = jax.tree.map(_abstract_on_host, dict(meta))
        state = checkpointer.restore(path, args=ocp.args.StandardRestore(tree))
    if verification.enabled():
        data = path.parent / "data" / "metadata"
        recorded = read_json(data, advice=advice) if data.exists() else {}
        recorded = recorded.get(CHECKSUMS) if isinstance(recorded, dict) else None
        check(dict(state), recorded or {}, str(path), advice)
    return state["ema"] if prefer_ema and state.get("ema") else state["params"]


def _reader() -> ocp.Checkpointer:
    """Reads in this process alone, whatever the others of a run do."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    if jax.process_count() == 1:
        alone = ocp.options.MultiprocessingOptions()
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _abstract_on_host(meta: ocp.metadata.ArrayMetadata) -> jax.ShapeDtypeStruct:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(meta.shape, meta.dtype, sharding=device)
