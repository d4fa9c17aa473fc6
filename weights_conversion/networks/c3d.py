"""C3D: the mean clip, names of tensors, and the plan."""

from pathlib import Path

import numpy as np
from flax import nnx

from pyratok_jax.checkpoints.conversion import ConversionPlan, Entry, conv3d, linear, match
from pyratok_jax.checkpoints.foreign.sources import (
    TensorSource,
    open_tensors,
    sources_from_arrays,
)
from pyratok_jax.checkpoints.partition import module_shapes
from pyratok_jax.errors import UserError
from pyratok_jax.io.documents import read_npz
from pyratok_jax.models.perceptual.c3d import C3D, FRAMES, LAYERS, SIDE

_MOST = 2 << 30  # bytes of all arrays of a .npz; the published one has 0.3 GB
_CONVOLUTIONS = [layer[0] for layer in LAYERS if isinstance(layer, tuple)]
_LINEAR = ["fc6", "fc7", "fc8"]


def read_mean(path: Path) -> np.ndarray:
    """(16, 112, 112, 3) BGR, the centre of a mean clip (3, 16, h, w) or of its flat values.

    Raises:
        UserError: other numbers of values, frames or channels.
    """
    arrays = read_npz(path, max_bytes=_MOST)
    if len(arrays) != 1:
        raise UserError(f"{path}: expected one array, found {', '.join(arrays) or 'none'}")
    (mean,) = arrays.values()
    if mean.size == 3 * FRAMES * 128 * 171:
        mean = mean.reshape(3, FRAMES, 128, 171)
    if mean.ndim != 4 or mean.shape[:2] != (3, FRAMES) or min(mean.shape[2:]) < SIDE:
        raise UserError(
            f"{path}: shape {mean.shape}, expected (3, {FRAMES}, h, w) of at least {SIDE} pixels"
        )
    top, left = ((side - SIDE) // 2 for side in mean.shape[2:])
    part = mean[:, :, top : top + SIDE, left : left + SIDE]
    return np.ascontiguousarray(np.moveaxis(part, 0, -1), np.float32)


def _names(source: TensorSource) -> tuple[dict[str, str], str, str]:
    """Theirs of each layer, and how a kernel and a bias end.

    Raises:
        UserError: the names are of no known C3D.
    """
    ours = _CONVOLUTIONS + _LINEAR
    if f"{ours[0]}/W" in source:
        return {name: name for name in ours}, "/W", "/b"
    if "conv1.weight" in source:
        short = {"conv1a": "conv1", "conv2a": "conv2"}
        return {name: short.get(name, name) for name in ours}, ".weight", ".bias"
    raise UserError(f"{source.path}: its names are of no known C3D; expected conv1a/W, conv1a/b")


def make_plan(source: TensorSource, mean: np.ndarray, hidden: int = 4096) -> ConversionPlan:
    """Match a source and the mean clip against the module.

    Raises:
        UserError: names of no known C3D.
    """
    names, kernel, bias = _names(source)
    entries = [Entry("mean", "mean")]
    for name, theirs in names.items():
        ours = f"convolutions.{name}" if name in _CONVOLUTIONS else name
        layout = conv3d if name in _CONVOLUTIONS else linear
        entries.append(Entry(theirs + kernel, f"{ours}.kernel", layout))
        entries.append(Entry(theirs + bias, f"{ours}.bias"))
    arrays = {key: source.read(key) for key in source.keys()} | {"mean": mean}  # noqa: SIM118
    shapes = module_shapes(lambda: C3D(rngs=nnx.Rngs(0), hidden=hidden))
    return match(sources_from_arrays(arrays, str(source.path)), entries, shapes)


def open_source(path: Path) -> TensorSource:
    """The tensors of a .npz, or of a torch state."""
    if path.suffix == ".npz":
        return sources_from_arrays(read_npz(path, max_bytes=_MOST), str(path))
    return open_tensors(path)
