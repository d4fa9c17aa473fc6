"""Reconstructing videos of any length and size, in bounded memory, with their quality and rate.

A video is cut into windows of frames; each is padded, tokenised and decoded on its own, so
that memory depends on a window's size and not on the video's length. The first frame of every
window has its own tokens, so short windows cost more bits. Large windows are cut into tiles that
overlap and are blended, so that the networks' memory does not depend on the frames' size either.
Beyond a chosen length a video (each of its tiles) is streamed as one clip instead, in segments with
carried caches: without seams in time and without further first frames.
"""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from pyratok_jax.data.padding import cut_windows
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.sources.registry import MEDIA_SUFFIXES, load_folder, load_source
from pyratok_jax.data.video.files import (
    BrokenVideoError,
    VideoInfo,
    is_image,
    iter_span,
    probe,
)
from pyratok_jax.data.video.writer import MAX_SIDE, VideoWriter, size_refused
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.atomic import short_name, write_png
from pyratok_jax.io.remote import AnyPath, any_path, is_remote
from pyratok_jax.metrics.code_usage import CodeUsage
from pyratok_jax.metrics.image import Perceptual, Quality
from pyratok_jax.metrics.rate import bits_per_pixel
from pyratok_jax.nn.text_attention import TextCondition
from pyratok_jax.reports.pictures import error_map, fit_within, side_by_side
from pyratok_jax.tokenizer import Tokenizer
from pyratok_jax.tokenizer.clips import Ids
from pyratok_jax.tokenizer.tokenizer import Segment
from pyratok_jax.tokens.blocks import Block, WindowJoiner, cut_tiles, open_clip

_Part = tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]
# Windows of more pixels are cut into tiles, where nothing else is asked for.
LARGE = 6_000_000


class Tiling(NamedTuple):
    """Square tiles of `side` pixels of which neighbours share `overlap`; side 0: whole frames."""

    side: int
    overlap: int = 0

    def check(self) -> None:
        """Refuse what cannot be tiled.

        Raises:
            UserError: naming the options.
        """
        if self.side < 0 or self.overlap < 0 or (self.side and self.overlap * 2 > self.side):
            raise UserError(
                f"--overlap {self.overlap} does not suit --tile {self.side}: at most half a tile"
            )


TILES = Tiling(512, 64)
RECONSTRUCTION, SIDE_BY_SIDE = "_reconstruction", "_side_by_side"


@dataclasses.dataclass(frozen=True)
class Job:
    """One video to reconstruct; `name` is the path of its outputs, without their endings."""

    record: ClipRecord
    name: str

    def frames(self, info: VideoInfo) -> int:
        """How many frames of the file are meant, as far as its header knows."""
        if self.record.end is None:
            return info.frames
        return round((self.record.end - (self.record.start or 0.0)) * info.fps)

    @property
    def still(self) -> bool:
        """Whether it is a picture, whose outputs are pictures too."""
        return is_image(self.record.path)


def find_jobs(spec: str, output: AnyPath) -> list[Job]:
    """The inputs that `spec` names: a file, all media below a folder, or a built-in source.

    Captions are those beside the files (`NAME.txt`, `NAME.json`).

    Outputs are named after inputs, with their folders; two files of one folder that differ in
    their suffix only keep it in the name. No two inputs have outputs of one name, and names are
    short enough for the file system. Files below `output` are not inputs.

    Raises:
        UserError: nothing there.
    """
    if spec.startswith("builtin:"):
        return [Job(record, record.id) for record in load_source(spec)]
    source, results = any_path(spec), _resolved(output)
    if not source.is_dir():
        if not source.exists():
            raise BrokenVideoError(spec, "no such file")
        record = ClipRecord(source.name, spec)
        if source.suffix.lower() in MEDIA_SUFFIXES:
            (record,) = load_source(spec)  # With its caption, as in a folder.
        return [Job(record, short_name(source.stem))]
    if results == _resolved(source):
        raise UserError(f"--output {output} is the folder of the inputs; give another one")
    records = [
        record
        for record in load_folder(spec)
        if results not in _resolved(any_path(record.path)).parents
    ]
    if not records:
        raise UserError(f"--input {spec} holds no video or image outside of --output {output}")
    return [
        Job(record, name)
        for record, name in zip(records, _names([r.id for r in records]), strict=True)
    ]


