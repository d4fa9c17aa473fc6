"""Priors on tokenizers' tokens of the world: how faithful their films are, and what tokens cost.

    python -m benchmarks.world.generation --output runs/priors
    python -m benchmarks.world.generation --output runs/priors --shuffled --seeds 0,1,2
    python -m benchmarks.world.generation --output runs/priors --name plain --orders blocks \
        --tokenizer "runs/tokenizers/no_text_guidance-{seed}" --seeds 0,1,2

Writes the tokens of training films and the embeddings of their captions once; then for each order
and seed trains `configs/generator.py:demo` and evaluates it with `--task generation` on prompts of
held-out films, once for each guidance. Everything goes through the commands that users have, which
resume: the same command continues after an interruption, and runs of several tokenizers or orders
share an output; rows and tokens that were made with other options are refused. `--shuffled` gives
every clip the caption of another one: the control, whose faithfulness must be at chance.
OUTPUT/results.json has a row per evaluation, of which a table is printed.
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
from pyratok_jax.data.world.reader import LEAST_FRAMES
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.reference import references
from pyratok_jax.generator import Clip
from pyratok_jax.generator.token_dataset import sample_record, write_samples
from pyratok_jax.io.atomic import write_json
from pyratok_jax.tokens.schema import TokenRecord

ORDERS = ("blocks", "raster", "masked")
KEPT = ("faithful", "faithful_chance", "faithful_reconstruction", "nats", "random_nats", "fvd",
        "fvd_reconstruction", "dynamic_degree", "faithfulness", "prompts_worth")  # fmt: skip
# Options that all rows of a name and order share, and those that tokens depend on.
SHARED = ("tokenizer", "steps", "clips", "samples", "things", "frames", "side", "temperature",
          "config")  # fmt: skip
OF_TOKENS = ("tokenizer", "clips", "things", "frames", "side", "shuffled")
MADE = "made.json"
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


def write_tokens(arguments: argparse.Namespace, folder: Path) -> None:
    """The tokens of the first training films, encoded without captions."""
    from pyratok_jax.tokenizer import load_tokenizer

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
    write_json(part / MADE, options(arguments, OF_TOKENS))
    part.rename(folder)


def options(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Some of the command line's."""
    return {name: getattr(arguments, name) for name in names}


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
    if metrics["samples"] != arguments.samples:
        raise SystemExit(
            f"{output}: {metrics['samples']} of {arguments.samples} samples could be measured; run "
            "the command again"
        )
    return {name: metrics[name] for name in KEPT if metrics.get(name) is not None}


def made_once(arguments: argparse.Namespace, tokens: Path, captions: Path) -> None:
    """Write tokens and captions, unless they are there, by processes that then free the device.

    Raises:
        SystemExit: there are tokens that were made with other options.
    """
    if not tokens.exists():
        words = [f"--{name}={getattr(arguments, name)}" for name in OF_TOKENS[:-1]]
        call("benchmarks.world.generation", *words, "--output", arguments.output, "--tokens-to",
             str(tokens), *(["--shuffled"] if arguments.shuffled else []))  # fmt: skip
    found = json.loads((tokens / MADE).read_text())
    if found != options(arguments, OF_TOKENS):
        raise SystemExit(f"{tokens} was made with {found}; choose another --name or --output")
    if not captions.exists():
        call("pyratok_jax.embed_captions", "--tokens", str(tokens), "--checkpoint",
             arguments.tokenizer, "--output", str(captions), "--batch", "64")  # fmt: skip


