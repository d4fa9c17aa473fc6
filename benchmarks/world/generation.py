"""Priors on tokenizers' tokens of the world: how faithful their films are, and what tokens cost.

    python -m benchmarks.world.generation --output runs/priors
    python -m benchmarks.world.generation --output runs/priors --shuffled --seeds 0,1,2
    python -m benchmarks.world.generation --output runs/priors --name plain --orders blocks \
        --tokenizer "runs/tokenizers/no_text_guidance-{seed}" --seeds 0,1,2

Writes the tokens of training films and the embeddings of their captions once; then for each order
and seed trains `configs/generator.py:demo` and evaluates it with `--task generation` on prompts of
held-out films, once for each guidance. Everything goes through the commands that users have, which
resume: the same command continues after an interruption, and runs of several tokenizers or orders
share an output. `--shuffled` gives every clip the caption of another one: the control, whose
faithfulness must be at chance. OUTPUT/results.json has a row per evaluation, of which a table is
printed.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyratok_jax.data.world.films import film_numbers, world_film
from pyratok_jax.generator import Clip
from pyratok_jax.generator.token_dataset import sample_record, write_samples
from pyratok_jax.io.atomic import write_json
from pyratok_jax.tokenizer import load_tokenizer
from pyratok_jax.tokens.schema import TokenRecord

ORDERS = ("blocks", "raster", "masked")
KEPT = ("faithful", "faithful_chance", "faithful_reconstruction", "nats", "random_nats", "fvd",
        "fvd_reconstruction", "dynamic_degree", "faithfulness", "prompts_worth")  # fmt: skip
CHANCE, REBUILT = "chance (prompts of other samples)", "reconstructions of the real clips"
FPS = 10.0
BATCH = 32  # films that are encoded together


class Case(NamedTuple):
    """A training: what it is told apart by in the results."""

    name: str
    order: str
    seed: int
    shuffled: bool

    @property
    def folder(self) -> str:
        """Of its training, below the output."""
        return f"{self.name}_{self.order}{'_shuffled' if self.shuffled else ''}_{self.seed}"


def write_tokens(arguments: argparse.Namespace, tokenizer_name: str, folder: Path) -> None:
    """The tokens of the first training films, unless they are there; encoded without captions."""
    if folder.exists():
        return
    tokenizer = load_tokenizer(tokenizer_name)
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


def train(arguments: argparse.Namespace, case: Case) -> Path:
    """Write what the training reads, unless it is there, and train.

    Returns:
        the working folder.
    """
    output = Path(arguments.output)
    tokenizer = arguments.tokenizer.format(seed=case.seed)
    of_seed = f"_{case.seed}" if tokenizer != arguments.tokenizer else ""
    tokens = output / f"tokens_{case.name}{of_seed}{'_shuffled' if case.shuffled else ''}"
    captions, workdir = output / "captions", output / case.folder
    write_tokens(arguments, tokenizer, tokens)
    if not captions.exists():
        call("pyratok_jax.embed_captions", "--tokens", str(tokens), "--checkpoint", tokenizer,
             "--output", str(captions), "--batch", "64")  # fmt: skip
    if not arguments.only_tokens:
        call("pyratok_jax.train", "--config", "configs/generator.py:demo", "--workdir",
             str(workdir), f"--config.tokenizer={tokenizer}",
             f"--config.tokens.path={tokens}", f"--config.conditioning.stored={captions}",
             f"--config.model.order={case.order}", f"--config.steps={arguments.steps}",
             f"--config.seed={case.seed}",
             f"--config.optimizer.warmup={min(30, arguments.steps // 4)}",
             *arguments.config)  # fmt: skip
    return workdir


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train and evaluate everything that is asked for and is not in the results yet."""
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    results = output / "results.json"
    for seed in map(int, arguments.seeds.split(",")):
        for order in arguments.orders.split(","):
            case = Case(arguments.name, order, seed, arguments.shuffled)
            for guidance in map(float, arguments.guidance.split(",")):
                row = case._asdict() | {"guidance": guidance}
                if any(row.items() <= known.items() for known in stored(results)):
                    continue
                workdir = train(arguments, case)
                if arguments.only_tokens:
                    continue
                row |= {"tokenizer": arguments.tokenizer, "steps": arguments.steps}
                row |= evaluate(arguments, workdir, guidance)
                write_json(results, [*stored(results), row])
    return stored(results)


def stored(results: Path) -> list[dict[str, Any]]:
    """The rows that there are."""
    return json.loads(results.read_text()) if results.exists() else []


def _share(prompts: str, field: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda row: next(
        100 * part[field] for part in row["faithfulness"] if part["prompts"] == prompts
    )


def _worth(row: Mapping[str, Any]) -> float:
    """How much more a token costs under another's prompt."""
    found = next(part for part in row["prompts_worth"] if part["tokens"] == "all")
    return found["another's"] - found["own prompt"]


COLUMNS: Mapping[str, tuple[Callable[[Mapping[str, Any]], float], int]] = {
    **{f"{field}, %": (_share("all", field), 0)
       for field in ("colour", "shape", "count", "motion", "everything")},
    "chance: colour": (_share(CHANCE, "colour"), 0),
    "chance: motion": (_share(CHANCE, "motion"), 0),
    "rebuilt: colour": (_share(REBUILT, "colour"), 0),
    "rebuilt: motion": (_share(REBUILT, "motion"), 0),
    "rebuilt: everything": (_share(REBUILT, "everything"), 0),
    "nats per token": (lambda row: row["nats"], 2),
    "of the rate, %": (lambda row: 100 * row["nats"] / row["random_nats"], 1),
    "another's prompt, nats": (_worth, 3),
}  # fmt: skip


def summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A Markdown table: means, and the sample's standard deviations over the seeds."""
    keys = ("name", "order", "shuffled", "guidance")
    lines = [
        "| tokens | order | captions | guidance | " + " | ".join(COLUMNS) + " | seeds |",
        "|---" * (len(keys) + len(COLUMNS) + 1) + "|",
    ]
    for name, order, shuffled, guidance in dict.fromkeys(
        tuple(row[k] for k in keys) for row in rows
    ):
        group = [
            row for row in rows if tuple(row[k] for k in keys) == (name, order, shuffled, guidance)
        ]
        cells = [name, order, "another's" if shuffled else "own", f"{guidance:g}"]
        for value, digits in COLUMNS.values():
            values = np.array([value(row) for row in group])
            spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.{digits}f}{spread}")
        lines.append("| " + " | ".join([*cells, str(len(group))]) + " |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--tokenizer", default="builtin:world",
                        help="whose tokens; {seed} in it stands for the prior's seed")  # fmt: skip
    parser.add_argument("--name", default="world", help="of the tokenizer, in the results")
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
    parser.add_argument("--fvd", action="store_true", help="needs 16 frames")
    parser.add_argument("--shuffled", action="store_true", help="the control")
    parser.add_argument(
        "--only-tokens", action="store_true", help="write tokens and captions, train nothing"
    )
    print("\n".join(summary(run(parser.parse_args(argv)))))


if __name__ == "__main__":
    main()
