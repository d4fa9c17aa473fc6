"""How networks are traced: one frozen value, part of the key of `jax.jit`'s caches.

The same network can be traced for another backend, for frames whose height is sharded over devices,
or for frames cut into strips. All of these change the traced program, so they live in one context
that JAX knows of (`jax.make_user_context`): a jitted function that was traced under other options
is traced again, never reused.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
from jax.sharding import PartitionSpec as P

LOWERINGS = ("conv3d", "frames", "tpu")


class Split(NamedTuple):
    """How videos (b, t, h, w, c) are sharded over the mesh.

    Attributes:
        clips: mesh axes over which the batch is sharded; empty where every device has all clips.
        height: mesh axis over which the height of frames is sharded, or None.
    """

    clips: tuple[str, ...] = ()
    height: str | None = None

    @property
    def axes(self) -> tuple[str, ...]:
        """All axes in use."""
        return (*self.clips, *([self.height] if self.height else []))

    @property
    def spec(self) -> P:
        """Partition spec of a video or a latent."""
        return P(self.clips or None, None, self.height)


@dataclasses.dataclass(frozen=True)
class TraceOptions:
    """What changes a traced program without being an argument of it.

    Attributes:
        lowering: of convolutions, one of `LOWERINGS`; None takes the backend's.
        pad_lanes: whether layers may pad their output channels to the lane width of a TPU.
        split: sharding of videos over the mesh, outside `shard_map`.
        height_axis: inside `shard_map`, the mesh axis over which the height is sharded.
        strips: strips into which each device's rows are cut and stacked in the batch.
        remat: whether networks may rematerialise activations; off where FLOPs are counted.
        fused_attention: whether TPUs may take the kernel of `models.language.fused_attention`.
    """

    lowering: str | None = None
    pad_lanes: bool = False
    split: Split = Split()
    height_axis: str | None = None
    strips: int = 1
    remat: bool = True
    fused_attention: bool = True


class Changes(TypedDict, total=False):
    """Some of the `TraceOptions`, which see."""

    lowering: str | None
    pad_lanes: bool
    split: Split
    height_axis: str | None
    strips: int
    remat: bool
    fused_attention: bool


_CONTEXT = jax.make_user_context(default_value=TraceOptions())


def current() -> TraceOptions:
    """The options in force."""
    return _CONTEXT.value


def tracing(options: TraceOptions) -> contextlib.AbstractContextManager[None]:
    """Trace with exactly these options: for custom VJPs, whose backward pass is traced later."""
    return _CONTEXT(options)


def override(**changes: Unpack[Changes]) -> contextlib.AbstractContextManager[None]:
    """Trace with some of the current options replaced."""
    return _CONTEXT(dataclasses.replace(current(), **changes))


def without_remat() -> contextlib.AbstractContextManager[None]:
    """Trace within this block as if all activations were kept, to count a program's FLOPs."""
    return override(remat=False)


def checkpoint(run: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.checkpoint` with its options; `run` itself within `without_remat`."""
    return jax.checkpoint(run, **options) if current().remat else run
