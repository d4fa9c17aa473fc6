"""A constructed data set with exact ground truth for every task: coloured shapes that move.

`python -m pyratok_jax.evaluation.synthetic --output DIR` writes the published layouts of the real
data sets, so that what evaluates this set evaluates those:

    videos/         videos with captions (a folder with NAME.txt beside NAME.mp4)
    vis/            frames and instances.json as YouTube-VIS and OVIS
    davis/          JPEGImages/480p and Annotations/480p as DAVIS
    localization/   videos, annotations.json as THUMOS14 and ActivityNet, splits/ of class names
    classification/ train/LABEL/*.mp4 and test/LABEL/*.mp4
    mvbench/        json/*.json and video/ as MVBench

`--world` writes the same layouts of the richer videos of `builtin:world-heldout` (`world_set`).
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pyratok_jax.data.video.writer import VideoWriter
from pyratok_jax.errors import run_cli
from pyratok_jax.io import Json
from pyratok_jax.io.cli import command_parser, local_path, say

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 70, 220),
    "yellow": (230, 210, 50),
}
SHAPES = ("circle", "square", "triangle")
ACTIONS = ("blinking", "growing", "shaking")
FPS = 10


@dataclasses.dataclass(frozen=True)
class Thing:
    """A shape in a scene: its name ("red circle") and where it is, (t, h, w) bool."""

    name: str
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scene:
    """A video, uint8 (t, h, w, 3), of things that never touch, and a sentence about it."""

    frames: np.ndarray
    things: tuple[Thing, ...]
    caption: str


def shape_mask(
    shape: str, size: tuple[int, int], centre: tuple[float, float], radius: float
) -> np.ndarray:
    """One shape as a bool mask (h, w)."""
    y, x = np.mgrid[: size[0], : size[1]]
    dy, dx = y - centre[0], x - centre[1]
    if shape == "circle":
        return dy**2 + dx**2 <= radius**2
    if shape == "square":
        return np.maximum(abs(dy), abs(dx)) <= 0.85 * radius
    return (dy <= 0.8 * radius) & (abs(dx) <= 0.6 * (dy + radius))


def draw(background: np.ndarray, masks: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """A video (t, h, w, 3) of masks (t, h, w) in their colours before a background (h, w, 3)."""
    frames = np.repeat(background[None], len(masks[0][1]), axis=0)
    for name, mask in masks:
        frames[mask] = COLOURS[name.split()[0]]
    return frames


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A soft grey gradient, uint8 (size, size, 3)."""
    corners = rng.integers(90, 170, (2, 2)).astype(np.uint8)
    grey = np.asarray(Image.fromarray(corners).resize((size, size), Image.Resampling.BILINEAR))
    return np.repeat(grey[..., None], 3, axis=-1)


def moving_scene(rng: np.random.Generator, frames: int, size: int, names: Sequence[str]) -> Scene:
    """Things that cross the picture, one above the other: each keeps to its own lane."""
    lane = size / len(names)
    things, words = [], []
    for row, name in enumerate(names):
        right = bool(rng.integers(2))
        radius = 0.32 * lane * rng.uniform(0.8, 1.0)
        span = np.linspace(radius + 2, size - radius - 3, frames)
        path = span if right else span[::-1]
        y = lane * (row + 0.5)
        masks = [shape_mask(name.split()[1], (size, size), (y, x), radius) for x in path]
        things.append(Thing(name, np.stack(masks)))
        words.append(f"a {name} moves to the {'right' if right else 'left'}")
    video = draw(background(rng, size), [(thing.name, thing.mask) for thing in things])
    text = " and ".join(words)
    return Scene(video, tuple(things), text[0].upper() + text[1:] + ".")


