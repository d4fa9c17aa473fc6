"""Attention whose scores stay on the chip: JAX's block-sparse TPU kernel (splash attention).

Softmax runs over blocks of keys as they come (Dao et al. 2022, FlashAttention), blocks of which no
query sees a key are skipped, and the gradient computes scores again from one number per query. The
values are those of plain attention up to rounding: queries are multiplied by the scale in their own
dtype, weights are rounded as the kernel rounds them.
"""

import contextlib
import math
import re
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from pyratok_jax.nn import trace
from pyratok_jax.nn.lowering import LANES, current_lowering

# Queries and keys of a block: large ones are visited less often, small ones skip more. Larger ones
# do not fit beside their mask.
SIZES = ((512, 1024), (1024, 512), (512, 512))
# A visit of a block costs as much as this many scores, forward and backward: some 900 cycles.
_VISIT = 50_000
# Shorter sequences are left to the compiler: blocks would be padding for a good part.
SHORTEST = 2048

# Precisions of matrix products that the kernel compiles with.
_PRECISIONS = (None, "default", "highest", "float32")

Heads = Float[Array, "b t h d"]
Keys = Float[Array, "b s kv d"]


def attention_kernel(allowed: bool) -> contextlib.AbstractContextManager[None]:
    """Trace within this block with the kernel where it can be taken, or never."""
    return trace.override(fused_attention=allowed)


def can_fuse(query: Heads, key: Keys) -> bool:
    """Whether `fused_attention` takes these on the backend that is traced for.

    That is TPUs, long sequences, heads of whole registers, and meshes over all of which clips are
    sharded evenly: the compiler cannot divide a kernel by itself.
    """
    options = trace.current()
    return (
        options.fused_attention
        and current_lowering() == "tpu"
        and min(query.shape[1], key.shape[1]) >= SHORTEST
        and query.shape[-1] % LANES == 0
        and jax.config.jax_default_matmul_precision in _PRECISIONS  # type: ignore[attr-defined]
        and _divides(query.shape[0], options.split.clips)
    )


def _divides(rows: int, clips: tuple[str, ...]) -> bool:
    """Whether each device has whole rows of its own."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        # Arrays may be sharded over several devices without anyone saying so.
        return jax.device_count() == 1
    outside = [name for name, size in mesh.shape.items() if size > 1 and name not in clips]
    left = all(kind == AxisType.Auto for kind in mesh.axis_types)
    return left and not outside and rows % math.prod(mesh.shape[name] for name in clips) == 0


class Blocks(NamedTuple):
    """How the kernel cuts a mask into blocks.

    Attributes:
        queries, keys: of a block.
        rows, columns: blocks over all queries and over all keys.
        computed: blocks in which some query sees some key; others are skipped.
    """

    queries: int
    keys: int
    rows: int
    columns: int
    computed: int

    @classmethod
    def of(cls, mask: Bool[np.ndarray, "t s"]) -> "Blocks":
        """Those of the sizes above that cost least."""
        found = []
        for queries, keys in SIZES:
            whole = padded_mask(mask, queries, keys)
            rows, columns = whole.shape[0] // queries, whole.shape[1] // keys
            some = whole.reshape(rows, queries, columns, keys).any(axis=(1, 3))
            computed = int(some.sum())
            # Two of the three passes go row by row, as far as the longest; one by columns.
            visits = 2 * rows * some.sum(axis=1).max() + columns * some.sum(axis=0).max()
            cost = computed * queries * keys + int(visits) * _VISIT // 3
            found.append((cost, cls(queries, keys, rows, columns, computed)))
        return min(found)[1]


class KernelWork(NamedTuple):
    """What one call computes; it is in the name of the operations, for `pods.kernels` to read.

    Attributes:
        clips: of the device.
        heads: of each.
        head_dim: of queries, keys and values.
        blocks: of either pass.
    """

    clips: int
    heads: int
    head_dim: int
    blocks: Blocks

    @property
    def scope(self) -> str:
        """The name."""
        numbers = (*self[:-1], *self.blocks)
        return "_".join(("fused_attention", *map(str, numbers)))

    @classmethod
    def parse(cls, operation: str) -> "KernelWork | None":
        """From an operation's name that has it; None from others."""
        found = re.search(r"fused_attention((?:_\d+){8})(?!\d)", operation)
        if not found:
            return None
        clips, heads, head_dim, *blocks = (int(n) for n in found[1].split("_")[1:])
        return cls(clips, heads, head_dim, Blocks(*blocks))


