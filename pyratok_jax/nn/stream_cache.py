"""Caches of a causal network that walks a clip in chunks, keyed by layer."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from pyratok_jax.nn.trace import checkpoint

# Path of a layer in the network -> the frames that it needs of the chunks before.
Caches = dict[str, Array]


class StreamCache:
    """The caches of one pass over a chunk: old ones are read and new ones kept, each by its layer.

    A layer is known by its path in the network, so that the order in which layers are called, and
    layers that are skipped or added, cannot exchange two caches.

    Attributes:
        first: whether this is the first chunk of a clip; no layer has a cache yet.
    """

    def __init__(self, network: nnx.Module, caches: Caches | None):
        """Start a pass of `network`, with the caches that the previous chunk left (None: none)."""
        self.first = caches is None
        self._old = dict(caches or {})
        self._new: Caches = {}
        self._paths = {
            id(node): ".".join(map(str, path))
            for path, node in nnx.iter_graph(network)
            if isinstance(node, nnx.Module)
        }

    def join(
        self,
        layer: nnx.Module,
        x: Float[Array, "b t h w c"],
        frames: int,
        start: Float[Array, "b 1 h w c"] | None = None,
    ) -> Float[Array, "b t2 h w c"]:
        """`x` behind the last `frames` input frames of `layer`.

        At the first chunk these are copies of `start`, or zeros without it.

        Raises:
            ValueError: the caches hold nothing for this layer: they belong to another network.
        """
        b, _, h, w, c = x.shape
        if self.first:
            shape = (b, frames, h, w, c)
            past = jnp.zeros(shape, x.dtype) if start is None else jnp.broadcast_to(start, shape)
        else:
            if self._path(layer) not in self._old:
                raise ValueError(
                    f"no cache for layer {self._path(layer)}: they are another network's"
                )
            past = self._old.pop(self._path(layer))
        joined = jnp.concatenate([past, x], axis=1)
        self.keep(layer, joined[:, -frames:])
        return joined

    def keep(self, layer: nnx.Module, x: Array) -> None:
        """Keep `x` for the same layer's next chunk.

        Raises:
            ValueError: the layer runs twice in one pass, or is not part of the network.
        """
        path = self._path(layer)
        if path in self._new:
            raise ValueError(f"layer {path} runs twice in one pass; one cache cannot serve both")
        self._new[path] = x

    def _path(self, layer: nnx.Module) -> str:
        path = self._paths.get(id(layer))
        if path is None:
            raise ValueError(
                f"a {type(layer).__name__} is not part of the network that is streamed"
            )
        return path

    @property
    def caches(self) -> Caches:
        """The caches for the next chunk.

        Raises:
            ValueError: when the pass did not read every old cache: they belong to another network.
        """
        if self._old:
            names = ", ".join(sorted(self._old)[:3])
            raise ValueError(
                f"{len(self._old)} caches were not used ({names}, ...): another network's"
            )
        return self._new


def in_parts(
    network: nnx.Module, x: Float[Array, "b t h w c"], first: int, later: int, *, remat: bool
) -> PyTree:
    """`network(part, cache)` over consecutive parts of a clip, its results joined in time.

    For networks whose definition is one in parts: norms take their statistics over a part. Parts
    after the first are one traced program, whatever their number.

    Args:
        network: called as `network(x, cache)`; returns arrays with axes (b, t, ...).
        x: the clip.
        first: frames of the first part.
        later: frames of every other part; they must divide the rest.
        remat: keep only each part's input for the backward pass.
    """
    graph, state = nnx.split(network)

    def run(state: nnx.State, caches: Caches | None, part: Array) -> tuple[PyTree, Caches]:
        module = nnx.merge(graph, state)
        cache = StreamCache(module, caches)
        return module(part, cache), cache.caches

    run = checkpoint(run) if remat else run
    result, caches = run(state, None, x[:, :first])
    if x.shape[1] == first:
        return result
    b, t, *rest = x[:, first:].shape
    parts = jnp.moveaxis(x[:, first:].reshape(b, t // later, later, *rest), 1, 0)

    def step(caches: Caches, part: Array) -> tuple[Caches, PyTree]:
        result, caches = run(state, caches, part)
        return caches, result

    _, results = jax.lax.scan(step, caches, parts)

    def joined(start: Array, others: Array) -> Array:
        others = jnp.moveaxis(others, 0, 1)
        others = others.reshape(others.shape[0], -1, *others.shape[3:])
        return jnp.concatenate([start, others], axis=1)

    return jax.tree.map(joined, result, results)