def _resolved(path: AnyPath) -> AnyPath:
    """A local path without links and relative parts; addresses have none."""
    return path if is_remote(path) else Path(path).resolve()


def _names(ids: Sequence[str]) -> list[str]:
    """A name for the outputs of each input, all different.

    Args:
        ids: different paths.
    """
    stems = [str(Path(one).with_suffix("")) for one in ids]
    shared = {stem for stem, count in Counter(stems).items() if count > 1}
    names: list[str] = []
    taken: set[str] = set()
    for one, stem in zip(ids, stems, strict=True):
        path = Path(one if stem in shared else stem)
        name = str(path.with_name(short_name(path.name, one)))
        while name in taken:
            name = str(path.with_name(short_name(f"_{Path(name).name}", one)))
        names.append(name)
        taken.add(name)
    return names


class Reconstructor:
    """Runs a tokenizer over whole videos.

    Args:
        tokenizer: what to run.
        window: frames encoded at a time, valid for the VAE; None: 17, or the next valid number.
        lpips: networks by name, see `evaluation.metrics.Quality`.
        crf: compression of the written videos, 0 (lossless but for colour) to 51.
        stream_beyond: videos of more frames are streamed as one clip, in segments; None: never.
        resize: (height, width) of wide frames, see `resized_frames`; None: frames keep their size.
        lpips_every: LPIPS is measured on every n-th frame.
        fps, short_side: frames per second to keep and what the shorter side is shrunk to; 0: all.
        tiling: of the frames of every window; None: `TILES` where a window has more than `LARGE`
            pixels. Every tile of a streamed video is a stream of its own.

    Raises:
        UserError: a window that the backbone does not take, a quantiser that does not stream, or
            tiles that overlap by more than half.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        window: int | None = None,
        lpips: Mapping[str, Perceptual] | None = None,
        crf: int = 12,
        stream_beyond: int | None = None,
        resize: tuple[int, int] | None = None,
        lpips_every: int = 1,
        fps: float = 0.0,
        short_side: int = 0,
        tiling: Tiling | None = None,
    ) -> None:
        factor = tokenizer.temporal_factor
        window = tokenizer.config.vae.window() if window is None else window
        if window < 1 or (window - 1) % factor:
            near = 1 + factor * max(round((window - 1) / factor), 0)
            raise UserError(f"--window {window} must be {factor}k+1 frames; {near} would do")
        if stream_beyond is not None and not tokenizer.model.streams:
            config = tokenizer.config
            reason = f"the VAE {config.vae.family}"
            if config.vae.streams:
                reason = f"quantizer {config.quantizer!r}"
            raise UserError(
                f"--stream-beyond: a tokenizer with {reason} cannot stream clips exactly in "
                "segments; leave the option out to take windows"
            )
        if tiling is not None:
            tiling.check()
        self._tiling = tiling
        self.tokenizer, self.window, self.stream_beyond = tokenizer, window, stream_beyond
        self._lpips, self._crf, self.resize = lpips, crf, resize
        self.lpips_every = lpips_every
        self._fps, self._short_side = fps, short_side
        self._usage = self._new_usage()

    def run(
        self,
        job: Job,
        folder: Path,
        caption: str | None = None,
        advance: Callable[[int], None] = lambda frames: None,
    ) -> dict[str, Json]:
        """Write a video's reconstruction and comparison; both appear only when complete.

        Args:
            job: the input.
            folder: where to write.
            caption: the text to encode it with; None means none.
            advance: called with the number of frames whenever some are done.

        Returns:
            Quality, rate, sizes and the written files, as plain JSON values.

        Raises:
            BrokenVideoError: unreadable, or not readable to its end; nothing is written then.
        """
        begin = time.monotonic()
        info = probe(job.record.media)
        text = self.tokenizer.embed([caption])
        quality = Quality(self._lpips, lpips_every=self.lpips_every)
        usage = self._new_usage()
        rate = min(self._fps or info.fps, info.fps)
        frames = windows = 0
        paths = output_paths(job, folder)
        with _Outputs(job, paths, rate, self._crf) as outputs:
            length = round(job.frames(info) * rate / info.fps)
            streamed = self.stream_beyond is not None and length > self.stream_beyond
            for clip, reconstruction, ids in self._parts(job, text, streamed):
                outputs.write(clip, reconstruction)
                quality.add(clip, reconstruction)
                usage.add(ids)
                frames, windows = frames + len(clip), windows + 1
                advance(len(clip))
        self._usage.merge(usage)
        facts = self._facts(quality, usage, frames, clip.shape[1:3])
        return {
            "input": job.record.path,
            "caption": caption,
            **facts,
            "fps": rate,
            "windows": windows,
            "tile": self.tiling(*clip.shape[1:3]).side,
            "streamed": streamed,
            "video_seconds": frames / rate,
            "seconds": round(time.monotonic() - begin, 3),
            "outputs": [str(path) for path in paths],
        }

    def _facts(
        self, quality: Quality, usage: CodeUsage, frames: int, size: tuple[int, ...]
    ) -> dict[str, Json]:
        levels = usage.summary()
        tokens = sum(level["tokens"] for level in levels)
        return {
            "lpips": None,
            **quality.result(),
            "bpp": bits_per_pixel(
                tokens, self.tokenizer.config.bits_per_token, frames, size[0], size[1]
            ),
            "tokens": tokens,
            "utilisation": [level["utilisation"] for level in levels],
            "levels": levels,
            "frames": frames,
            "size": list(size),
        }

    def usage(self) -> list[dict[str, Json]]:
        """Code usage of all videos so far, see `CodeUsage.summary`."""
        return self._usage.summary()

    def _new_usage(self) -> CodeUsage:
        config = self.tokenizer.config
        return CodeUsage(len(config.grids), config.vocabulary_size)

    def _frames(self, job: Job) -> Iterator[np.ndarray]:
        frames = _frames(job)
        if self._fps or self._short_side:
            frames = open_clip(job.record, self._fps, self._short_side).frames
        return frames if self.resize is None else resized_frames(frames, self.resize)

    def tiling(self, height: int, width: int) -> Tiling:
        """How frames of that size are cut."""
        if self._tiling is not None:
            return self._tiling
        return TILES if self.window * height * width > LARGE else Tiling(0)

    def _parts(self, job: Job, text: TextCondition | None, streamed: bool) -> Iterator[_Part]:
        """(frames, reconstruction, ids) of each window, or of each segment of a streamed video.

        The first segment is as long as a window, later ones less its frame 0.
        """
        coder: _Windows | _Streams = (_Streams if streamed else _Windows)(self.tokenizer, text)
        later = max(self.window - 1, self.tokenizer.temporal_factor) if streamed else None
        for clip in cut_windows(self._frames(job), self.window, later):
            side, overlap = self.tiling(*clip.shape[1:3])
            joiner, ids = WindowJoiner(*clip.shape[:3]), []
            for tile in cut_tiles(clip, side, overlap):
                frames, codes = coder(tile)
                joiner.add(frames, tile.top, tile.left, overlap)
                ids.append(codes)
            yield clip, joiner.frames(), tuple(map(np.concatenate, zip(*ids, strict=True)))


class _Windows:
    """(reconstruction, ids) of a tile of a window, which is a clip of its own."""

    def __init__(self, tokenizer: Tokenizer, text: TextCondition | None) -> None:
        self._tokenizer, self._text = tokenizer, text

    def __call__(self, tile: Block) -> tuple[np.ndarray, Ids]:
        encoded = self._tokenizer.encode(tile.frames, self._text)
        return self._tokenizer.decode(encoded), encoded.batch


class _Streams:
    """(reconstruction, ids) of a tile of a segment, with the caches of those at its place before.

    Every place is one clip as long as the video: what is carried grows with the frames' size.
    """

    def __init__(self, tokenizer: Tokenizer, text: TextCondition | None) -> None:
        self._tokenizer, self._text = tokenizer, text
        self._places: dict[tuple[int, int], tuple[deque[np.ndarray], Iterator[Segment]]] = {}

    def __call__(self, tile: Block) -> tuple[np.ndarray, Ids]:
        place = tile.top, tile.left
        if place not in self._places:
            given: deque[np.ndarray] = deque()
            segments = (given.popleft() for _ in itertools.count())
            walk = self._tokenizer.reconstruct_segments(segments, self._text)
            self._places[place] = given, walk
        given, walk = self._places[place]
        given.append(tile.frames)
        segment = next(walk)
        return segment.reconstruction, segment.ids


def output_paths(job: Job, folder: Path) -> tuple[Path, Path]:
    """Where the reconstruction and the comparison of an input go."""
    suffix = ".png" if job.still else ".mp4"
    first, second = (folder / f"{job.name}{end}{suffix}" for end in (RECONSTRUCTION, SIDE_BY_SIDE))
    return first, second


def _frames(job: Job) -> Iterator[np.ndarray]:
    record = job.record
    timed = iter_span(record.media, record.start, record.end, threads=0)
    return _of_one_size((frame for _, frame in timed), record.path)


def resized_frames(
    frames: Iterable[np.ndarray], size: tuple[int, int]
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Frames as the released PyraTok code resizes them, but rounded to 8 bits.

    Bilinear without antialiasing, half-pixel centres, aspect not kept: to `size` (height, width)
    where a frame is wider than high, else to `size` turned.
    """
    for frame in frames:
        height, width = size if frame.shape[1] > frame.shape[0] else size[::-1]
        rows, columns = (
            _linear_map(now, wanted)
            for now, wanted in zip(frame.shape[:2], (height, width), strict=True)
        )
        pixels = np.einsum("ih,hwc->iwc", rows, frame.astype(np.float32), optimize=True)
        pixels = np.einsum("jw,iwc->ijc", columns, pixels, optimize=True)
        yield np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