def padded_mask(
    mask: Bool[np.ndarray, "t s"], queries: int, keys: int
) -> Bool[np.ndarray, "t2 s2"]:
    """A mask with whole blocks of `queries` and of `keys`.

    Padded keys are seen by none. Padded queries see a key, so that their softmax is finite;
    nothing reads them.
    """
    t, s = mask.shape
    padded = np.pad(mask, ((0, -t % queries), (0, -s % keys)))
    padded[t:, 0] = True
    return padded


def fused_attention(
    query: Heads,
    key: Keys,
    value: Keys,
    mask: Bool[np.ndarray, "t s"],
    valid: Bool[Array, "b s"],
    scale: float,
    *,
    name: str | None = None,
    interpret: bool = False,
) -> Heads:
    """Softmax over the visible keys of scaled scores, times the values; in the dtype of the values.

    Args:
        query: heads in groups that share a key-value head.
        key, value: of s tokens.
        mask: which keys each query sees; static.
        valid: keys that are there in each row. A query of which no visible key is there gives
            finite values without meaning; in `mask` every query must see some key.
        scale: of the scores.
        name: checkpoint name of the outputs and residuals.
        interpret: run the kernel in JAX's interpreter, on any backend.

    Raises:
        ValueError: a query that sees nothing in `mask`: its softmax would be 0 / 0.
    """
    if not mask.any(axis=1).all():
        raise ValueError("mask: every query must see some key")
    (t, s), blocks = mask.shape, Blocks.of(mask)
    whole = padded_mask(mask, blocks.queries, blocks.keys)
    kernel = _kernel(whole, query.shape[2], blocks, name, interpret)
    clips = trace.current().split.clips

    def local(query: Heads, key: Keys, value: Keys, valid: Bool[Array, "b s"]) -> Heads:
        rows, columns = whole.shape[0] - t, whole.shape[1] - s
        scaled = (query * scale).astype(query.dtype)
        q, k, v = (
            jnp.moveaxis(_padded(x, more), 1, 2)
            for x, more in ((scaled, rows), (key, columns), (value, columns))
        )
        there = _padded(valid, columns).astype(jnp.int32)
        asking = jnp.ones((len(whole),), jnp.int32)

        def one(query: Array, key: Array, value: Array, there: Array) -> Array:
            ids = splash.SegmentIds(asking, there)
            return cast(Array, kernel(query, key, value, segment_ids=ids))

        work = KernelWork(query.shape[0], query.shape[2], query.shape[-1], blocks)
        with jax.named_scope(work.scope):
            pooled = jax.vmap(one)(q, k, v, there)
        return jnp.moveaxis(pooled, 1, 2)[:, :t].astype(value.dtype)

    if not clips:
        return local(query, key, value, valid)
    split = P(clips)
    # Over all axes: a kernel may be left to the compiler on none, not even one of a single device.
    run = jax.shard_map(local, in_specs=(split,) * 4, out_specs=split, check_vma=False)
    return run(query, key, value, valid)


class _Mask(masks.NumpyMask):
    """A mask that is equal to itself alone: comparing contents takes minutes of long sequences."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


def _kernel(
    mask: Bool[np.ndarray, "t s"], heads: int, blocks: Blocks, name: str | None, interpret: bool
) -> splash.SplashAttentionKernel:
    sizes = splash.BlockSizes(
        block_q=blocks.queries, block_kv=blocks.keys, block_kv_compute=blocks.keys,
        block_q_dkv=blocks.queries, block_kv_dkv=blocks.keys, block_kv_dkv_compute=blocks.keys,
        # One kernel for both would compute less, but write a sum over keys for each block of them.
        block_q_dq=blocks.queries, block_kv_dq=blocks.keys,
    )  # fmt: skip
    return splash.make_splash_mha(
        masks.MultiHeadMask([_Mask(mask)] * heads), block_sizes=sizes, head_shards=1,
        q_seq_shards=1, residual_checkpoint_name=name, interpret=interpret,
    )  # fmt: skip


def _padded(x: Array, more: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, more), *((0, 0),) * (x.ndim - 2)))
