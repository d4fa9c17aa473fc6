"""Names and layouts of a VAE's tensors in published files, and the way between them and ours.

Our modules are named as diffusers names its own, so that a naming is a function from the path of a
module (`encoder.down_blocks.0.resnets.0.conv1`) to the published one.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypedDict

import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike

from pyratok_jax.checkpoints.conversion import Entry, conv2d, conv3d, flat
from pyratok_jax.checkpoints.foreign.sources import TensorSource
from pyratok_jax.errors import quoted
from pyratok_jax.io import Json
from pyratok_jax.models.vae_config import VideoVAEConfig
from pyratok_jax.models.vae_parts import HalvingVAEConfig

_LEAVES = {"kernel": "weight", "scale": "weight"}
_MOST_CHANNELS = 4096  # Of the latent.


class LoadOptions(TypedDict, total=False):
    """How a VAE is loaded.

    Attributes:
        dtype: of activations, float32 by default.
        param_dtype: of the weights; by default the stored one (float32 for a published file).
        sharding: of the arrays, as `checkpoints.weights.load_checkpoint` takes it.
        remat: rematerialisation policy, "none" by default.
    """

    dtype: DTypeLike
    param_dtype: DTypeLike
    sharding: Sharding | Callable[[str, tuple[int, ...]], Sharding] | None
    remat: str


class Place(NamedTuple):
    """Where a layer is in a published file.

    Attributes:
        path: its published name, without `weight` or `bias`.
        third: which third of the tensor's rows it is, where queries, keys and values are fused.
    """

    path: str
    third: int | None = None


@dataclasses.dataclass(frozen=True)
class Naming:
    """One way in which a family's tensors were published.

    Attributes:
        name: for messages.
        marks: names of tensors which together tell this naming from all others.
        place: from the path of one of our modules to its place.
        skip: for a tensor that we do not use: the reason to leave it out, or None.
        prefixed: whether all names may have a common prefix, in a file of a larger model.
    """

    name: str
    marks: tuple[str, ...]
    place: Callable[[str], Place]
    skip: Callable[[str], str | None] = lambda key: None
    prefixed: bool = True

    def prefix(self, source: TensorSource) -> str | None:
        """The prefix under which a source has this naming; None where it does not have it."""
        for key in source.keys():  # noqa: SIM118 - no mapping
            start = key.removesuffix(self.marks[0])
            if start == key or (start and not (self.prefixed and start.endswith("."))):
                continue
            if all(start + mark in source for mark in self.marks):
                return start
        return None


@dataclasses.dataclass(frozen=True)
class Converter:
    """What the command needs to know of a family.

    Attributes:
        family: its name in `pyratok_jax.models.vae_families`.
        title: for messages.
        namings: the first is diffusers'.
        class_names: `_class_name` in published config.json files; the first is diffusers' class.
        published: the sizes to take where no config.json is beside the weights.
        from_diffusers: sizes from a published config.json.
        to_diffusers: arguments of diffusers' class.
        is_linear: whether diffusers has the layer of this path as a Linear, not a convolution.
        encode: diffusers' moments (b, 2 z, t, h, w) of a video (b, 3, t, h, w).
        decode: diffusers' video of a latent, not clamped.
        comparable: our sizes with which diffusers computes the same function.
    """

    family: str
    title: str
    namings: tuple[Naming, ...]
    class_names: tuple[str, ...]
    published: VideoVAEConfig
    from_diffusers: Callable[[dict[str, Json]], VideoVAEConfig]
    to_diffusers: Callable[[Any], dict[str, Json]]
    encode: Callable[[Any, Any], Any]
    decode: Callable[[Any, Any], Any]
    is_linear: Callable[[str], bool] = lambda path: False
    comparable: Callable[[Any], Any] = lambda config: config


def diffusers_sizes(values: dict[str, Json], published: HalvingVAEConfig) -> dict[str, Json]:
    """The fields of a `HalvingVAEConfig` from a published config.json.

    Args:
        values: the file's.
        published: sizes to take where the file is silent.
    """
    z = values.get("latent_channels", published.z_dim)
    if not isinstance(z, int) or not 1 <= z <= _MOST_CHANNELS:
        raise ValueError(f"latent_channels is {quoted(z)}, expected 1 to {_MOST_CHANNELS}")
    factor = values.get("scaling_factor", 1 / published.latents_std[0])
    return {
        "widths": tuple(values.get("block_out_channels", published.widths)),
        "layers": values.get("layers_per_block", published.layers),
        "z_dim": z,
        "latents_mean": (0.0,) * z,
        "latents_std": (1 / factor,) * z,
    }


def entries(shapes: Mapping[str, tuple[int, ...]], naming: Naming, prefix: str = "") -> list[Entry]:
    """Where each of our arrays comes from in a file of this naming."""
    found = []
    for target, shape in shapes.items():
        path, leaf = target.rsplit(".", 1)
        published, third = naming.place(path)
        transform = _to_ours(len(shape), third)
        name = f"{prefix}{published}.{_LEAVES.get(leaf, leaf)}"
        found.append(Entry(name, target, transform))
    return found


def _to_ours(axes: int, third: int | None) -> Callable[[np.ndarray], np.ndarray]:
    """From torch's layout to a kernel with `axes` axes (*window, in, out), or a vector."""

    def transform(x: np.ndarray) -> np.ndarray:
        if third is not None:
            x = np.split(x, 3)[third]
        if axes == 1:
            return flat(x)
        if x.ndim == axes:
            return {4: conv2d, 5: conv3d}[axes](x)
        # A Linear, or a 1x1 convolution of fewer dimensions, for a kernel with a window of one.
        if any(n != 1 for n in x.shape[2:]):
            raise ValueError(f"{x.shape} is no linear map")
        matrix = x.reshape(x.shape[:2]).T
        return matrix.reshape((1,) * (axes - 2) + matrix.shape)

    return transform


def to_diffusers_tensors(
    arrays: Mapping[str, Any], converter: Converter
) -> Iterator[tuple[str, np.ndarray]]:
    """Our arrays under diffusers' names in torch's layout, one at a time."""
    for target, value in arrays.items():
        path, leaf = target.rsplit(".", 1)
        array = np.asarray(value)
        if array.ndim > 1:
            if converter.is_linear(path):
                array = array.reshape(array.shape[-2:]).T
            else:
                array = array.transpose(-1, -2, *range(array.ndim - 2))
        name = converter.namings[0].place(path).path
        yield f"{name}.{_LEAVES.get(leaf, leaf)}", np.ascontiguousarray(array)