@functools.cache
def _linear_map(now: int, wanted: int) -> np.ndarray:
    """Weights (wanted, now) of linear interpolation along one axis."""
    at = np.clip((np.arange(wanted) + 0.5) * now / wanted - 0.5, 0, now - 1)
    low = np.floor(at).astype(int)
    weights = np.zeros((wanted, now), np.float32)
    np.add.at(weights, (np.arange(wanted), low), 1 - (at - low))
    np.add.at(weights, (np.arange(wanted), np.minimum(low + 1, now - 1)), at - low)
    return weights


def _of_one_size(frames: Iterable[np.ndarray], name: str) -> Iterator[np.ndarray]:
    """The frames, as long as they have the size of the first.

    Raises:
        BrokenVideoError: one does not.
    """
    shape = None
    for number, frame in enumerate(frames):
        shape = shape or frame.shape
        if frame.shape != shape:
            sizes = f"{shape[1]}x{shape[0]} to {frame.shape[1]}x{frame.shape[0]}"
            raise BrokenVideoError(name, f"its size changes from {sizes} at frame {number}")
        yield frame


class _Outputs:
    """The two files of one input, written frame by frame, or at the end for a picture."""

    def __init__(self, job: Job, paths: tuple[Path, Path], fps: float, crf: int) -> None:
        self._still, self._paths, self._path = job.still, paths, job.record.path
        self._pictures: list[np.ndarray] = []
        self._stack = contextlib.ExitStack()
        self._writers = [VideoWriter(path, fps=fps, crf=crf) for path in paths]

    def __enter__(self) -> "_Outputs":
        if not self._still:
            for writer in self._writers:
                self._stack.enter_context(writer)
        return self

    def write(self, clip: np.ndarray, reconstruction: np.ndarray) -> None:
        """Append a window."""
        errors = error_map(clip, reconstruction)
        compared = fit_within(side_by_side([clip, reconstruction, errors]), MAX_SIDE)
        if not self._still and (reason := size_refused(*clip.shape[1:3])) is not None:
            raise BrokenVideoError(self._path, reason)
        videos = (reconstruction, compared)
        if self._still:
            self._pictures = [video[0] for video in videos]
            return
        for writer, video in zip(self._writers, videos, strict=True):
            for frame in video:
                writer.write(frame)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if kind is None:
            for path, picture in zip(self._paths, self._pictures, strict=False):
                write_png(path, picture)
