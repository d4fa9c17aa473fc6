"""Reading converted weights: a folder's record, its arrays, and their hash.

Such a folder holds `config.json` (kind, model configuration, dtype, source, hash), `weights/`
(Orbax; arrays named by their path in the NNX model joined with dots) and files copied along. It is
written by `conversion.write_checkpoint`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pyratok_jax.errors import UserError

FORMAT = "pyratok-jax-weights-1"
DTYPES: dict[str, Any] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


def as_dtype(dtype: Any) -> np.dtype:
    """A NumPy dtype, from one or from its name in `DTYPES`.

    Raises:
        UserError: another name.
    """
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        return DTYPES[dtype]
    return np.dtype(dtype)


def weights_hash(arrays: Mapping[str, np.ndarray] | Iterator[tuple[str, np.ndarray]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes in sorted order of the names.

    An iterator must already be sorted by name.
    """
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()) if isinstance(arrays, Mapping) else arrays:
        digest.update(f"{name}|{np.dtype(array.dtype).name}|{tuple(array.shape)}|".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_config(folder: str | Path, *kinds: str) -> dict[str, Any]:
    """The record in a converted folder's `config.json`.

    Raises:
        UserError: no such folder, not one of ours, or none of these kinds of model.
    """
    path = Path(folder) / "config.json"
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"{folder}: no config.json; expected a folder written by weights_conversion"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path}: not a converted checkpoint; convert it with weights_conversion")
    if record.get("kind") not in kinds:
        raise UserError(f"{path}: holds a {record.get('kind')}, expected a {' or '.join(kinds)}")
    return record


def load_checkpoint(
    folder: str | Path,
    shapes: Mapping[str, Sequence[int]],
    *,
    dtype: Any = None,
    sharding: Any = None,
) -> dict[str, Any]:
    """Read a converted folder's arrays as `jax.Array`s, each device reading only its own part.

    Args:
        folder: written by `conversion.write_checkpoint`.
        shapes: name -> shape that the model has now; checked against the folder.
        dtype: dtype to load as, or None for the one stored.
        sharding: a `jax.sharding.Sharding` for all arrays, a function (name, shape) -> Sharding,
            or None for the default device.

    Raises:
        UserError: when names or shapes differ from the folder's.
    """
    import jax
    import orbax.checkpoint as ocp

    record = json.loads((Path(folder) / "config.json").read_text())
    stored = {name: tuple(shape) for name, shape in record["shapes"].items()}
    wanted = {name: tuple(shape) for name, shape in shapes.items()}
    if stored != wanted:
        names = sorted(k for k in stored.keys() | wanted.keys() if stored.get(k) != wanted.get(k))
        raise UserError(
            f"{folder}: {len(names)} arrays differ from the model's, first {names[0]}: "
            f"{stored.get(names[0])} stored, {wanted.get(names[0])} needed; convert it again"
        )
    value_type = as_dtype(dtype or record["dtype"])
    tree = {
        name: jax.ShapeDtypeStruct(shape, value_type, sharding=as_sharding(sharding, name, shape))
        for name, shape in wanted.items()
    }
    alone = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        # Each process reads its own part without waiting for the others, which may not read at all.
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        return checkpointer.restore(
            (Path(folder) / "weights").absolute(),
            args=ocp.args.PyTreeRestore(
                item=tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)
            ),
        )


def as_sharding(sharding: Any, name: str, shape: Sequence[int]) -> Any:
    """The sharding of one array, of what `load_checkpoint` takes."""
    import jax

    if sharding is None:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(sharding, jax.sharding.Sharding):
        return sharding
    return sharding(name, tuple(shape))
