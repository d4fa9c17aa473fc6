"""How well tokens find things and motions in held-out videos of the world, beside random features.

    python -m benchmarks.world.finding --output runs/finding
    python -m benchmarks.world.finding --output runs/finding --tokenizer RUN --tokenizer RUN
    python -m benchmarks.world.finding --output runs/finding --settings --seed 3 --count 24

Writes a set of videos (`evaluation.synthetic --world`), runs `evaluate --task segmentation` and
`--task localization` on it with each tokenizer and with random features, and prints J, track mAP
and average mAP as JSON; OUTPUT/tokenizers.json has them. `--settings` measures the first tokenizer
with one setting changed at a time, then with the tasks' defaults: OUTPUT/settings.json.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyratok_jax.evaluate import main as evaluate
from pyratok_jax.evaluation.task import Setting
from pyratok_jax.evaluation.world_tasks import FOLDERS, PIECES, SETTINGS, world_videos
from pyratok_jax.io.atomic import write_json

CHANGES: dict[str, dict[str, dict[str, Setting]]] = {
    "segmentation": {
        "no field": {"crf_iterations": 0},
        "no contrast": {"contrast": False},
        "the last level": {"level": 0},
        "a pixel is of one unit": {"exclusive": True},
        "eight units": {"units": 8},
    },
    "localization": {
        "no contrast": {"contrast": False},
        "mean of tokens": {"pooling": "mean"},
        "level 1": {"levels": "1"},
        "one prompt": {"templates": "a video of {}."},
        "pieces do not overlap": {"stride": 0},
        "all frames": {"fps": 0.0, "stride": 0, "window_frames": 25, "gap": 5},
    },
}
KEPT = ("j", "map", "average_map", "average_map_std")


def measure(task: str, tokenizer: str, data: Path, output: Path,
            settings: Mapping[str, Setting]) -> dict[str, float]:  # fmt: skip
    """The kept metrics of one evaluation."""
    words = [f"--set={name}={value}" for name, value in settings.items()]
    place = ["--data", str(data / FOLDERS[task]), "--output", str(output)]
    evaluate(["--task", task, "--checkpoint", tokenizer, *place, *words])
    metrics = json.loads((output / "results.json").read_text())["metrics"]
    return {name: round(metrics[name], 2) for name in KEPT if metrics.get(name) is not None}


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, str, str, dict[str, Setting]]]:
    """Task, tokenizer, name and settings of each evaluation."""
    tokenizers = arguments.tokenizer or ["builtin:world"]
    for task in arguments.tasks.split(","):
        settings = SETTINGS[task]
        if not arguments.settings:
            yield from ((task, tokenizer, "", settings) for tokenizer in [*tokenizers, "random"])
            continue
        for tokenizer in (tokenizers[0], "random"):
            yield task, tokenizer, "all of ours", settings
            for name, change in CHANGES[task].items():
                yield task, tokenizer, name, settings | change
            yield task, tokenizer, "the defaults", PIECES


def main(argv: Sequence[str] | None = None) -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", action="append", help="trained; default: builtin:world")
    parser.add_argument("--output", required=True, help="folder of the set and all evaluations")
    parser.add_argument("--count", type=int, default=48, help="videos of each set")
    parser.add_argument("--seed", type=int, default=5, help="of the videos")
    parser.add_argument("--tasks", default=",".join(CHANGES))
    parser.add_argument("--settings", action="store_true", help="change one setting at a time")
    arguments = parser.parse_args(argv)
    output = Path(arguments.output)
    data = world_videos(output, arguments.count, arguments.seed)
    rows: list[dict[str, Any]] = []
    kind = "settings" if arguments.settings else "tokenizers"
    for task, tokenizer, name, settings in cases(arguments):
        called = re.sub(r"\W+", "_", f"{task} {Path(tokenizer).name} {name}".strip())
        row = {"task": task, "tokenizer": Path(tokenizer).name, "seed": arguments.seed}
        row |= {"videos": arguments.count} | ({"settings": name} if name else {})
        place = output / data.name.replace("set", "found") / called
        rows.append(row | measure(task, tokenizer, data, place, settings))
        write_json(output / f"{kind}.json", rows)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
