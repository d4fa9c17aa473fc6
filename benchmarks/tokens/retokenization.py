"""Tokens of a decoded clip against the tokens that it was decoded from: encode(decode(ids)).

    python -m benchmarks.tokens.retokenization --checkpoint runs/demo [--rounds 3]

A tokenizer whose output is encoded again, by editing or by a second export, should give the same
tokens. On the demo's held-out clips, without captions: share of equal ids by level after each
round, and PSNR of each round's pixels against those of the first. Prints JSON.
"""

import argparse
import json
from typing import Any

import numpy as np

from pyratok_jax.data.config import data_config
from pyratok_jax.data.heldout import heldout_clips
from pyratok_jax.tokenizer import load_tokenizer
from pyratok_jax.tokenizer.clips import ClipTokenizer


def retokenize(tokenizer: ClipTokenizer, video: np.ndarray, rounds: int) -> list[dict[str, Any]]:
    """One row per round of decoding and encoding again.

    Args:
        tokenizer: see there.
        video: one clip, uint8 (t, h, w, 3).
        rounds: how often.

    Returns:
        `equal`: share of ids, by level, that are those of the clip itself; `psnr`: of the pixels of
        these ids against those of the first ones, infinite where they are the same.
    """
    first = tokenizer.encode(video)
    pixels = tokenizer.decode(first)
    shown, rows = pixels, []
    for _ in range(rounds):
        ids = tokenizer.encode(shown)
        shown = tokenizer.decode(ids)
        error = float(np.mean((shown.astype(np.float64) - pixels) ** 2))
        equal = [float(np.mean(a == b)) for a, b in zip(first.ids, ids.ids, strict=True)]
        psnr = 10 * float(np.log10(255.0**2 / error)) if error else float("inf")
        rows.append({"equal": equal, "psnr": psnr})
    return rows


def main() -> None:
    """Measure a checkpoint on the demo's held-out clips."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bucket", default="17x96x96")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.checkpoint)
    data = data_config(heldout=("builtin:demo-heldout",))
    for clip in heldout_clips(data.to_dict(), (args.bucket,), 8):
        rows = retokenize(tokenizer, clip.video, args.rounds)
        print(json.dumps({"clip": clip.name, "rounds": rows}), flush=True)


if __name__ == "__main__":
    main()