def action_scene(
    rng: np.random.Generator, frames: int, size: int, intervals: Sequence[tuple[int, int, str]]
) -> np.ndarray:
    """A circle that does something during each (first, end, action); else it rests."""
    masks = []
    for t in range(frames):
        centre, radius = [size / 2, size / 2], size / 6
        for first, end, action in intervals:
            if first <= t < end:
                phase = t - first
                if action == "blinking" and phase % 2:
                    radius = 0.0
                if action == "growing":
                    radius *= 1 + 1.2 * (phase + 1) / (end - first)
                if action == "shaking":
                    centre[1] += (-1) ** phase * size / 8
        masks.append(shape_mask("circle", (size, size), (centre[0], centre[1]), radius))
    return draw(background(rng, size), [("red circle", np.stack(masks))])


def all_names() -> list[str]:
    """Every colour with every shape."""
    return [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


def uncompressed_rle(mask: np.ndarray) -> dict[str, Json] | None:
    """A mask (h, w) as the ground truth of YouTube-VIS writes it: run lengths by columns."""
    flat = np.asarray(mask, bool).T.ravel()
    if not flat.any():
        return None
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + counts}


def write_video(path: Path, frames: np.ndarray) -> None:
    """A nearly lossless video file."""
    with VideoWriter(path, fps=FPS, crf=4, preset="veryfast", reproducible=True) as writer:
        for frame in frames:
            writer.write(frame)


def write_json(path: Path, value: Json) -> None:
    """Write a JSON file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value) + "\n")


def write_videos(output: Path, scenes: Sequence[Scene]) -> None:
    """Videos with a caption beside each."""
    for number, scene in enumerate(scenes):
        write_video(output / f"scene_{number:03d}.mp4", scene.frames)
        (output / f"scene_{number:03d}.txt").write_text(scene.caption + "\n")


def write_vis(output: Path, scenes: Sequence[Scene], names: Sequence[str] = ()) -> None:
    """YouTube-VIS layout: JPEGImages/VIDEO/FRAME.png, instances.json with uncompressed masks.

    The categories are `names` (empty: `all_names`).
    """
    categories = [{"id": i, "name": name} for i, name in enumerate(names or all_names(), start=1)]
    ids = {category["name"]: category["id"] for category in categories}
    videos: list[dict[str, Json]] = []
    annotations: list[dict[str, Json]] = []
    for number, scene in enumerate(scenes, start=1):
        name = f"scene_{number:03d}"
        files = [f"{name}/{t:05d}.png" for t in range(len(scene.frames))]
        for file, frame in zip(files, scene.frames, strict=True):
            _save_png(output / "JPEGImages" / file, Image.fromarray(frame))
        height, width = scene.frames.shape[1:3]
        size = {"height": height, "width": width, "length": len(files)}
        videos.append({"id": number, "file_names": files, **size})
        for thing in scene.things:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "video_id": number,
                    "category_id": ids[thing.name],
                    "segmentations": [uncompressed_rle(mask) for mask in thing.mask],
                    "areas": [int(mask.sum()) or None for mask in thing.mask],
                    "bboxes": [None] * len(files),
                    "iscrowd": 0,
                    **size,
                }
            )
    content = {"videos": videos, "annotations": annotations, "categories": categories}
    write_json(output / "instances.json", content)


def write_davis(output: Path, scenes: Sequence[Scene]) -> None:
    """DAVIS layout; the names of a video's objects are in objects.json."""
    names = {}
    for number, scene in enumerate(scenes):
        video = f"scene-{number:03d}"
        names[video] = {str(i): thing.name for i, thing in enumerate(scene.things, start=1)}
        for t, frame in enumerate(scene.frames):
            _save_png(output / "JPEGImages/480p" / video / f"{t:05d}.png", Image.fromarray(frame))
            labels = np.zeros(frame.shape[:2], np.uint8)
            for i, thing in enumerate(scene.things, start=1):
                labels[thing.mask[t]] = i
            picture = Image.fromarray(labels, "P")
            picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
            _save_png(output / "Annotations/480p" / video / f"{t:05d}.png", picture)
    write_json(output / "objects.json", names)


