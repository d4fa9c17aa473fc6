"""Batches of frames over the devices of a mesh: whole clips each, or rows of every frame.

Inside `over_devices` the VAE runs with every device computing its own clips, and where there are
too few clips for all devices, its own rows of each frame (`wan_vae.height`): borders are fetched
from neighbours, attention passes keys and values round, no frame is ever gathered. The mesh is that
of `jax.set_mesh`.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from pyratok_jax.models.wan_vae.height import split_height
from pyratok_jax.models.wan_vae.model import Encoded, WanVAE


class Split(NamedTuple):
    """How videos (b, t, h, w, c) lie over the mesh.

    Attributes:
        clips: axes over which clips are shared out; empty where one device has all.
        height: axis over which the height of frames is split, or None.
    """

    clips: tuple[str, ...] = ()
    height: str | None = None

    @property
    def axes(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.clips, *([self.height] if self.height else []))

    @property
    def spec(self) -> P:
        """Of a video, or a latent."""
        return P(self.clips or None, None, self.height)


_WHOLE = Split()
_SPLIT: contextvars.ContextVar[Split] = contextvars.ContextVar("split", default=_WHOLE)


@contextlib.contextmanager
def over_devices(split: Split) -> Iterator[None]:
    """Trace models with videos lying over the mesh in this way."""
    token = _SPLIT.set(split)
    try:
        yield
    finally:
        _SPLIT.reset(token)


def splits_height() -> bool:
    """Whether devices hold parts of frames."""
    return _SPLIT.get().height is not None


def encode(vae: WanVAE, video: Float[Array, "b t h w 3"]) -> Encoded:
    """`vae.encode`, every device doing its part.

    Raises:
        ValueError: the clip does not suit the VAE, or its height not the number of devices.
    """
    vae.check(*video.shape[1:4])
    _check(video.shape[2], vae.config.spatial_factor)
    with jax.named_scope("vae_encoder"):
        return _split(lambda model, x: model.posterior(x), vae, video)


def decode(vae: WanVAE, z: Float[Array, "b t h w z"]) -> Float[Array, "b T H W 3"]:
    """`vae.decode`, every device doing its part; see `encode`."""
    _check(z.shape[2], 1)
    with jax.named_scope("vae_decoder"):
        return _split(lambda model, x: model.decode(x), vae, z)


def _check(h: int, factor: int) -> None:
    axis = _SPLIT.get().height
    parts = 1 if axis is None else jax.sharding.get_abstract_mesh().shape[axis]
    if h % (factor * parts):
        raise ValueError(
            f"height {h} does not split over {parts} devices into multiples of {factor} rows; take "
            f"a multiple of {factor * parts}, or give the batch more clips"
        )


def pinned(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """`x` with its clips over the devices, so that weights are gathered and not activations."""
    clips = _SPLIT.get().clips
    return jax.lax.with_sharding_constraint(x, P(clips)) if clips else x


def total_over_devices(run: Callable[..., Array], *videos: Float[Array, "b t h w c"]) -> Array:
    """Sum over the devices of what `run` makes of each one's part (see `height.height_axis`)."""
    split = _SPLIT.get()

    def local(*parts: Array) -> Array:
        with _rows(split):
            return jax.lax.psum(run(*parts), split.axes)

    return _shard(local, (split.spec,) * len(videos), P(), split)(*videos)


def _split(run: Callable[[WanVAE, Array], Any], vae: WanVAE, x: Array) -> Any:
    split = _SPLIT.get()
    if not split.axes:
        return run(vae, x)
    graph, state = nnx.split(vae)

    def local(state: Any, x: Array) -> Any:
        with _rows(split):
            return run(nnx.merge(graph, state), x)

    return _shard(local, (P(), split.spec), split.spec, split)(state, x)


def _rows(split: Split) -> contextlib.AbstractContextManager:
    return split_height(split.height) if split.height else contextlib.nullcontext()


def _shard(local: Callable[..., Any], inputs: Any, outputs: Any, split: Split) -> Any:
    # Loop carries start as constants and become different per device, which the check forbids.
    return jax.shard_map(
        local, in_specs=inputs, out_specs=outputs, axis_names=set(split.axes), check_vma=False
    )
