"""Priors of the three orders on a tokenizer's tokens of the world, and how faithful they are.

    python -m benchmarks.world.generation --tokenizer builtin:world --output runs/world_generation
    python -m benchmarks.world.generation --tokenizer RUN --output OUT --shuffled --seeds 0,1,2

Writes the tokens of training films once; then for each order and seed trains
`configs/generator.py:demo` and evaluates it with `--task generation` on prompts of held-out films,
once for each guidance. Everything goes through the commands that users have, which resume: the same
command continues after an interruption. `--shuffled` gives every clip the caption of another one:
the control, whose faithfulness must be at chance. OUT/results.json has a row per evaluation.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyratok_jax.data.world.films import film_numbers, world_film
from pyratok_jax.generator import Clip
from pyratok_jax.generator.token_dataset import sample_record, write_samples
from pyratok_jax.io.atomic import write_json
from pyratok_jax.tokenizer import load_tokenizer
from pyratok_jax.tokens.schema import TokenRecord

ORDERS = ("blocks", "raster", "masked")
KEPT = ("faithful", "faithful_chance", "faithful_reconstruction", "nats", "random_nats", "fvd",
        "fvd_reconstruction", "dynamic_degree", "faithfulness")  # fmt: skip
FPS = 10.0
BATCH = 32  # films that are encoded together


def write_tokens(arguments: argparse.Namespace, folder: Path) -> None:
    """The tokens of the first training films, unless they are there; encoded without captions."""
    if folder.exists():
        return
    tokenizer = load_tokenizer(arguments.tokenizer)
    count, shift = arguments.clips, arguments.clips // 2 if arguments.shuffled else 0

    def records() -> Iterator[TokenRecord]:
        numbers = film_numbers(count, arguments.things)
        films = [world_film("world", number) for number in numbers]
        for start in range(0, count, BATCH):
            rows = range(start, min(start + BATCH, count))
            videos = [films[n].draw(arguments.frames, arguments.side, arguments.side) for n in rows]
            batch = tokenizer.encode(np.stack(videos))
            for place, row in enumerate(rows):
                ids = tuple(level[place] for level in batch.ids)
                caption = films[(row + shift) % count].caption
                clip = Clip(caption, numbers[row], 0, dataclasses.replace(batch, ids=ids))
                yield sample_record(clip, f"film{numbers[row]:07d}", fps=FPS, generator="",
                                    checkpoint=tokenizer.checkpoint_hash)  # fmt: skip

    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    write_samples(part, records())
    part.rename(folder)


def call(*words: str) -> None:
    """Run a command of the package.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    subprocess.run([sys.executable, "-m", *words], check=True)


def evaluate(arguments: argparse.Namespace, workdir: Path, guidance: float) -> dict[str, Any]:
    """The kept metrics of a prior at one guidance."""
    output = workdir / f"generation_{guidance:g}"
    settings = {
        "samples": arguments.samples, "frames": arguments.frames, "side": arguments.side,
        "guidance": guidance, "fvd": str(arguments.fvd).lower(),
        "temperature": arguments.temperature, "things": arguments.things,
    }  # fmt: skip
    pairs = [word for name, value in settings.items() if value != ""
             for word in ("--set", f"{name}={value}")]  # fmt: skip
    call("pyratok_jax.evaluate", "--task", "generation", "--checkpoint", str(workdir), "--data",
         "builtin:world-heldout", "--output", str(output), *pairs)  # fmt: skip
    metrics = json.loads((output / "results.json").read_text())["metrics"]
    return {name: metrics[name] for name in KEPT if metrics.get(name) is not None}


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train and evaluate everything that is asked for."""
    output, rows = Path(arguments.output), []
    tokens = output / ("tokens_shuffled" if arguments.shuffled else "tokens")
    output.mkdir(parents=True, exist_ok=True)
    write_tokens(arguments, tokens)
    if arguments.only_tokens:
        return rows
    for seed in arguments.seeds.split(","):
        for order in arguments.orders.split(","):
            workdir = output / f"{order}{'_shuffled' if arguments.shuffled else ''}_{seed}"
            call("pyratok_jax.train", "--config", "configs/generator.py:demo", "--workdir",
                 str(workdir), f"--config.tokenizer={arguments.tokenizer}",
                 f"--config.tokens.path={tokens}", f"--config.model.order={order}",
                 f"--config.steps={arguments.steps}", f"--config.seed={seed}",
                 f"--config.optimizer.warmup={min(30, arguments.steps // 4)}",
                 *arguments.config)  # fmt: skip
            for guidance in arguments.guidance.split(","):
                rows.append(
                    {"order": order, "seed": int(seed), "guidance": float(guidance),
                     "shuffled": arguments.shuffled, "tokenizer": arguments.tokenizer}
                    | evaluate(arguments, workdir, float(guidance))
                )  # fmt: skip
                write_json(output / "results.json", rows)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", default="builtin:world", help="what trained it")
    parser.add_argument("--output", required=True, help="folder of all runs")
    parser.add_argument("--orders", default=",".join(ORDERS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--guidance", default="1,3", help="scales to sample with")
    parser.add_argument("--temperature", default="", help="as of generate; empty: the training's")
    parser.add_argument("--steps", type=int, default=4000, help="of each training")
    parser.add_argument("--clips", type=int, default=20_000, help="training films")
    parser.add_argument("--samples", type=int, default=200, help="held-out prompts")
    parser.add_argument("--things", type=int, default=0, help="in a film; 0: 1 to 3")
    parser.add_argument("--config", action="append", default=[], metavar="--config.KEY=VALUE",
                        help="passed on to every training; may be repeated")  # fmt: skip
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--fvd", action="store_true", help="needs 16 frames and I3D's weights")
    parser.add_argument("--shuffled", action="store_true", help="the control")
    parser.add_argument(
        "--only-tokens", action="store_true", help="write OUT/tokens, train nothing"
    )
    for row in run(parser.parse_args(argv)):
        print(f"{row['order']:8} seed {row['seed']} guidance {row['guidance']:g}: faithful "
              f"{row['faithful']:.3f} (chance {row['faithful_chance']:.3f}), "
              f"{row['nats']:.3f} of {row['random_nats']:.2f} nats per token")  # fmt: skip


if __name__ == "__main__":
    main()