def _save_png(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_localization(output: Path, rng: np.random.Generator, count: int, size: int) -> None:
    """ActivityNet/THUMOS14 layout: videos/, annotations.json, splits/split_0.list."""
    database = {}
    for number in range(count):
        frames, intervals = 90, []
        for start in (int(rng.integers(4, 12)), int(rng.integers(48, 54))):
            action = ACTIONS[int(rng.integers(len(ACTIONS)))]
            intervals.append((start, start + int(rng.integers(28, 34)), action))
        name = f"video_{number:03d}"
        write_video(output / "videos" / f"{name}.mp4", action_scene(rng, frames, size, intervals))
        database[name] = {
            "subset": "validation",
            "duration": frames / FPS,
            "annotations": [
                {"segment": [first / FPS, end / FPS], "label": action}
                for first, end, action in intervals
            ],
        }
    write_json(output / "annotations.json", {"database": database})
    for number in range(len(ACTIONS)):
        chosen = [action for i, action in enumerate(ACTIONS) if i != number]
        path = output / "splits" / f"split_{number}.list"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(chosen) + "\n")


def write_classification(output: Path, rng: np.random.Generator, count: int, size: int) -> None:
    """Folders of videos by label, in train and in test."""
    for part in ("train", "test"):
        for name in ("red circle", "green square", "blue triangle", "yellow circle"):
            for number in range(count):
                scene = moving_scene(rng, 9, size, [name])
                write_video(output / part / name / f"{number:03d}.mp4", scene.frames)


def write_mvbench(output: Path, rng: np.random.Generator, size: int) -> None:
    """All 20 tasks of MVBench with one question each, and their folders of videos."""
    from pyratok_jax.evaluation.data.mvbench import LAYOUT

    for name, part in LAYOUT.items():
        colours = list(COLOURS)
        answer = colours[int(rng.integers(len(colours)))]
        scene = moving_scene(rng, 13, size, [f"{answer} circle"])
        entry: dict[str, Json] = {
            "video": f"{name}.mp4",
            "question": "Which colour has the circle?",
            "candidates": colours,
            "answer": answer,
        }
        if part.bounded:
            entry |= {"start": 0.2, "end": 1.1}
        if part.frames:
            entry["video"] = name
            for t, frame in enumerate(scene.frames):
                file = output / "video" / part.folder / name / f"{t + 1:05d}.jpg"
                _save_png(file, Image.fromarray(frame))
        else:
            write_video(output / "video" / part.folder / entry["video"], scene.frames)
        write_json(output / "json" / f"{name}.json", [entry])


def write_all(output: Path, *, seed: int = 0, count: int = 4, size: int = 64) -> None:
    """Write the whole set: the same bytes of pictures for the same arguments."""
    rng = np.random.default_rng(seed)
    names = all_names()
    scenes = []
    for _ in range(count):
        picked = rng.choice(len(names), 2, replace=False)
        scenes.append(moving_scene(rng, 13, size, [names[i] for i in picked]))
    write_videos(output / "videos", scenes)
    write_vis(output / "vis", scenes)
    write_davis(output / "davis", scenes)
    write_localization(output / "localization", rng, count, size)
    write_classification(output / "classification", rng, max(count // 2, 2), size)
    write_mvbench(output / "mvbench", rng, size)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    p = command_parser(
        "pyratok_jax.evaluation.synthetic",
        "Write a constructed data set with exact ground truth for every task.",
    )
    p.add_argument("--output", required=True, type=local_path, help="folder to write")
    p.add_argument("--seed", type=int, default=0, help="of all random choices")
    p.add_argument("--count", type=int, default=4, help="videos of each part")
    p.add_argument("--size", type=int, default=64, help="side of the videos in pixels")
    p.add_argument(
        "--world", action="store_true", help="held-out videos of builtin:world in their place"
    )
    arguments = p.parse_args(argv)
    output = Path(arguments.output)
    if arguments.world:
        from pyratok_jax.evaluation.world_set import write_world as write
    else:
        write = write_all
    write(output, seed=arguments.seed, count=arguments.count, size=arguments.size)
    for folder in sorted(path for path in output.iterdir() if path.is_dir()):
        say(f"written: {folder}")


if __name__ == "__main__":
    run_cli(main)
