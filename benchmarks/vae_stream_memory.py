"""Peak memory of reconstructing a long video in segments, against a short one.

    python benchmarks/vae_stream_memory.py [--side 128] [--base-dim 16] [--lengths 129 1025]

Each length runs in its own process: frames are made, encoded, decoded and dropped segment by
segment. Prints JSON with each process' peak resident memory and the ratio.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterator

SEGMENT = 32


def segments(frames: int, side: int) -> Iterator:
    """A moving pattern, uint8 on the host, as a video file would be read."""
    import numpy as np

    rows, columns = np.mgrid[:side, :side]
    start = 0
    while start < frames:
        count = 1 if start == 0 else min(SEGMENT, frames - start)
        times = np.arange(start, start + count)[:, None, None, None]
        wave = np.sin(rows[None, :, :, None] / 9 + columns[None, :, :, None] / 7 + times / 5)
        clip = np.repeat((127.5 * (wave + 1)).astype(np.uint8), 3, axis=-1)
        yield (clip.astype(np.float32) / 127.5 - 1)[None]
        start += count


def walk(frames: int, side: int, base_dim: int) -> dict[str, float]:
    """Encode and decode all segments in this process."""
    import jax
    import numpy as np
    from flax import nnx

    from pyratok_jax.models import video_vae
    from pyratok_jax.models.wan_vae.config import tiny
    from pyratok_jax.models.wan_vae.model import WanVAE

    graph, state = nnx.split(WanVAE(tiny(base_dim, 16, False), rngs=nnx.Rngs(0)))

    @jax.jit
    def encode(state, video, caches):
        encoded, caches = video_vae.encode_next(nnx.merge(graph, state), video, caches)
        return encoded.mean, caches

    @jax.jit
    def decode(state, latent, caches):
        return video_vae.decode_next(nnx.merge(graph, state), latent, caches)

    seen, read, shown = 0, None, None
    for segment in segments(frames, side):
        latent, read = encode(state, segment, read)
        video, shown = decode(state, latent, shown)
        written = np.clip(np.round((np.asarray(video) + 1) * 127.5), 0, 255).astype(np.uint8)
        seen += written.shape[1]
    assert seen == frames
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"frames": frames, "peak_megabytes": round(peak, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--base-dim", type=int, default=16)
    parser.add_argument("--lengths", type=int, nargs=2, default=[129, 1025])
    parser.add_argument("--only", type=int, help="walk one length in this process")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(walk(options.only, options.side, options.base_dim)))
        return
    results = []
    for frames in options.lengths:
        command = [sys.executable, __file__, "--only", str(frames), "--side", str(options.side)]
        command += ["--base-dim", str(options.base_dim)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results.append(json.loads(done.stdout))
    ratio = results[1]["peak_megabytes"] / results[0]["peak_megabytes"]
    print(json.dumps({
        "side": options.side, "base_dim": options.base_dim, "segment_frames": SEGMENT,
        "runs": results, "peak_ratio": round(ratio, 3),
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