def train(arguments: argparse.Namespace, case: Case) -> Path:
    """Write what the training reads, unless it is there, and train.

    Returns:
        the working folder.
    """
    output = Path(arguments.output)
    seed = f"_{case.seed}" if arguments.of_seeds else ""
    tokens = output / f"tokens_{case.name}{seed}{'_shuffled' if case.shuffled else ''}"
    captions = output / f"captions_{arguments.things}_{arguments.clips}"
    made_once(arguments, tokens, captions)
    workdir = output / case.folder
    if not arguments.only_tokens:
        call("pyratok_jax.train", "--config", "configs/generator.py:demo", "--workdir",
             str(workdir), f"--config.tokenizer={arguments.tokenizer}",
             f"--config.tokens.path={tokens}", f"--config.conditioning.stored={captions}",
             f"--config.model.order={case.order}", f"--config.steps={arguments.steps}",
             f"--config.seed={case.seed}",
             f"--config.optimizer.warmup={min(30, arguments.steps // 4)}",
             *(f"--config.{change}" for change in arguments.config))  # fmt: skip
    return workdir


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train and evaluate everything that is asked for and is not in the results yet.

    Raises:
        SystemExit: rows of the same name and order have other options.
    """
    Path(arguments.output).mkdir(parents=True, exist_ok=True)
    results = Path(arguments.output) / "results.json"
    shared = options(arguments, SHARED)
    for seed in map(int, arguments.seeds.split(",")):
        asked = argparse.Namespace(**vars(arguments))
        asked.tokenizer = arguments.tokenizer.replace("{seed}", str(seed))
        asked.of_seeds = asked.tokenizer != arguments.tokenizer
        for order in arguments.orders.split(","):
            case = Case(arguments.name, order, seed, arguments.shuffled)
            for guidance in map(float, arguments.guidance.split(",")):
                row = case._asdict() | {"guidance": guidance}
                if has_row(results, row, shared):
                    continue
                workdir = train(asked, case)
                if not arguments.only_tokens:
                    row |= shared | evaluate(asked, workdir, guidance)
                    write_json(results, [*stored(results), row])
    return stored(results)


def has_row(results: Path, row: Mapping[str, Any], shared: Mapping[str, Any]) -> bool:
    """Whether the results have it.

    Raises:
        SystemExit: what they have of this name and order was made with other options.
    """
    rows = [known for known in stored(results)
            if (known["name"], known["order"]) == (row["name"], row["order"])]  # fmt: skip
    for known in rows:
        other = {name: known[name] for name in shared if known[name] != shared[name]}
        if other:
            raise SystemExit(
                f"{results} has {row['name']}, {row['order']} with {other}; choose another --name "
                "or --output"
            )
    return any(row.items() <= known.items() for known in rows)


def stored(results: Path) -> list[dict[str, Any]]:
    """The rows that there are."""
    return json.loads(results.read_text()) if results.exists() else []


Value = Callable[[Mapping[str, Any]], float]


def _share(prompts: str, field: str) -> Value:
    return lambda row: next(
        (100 * part[field] for part in row.get("faithfulness", ()) if part["prompts"] == prompts),
        float("nan"),
    )


def _kept(name: str) -> Value:
    return lambda row: row.get(name, float("nan"))


def _worth(row: Mapping[str, Any]) -> float:
    """How much more a token costs under another's prompt."""
    found = (part for part in row.get("prompts_worth", ()) if part["tokens"] == "all")
    return next((part["another's"] - part["own prompt"] for part in found), float("nan"))


COLUMNS: Mapping[str, tuple[Value, int]] = {
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
    "FVD": (_kept("fvd"), 0),
    "rFVD": (_kept("fvd_reconstruction"), 0),
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
            known = np.isfinite(values).all()
            cells.append(f"{values.mean():.{digits}f}{spread}" if known else "")
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
    parser.add_argument("--samples", type=int, default=176, help="held-out prompts")
    parser.add_argument("--things", type=int, default=0, help="in a film; 0: 1 to 3")
    parser.add_argument("--config", action="append", default=[], metavar="KEY=VALUE",
                        help="of every training: model.layers=4; may be repeated")  # fmt: skip
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--fvd", action="store_true", help="needs 16 frames")
    parser.add_argument("--shuffled", action="store_true", help="the control")
    parser.add_argument(
        "--only-tokens", action="store_true", help="write tokens and captions, train nothing"
    )
    parser.add_argument("--tokens-to", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.tokens_to:
        return write_tokens(arguments, Path(arguments.tokens_to))
    check(arguments)
    print("\n".join(summary(run(arguments))))


def check(arguments: argparse.Namespace) -> None:
    """Refuse what would fail after the trainings.

    Raises:
        SystemExit: too few prompts, frames or steps.
    """
    if arguments.fvd and arguments.frames < 16:
        raise SystemExit("--fvd: its network takes 16 frames; give --frames 17 or more")
    if arguments.frames < LEAST_FRAMES:
        raise SystemExit(
            f"--frames {arguments.frames}: motions are read off {LEAST_FRAMES} at least"
        )
    if arguments.samples < 2:
        raise SystemExit("--samples: chance needs two prompts at least")
    try:
        references("builtin:world-heldout", samples=arguments.samples, frames=arguments.frames,
                   interval=1, side=arguments.side, seed=0, condition="captions",
                   things=arguments.things)  # fmt: skip
    except UserError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
