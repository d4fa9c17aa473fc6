"""The zero-shot tasks on held-out videos of the world: their settings there, and all at once.

Two further settings than a task's defaults decide there: pieces of nine frames of 64 pixels, as
levels are trained on, and the first level, which says what is shown. docs/proof.md has what each
one of them is worth.
"""

import contextlib
import tempfile
from pathlib import Path

from pyratok_jax.data.video.opening import BrokenVideoError
from pyratok_jax.data.world.vocabulary import COLOURS, SEEN_SHAPES
from pyratok_jax.evaluation.synthetic import main as write_set
from pyratok_jax.evaluation.task import BrokenItemError, Partial, Setting, Task, load_task
from pyratok_jax.io import Json
from pyratok_jax.tokenizer import Tokenizer

# A label in the captions of eight things that do it.
PROMPTS = "|".join(
    f"A{'n' if colour[0] in 'aeiou' else ''} {colour} {shape} {{}}."
    for colour, shape in zip(COLOURS, SEEN_SHAPES, strict=True)
)
PIECES: dict[str, Setting] = {"side": 64, "clip_frames": 9}  # and the defaults of the tasks
SETTINGS: dict[str, dict[str, Setting]] = {
    "segmentation": PIECES | {"crf_side": 64, "level": 1, "contrast": True, "units": 0},
    # Three frames a second: the nine frames of a piece span a motion, as in training.
    "localization": PIECES
    | {"fps": 3.0, "stride": 3, "window_frames": 9, "gap": 1, "levels": "all",
       "pooling": "peaks", "contrast": True, "templates": PROMPTS},
    "vqa": {"projector": "cosine", "pooling": "peaks", "levels": "1", "side": 64, "frames": 9},
}  # fmt: skip
# Where `synthetic --world` writes each one's videos, and the metric that stands for it.
FOLDERS = {"segmentation": "vis", "localization": "localization", "vqa": "mvbench"}
METRICS = {
    "segmentation": ("j", "segmentation_j"),
    "localization": ("average_map", "localization_map"),
    "vqa": ("accuracy", "questions"),
}


def world_videos(folder: Path, count: int, seed: int) -> Path:
    """Held-out videos in the layouts of all tasks, written once into a folder below `folder`.

    Args:
        folder: of the sets; an interrupted writing leaves none behind, and processes that write
            the same one at once share the first that is complete.
        count: videos of each layout.
        seed: of the videos.
    """
    data = folder / f"set_{seed}_{count}"
    if not data.exists():
        words = ["--world", "--count", str(count), "--seed", str(seed)]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{data.name}.", dir=folder) as scratch:
            part = Path(scratch) / data.name
            write_set(["--output", str(part), *words])
            try:
                part.rename(data)
            except OSError:
                if not data.exists():
                    raise
    return data


def zero_shot(tokenizer: Tokenizer, data: Path) -> dict[str, Json]:
    """Segmentation, localisation and questions from tokens made without a caption.

    Args:
        tokenizer: with a language model and a map from codes to the text space.
        data: as `world_videos` writes it.

    Returns:
        "segmentation_j" and "localization_map" (averages of five splits and five overlaps) in
        percent, "questions" answered rightly in percent (chance 25); None for what the videos do
        not hold, and where no video could be evaluated.
    """
    found: dict[str, Json] = {}
    for name, settings in SETTINGS.items():
        task = load_task(name)(data=str(data / FOLDERS[name]), **settings)
        task.check()
        metric, called = METRICS[name]
        found[called] = metric_of(task, tokenizer, metric)
    return found


def metric_of(task: Task, tokenizer: Tokenizer, metric: str) -> float | None:
    """One metric of a tokenizer, rounded; None where there is nothing to take it from."""
    model = task.wrap(tokenizer)
    task.prepare(model)
    partials: dict[str, Partial] = {}
    for item in task.items():
        # Of levels that have diverged, say: no reason to lose a training's other figures.
        with contextlib.suppress(BrokenItemError, BrokenVideoError):
            partials[item.id] = task.evaluate_item(model, item)
    value = task.aggregate(partials)[metric] if partials else None
    return round(value, 2) if isinstance(value, float) else None
