"""What each loss is worth for what it measures: the shipped tokenizer trained on without it.

    python -m benchmarks.world.terms --output runs/terms.json --workdir runs/terms

Every training starts from `builtin:world` and has all losses of `configs/world.py:continued`, on
videos of the world alone, less what an ablation of `training/ablations/table.py` takes away. All
are measured alike on held-out videos of the world and on the demo's held-out real scenes, which no
training here sees: PSNR, SSIM and LPIPS of what the token ids decode to, how far the features of
the frozen vision network are from the videos' (the retention term's distance), how far the bits of
a level are from those of the level before (the hierarchy term's divergence), and names.
"""

import argparse
import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from benchmarks.world.alignment import finished
from benchmarks.world.drift import names_right
from benchmarks.world.features import FRAMES, SIDE, Networks, single
from pyratok_jax.checkpoints.foreign.lpips import load_lpips
from pyratok_jax.checkpoints.pretrained import load_vision
from pyratok_jax.data.config import data_config
from pyratok_jax.data.heldout import heldout_clips
from pyratok_jax.data.world.vocabulary import seen_names
from pyratok_jax.evaluation.world_set import classes
from pyratok_jax.io.atomic import write_json
from pyratok_jax.losses.codebook import hierarchy
from pyratok_jax.losses.features import retention
from pyratok_jax.losses.settings import LossSettings
from pyratok_jax.metrics.image import quality
from pyratok_jax.models.dino import Dino
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.tokenizer import Tokenizer, load_tokenizer, to_model_range
from pyratok_jax.training.ablations.table import apply
from pyratok_jax.training.tasks.run import run

START = "builtin:world"
ROWS = "full,no_ssim,no_lpips,no_retention,no_hierarchy"
NAMED, DECODED = 144, 16  # videos that are named, and those whose pixels are measured
PART = 16  # videos that are encoded together


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--names", default=ROWS, help="rows of the table of ablations")
    p.add_argument("--seeds", default="0,1,2")
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--workdir", type=Path, default=Path("runs/terms"), help="of all trainings")
    p.add_argument("--cache", type=Path, default=Path("runs/world_features"), help="folder")
    p.add_argument("--output", type=Path, help="JSON file of all measurements")
    return p


@nnx.jit
def _feature_distance(vision: Dino, video: Array, rebuilt: Array) -> Float[Array, ""]:
    """The retention term of two uint8 videos (t, h, w, 3), over all frames."""
    return retention(vision(to_model_range(video)), vision(to_model_range(rebuilt)))


@nnx.jit
def _divergence(model: PyraTok, video: Array) -> Float[Array, ""]:
    """The hierarchy term of videos, summed over levels, in nats per token."""
    levels = model.encode(to_model_range(video)).levels
    pairs = zip(levels[1:], levels, strict=False)
    tau = LossSettings().temperature
    values = [hierarchy(level.z, before.z, temperature=tau) for level, before in pairs]
    return sum(values[1:], values[0])


class Measures:
    """The networks of the measures, loaded once."""

    def __init__(self) -> None:
        self.lpips = {"vgg": load_lpips("vgg")}
        self.vision = load_vision("builtin:demo-vision")

    def __call__(
        self, tokenizer: Tokenizer, parts: Sequence[UInt8[np.ndarray, "b t h w 3"]]
    ) -> dict[str, float]:
        """Means over the videos of all parts."""
        rows: list[dict[str, float]] = []
        for video in parts:
            rebuilt = tokenizer.decode(tokenizer.encode(video))
            nats = float(_divergence(tokenizer.model, jnp.asarray(video)))
            for true, found in zip(video, rebuilt, strict=True):
                measured = quality([true], [found], lpips=self.lpips)
                apart = float(_feature_distance(self.vision, jnp.asarray(true), jnp.asarray(found)))
                kept = {name: float(measured[name] or 0.0) for name in ("psnr", "ssim", "lpips")}
                rows.append(kept | {"features apart": apart, "hierarchy": nats})
        return {name: round(float(np.mean([row[name] for row in rows])), 5) for name in rows[0]}


def main(argv: Sequence[str] | None = None) -> None:
    """Run all variants of all seeds and print, and write, their numbers."""
    args = parser().parse_args(argv)
    make = runpy.run_path("configs/world.py")["get_config"]
    networks, measures = Networks(), Measures()
    chosen = classes(seen_names())
    names = [chosen[number % len(chosen)] for number in range(NAMED)]
    videos = np.stack(
        [single((9, 1, n), name).draw(FRAMES, SIDE, SIDE) for n, name in enumerate(names)]
    )
    scenes = [clip.video[None] for clip in heldout_clips(data_config(), ("17x96x96",), 8)]
    films = [videos[start : start + PART] for start in range(0, DECODED, PART)]

    def measure(tokenizer: Tokenizer) -> dict[str, Any]:
        right = names_right(tokenizer, networks, args.cache, videos, names)
        return {"films": measures(tokenizer, films), "real scenes": measures(tokenizer, scenes),
                "names": right}  # fmt: skip

    facts = {"steps": args.steps, "films": DECODED, "named": NAMED}
    rows = finished(args.output, facts) or [{"variant": "start"} | measure(load_tokenizer(START))]
    print(json.dumps(rows[0]), flush=True)
    for seed in map(int, args.seeds.split(",")):
        for name in args.names.split(","):
            if any((row["variant"], row.get("seed")) == (name, seed) for row in rows):
                continue
            config = apply(make("continued"), name, "world")
            config.steps, config.seed = args.steps, seed
            config.report.clips, config.report.lpips = 1, False  # all that counts is measured here
            folder = args.workdir / f"{name}-{seed}"
            if run(config, folder) is None:
                return
            rows.append({"variant": name, "seed": seed} | measure(load_tokenizer(folder)))
            print(json.dumps(rows[-1]), flush=True)
            if args.output:
                write_json(args.output, {"settings": facts, "runs": rows})


if __name__ == "__main__":
    main()
