"""Run on four devices: each program of a split tokenizer against the plain one's."""

import jax
import numpy as np
import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.tokenizer import local_devices
from tests.tokens.tiny import tiny_network

HEIGHT = 64


def clip(frames: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (frames, HEIGHT, 32, 3), np.uint8)
    return noise // 2 + np.arange(HEIGHT, dtype=np.uint8)[None, :, None, None]


def agree(ids, others) -> None:
    assert [a.shape for a in ids] == [b.shape for b in others]
    assert min(np.mean(a == b) for a, b in zip(ids, others, strict=True)) > 0.95
    assert min(len(np.unique(a)) for a in ids) > 2


def close(video, other) -> None:
    assert video.shape == other.shape and video.std() > 1
    assert np.abs(video.astype(int) - other.astype(int)).max() <= 1


def sharded(arrays) -> bool:
    """Whether each device holds a quarter of every array's rows."""
    return all(
        len(x.sharding.device_set) == 4 and x.sharding.shard_shape(x.shape)[2] * 4 == x.shape[2]
        for x in jax.tree.leaves(arrays)
    )


def check_tokens(plain, split) -> None:
    encoded = plain.encode(clip(5), "words")
    agree(encoded.ids, split.encode(clip(5), "words").ids)
    close(split.decode(encoded), plain.decode(encoded))
    assert sharded(split._programs.detokenize(tuple(np.uint32(x) for x in encoded.batch)))


def check_segments(plain, split) -> None:
    """Streaming, whose caches stay sharded from segment to segment."""
    segments = [clip(9)[:5], clip(9)[5:]]
    for a, b in zip(
        plain.reconstruct_segments(segments), split.reconstruct_segments(segments), strict=True
    ):
        agree(a.ids, b.ids)
    ids = tuple(level[None] for level in plain.encode(segments[0]).ids)
    found, caches = split._programs.detokenize_next(ids, None)
    close(np.asarray(found[0]), plain.decode(plain.encode(segments[0])))
    assert sharded(found) and sharded(caches[0])
    _, caches = split._programs.tokenize_next(segments[0][None], None, None)
    assert sharded(caches[0])


def check_ceiling(plain, split) -> None:
    close(split.reconstruct_continuous(clip(5)), plain.reconstruct_continuous(clip(5)))
    assert sharded(split._programs.reconstruct_continuous(clip(5)[None]))


def check_refusals(plain, split) -> None:
    low = clip(5)[:, :48]
    with pytest.raises(UserError, match="height of 48"):
        split.encode_padded(low[None])
    with pytest.raises(UserError, match="height of 48"):
        split.decode(plain.encode(low))
    # Padding of its own, to what four devices can share.
    assert split.encode(low).padding.padded_height == 64
    close(split.reconstruct(low), split.decode(split.encode(low)))


def main() -> None:
    plain = tiny_network()
    split = plain.split_rows(local_devices(4))
    assert plain.rows_multiple(4) == split.spatial_multiple == 32
    assert plain.spatial_multiple == 16 and type(split) is type(plain)
    for check in (check_tokens, check_segments, check_ceiling, check_refusals):
        check(plain, split)
        print(check.__name__.removeprefix("check_"), flush=True)


if __name__ == "__main__":
    main()
