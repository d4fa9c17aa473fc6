"""Writing frames as an H.264 file that is there when it is whole."""

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from jaxtyping import UInt8

from pyratok_jax.errors import UserError
from pyratok_jax.io.atomic import atomic_path

# Matrices of swscale to the codes of ITU-T H.273: BT.709, and BT.601 with 525 lines.
_MATRIX = {Colorspace.ITU709: 1, Colorspace.ITU601: 6}


def _swscale_matrix(height: int, width: int) -> Colorspace:
    """BT.709 for HD, BT.601 below: what players take for files without tags, as `display` does."""
    return Colorspace.ITU709 if width >= 1280 or height > 576 else Colorspace.ITU601


MAX_SIDE = 16384  # Pixels that the encoder takes.


def size_refused(height: int, width: int) -> str | None:
    """Why frames of a size cannot be written; None where they can."""
    if max(height, width) <= MAX_SIDE:
        return None
    return f"frames of {width}x{height} do not fit H.264, which holds at most {MAX_SIDE} a side"


class _Empty(Exception):
    """No frame was written."""


class VideoWriter:
    """Writes frames to an H.264 file that appears under its name only when it is complete.

    Use as a context manager; `write` takes uint8 (h, w, 3). An exception inside, or no frame at
    all, leaves no file behind. Files are tagged with their colour matrix (BT.709 for HD, BT.601
    below). Odd sizes are stored as 4:4:4, since 4:2:0 needs even sides. `reproducible` ones have
    the same bytes in every process, for up to a fifth more of them and the time of one thread.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        fps: float,
        crf: int = 18,
        preset: str = "medium",
        reproducible: bool = False,
    ) -> None:
        self.path = Path(path)
        self._fps, self._crf, self._preset, self._reproducible = fps, crf, preset, reproducible
        self._opened = contextlib.ExitStack()
        self._scaler = VideoReformatter()
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def __enter__(self) -> "VideoWriter":
        scratch = self._opened.enter_context(atomic_path(self.path))
        options = {"movflags": "faststart"}
        self._container = av.open(os.fspath(scratch), "w", format="mp4", options=options)
        return self

    def write(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        """Append one frame; all frames of a file have the size of the first.

        Raises:
            UserError: it is larger than the encoder takes.
        """
        assert self._container is not None
        if self._stream is None:
            self._stream = self._add_stream(self._container, *frame.shape[:2])
        made = self._scaler.reformat(
            av.VideoFrame.from_ndarray(frame, "rgb24"), format=self._stream.pix_fmt,
            dst_colorspace=_swscale_matrix(*frame.shape[:2]), dst_color_range=ColorRange.MPEG,
        )  # fmt: skip
        self._container.mux(self._stream.encode(made))

    def _add_stream(
        self, container: av.container.OutputContainer, height: int, width: int
    ) -> av.VideoStream:
        if (reason := size_refused(height, width)) is not None:
            raise UserError(f"cannot write {self.path}: {reason}; use a smaller size")
        rate = Fraction(self._fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        # What is not tagged a player guesses from the size, not all of them alike.
        context, matrix = stream.codec_context, _MATRIX[_swscale_matrix(height, width)]
        context.color_range, context.colorspace = ColorRange.MPEG, matrix
        context.color_primaries = context.color_trc = matrix
        stream.options = {"crf": str(self._crf), "preset": self._preset}
        if self._reproducible:
            # Output depends on the number of threads. x264's AVX-512 code for the macroblock tree
            # reads memory that was not written: now and then it chose other quantisers.
            stream.codec_context.thread_count = 1
            stream.options |= {"x264-params": "mbtree=0"}
        return stream

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._container is not None
        with contextlib.suppress(_Empty), self._opened:
            # Inside the block of `atomic_path`: an exception here leaves no file behind.
            with contextlib.closing(self._container):
                if self._stream is not None and kind is None:
                    self._container.mux(self._stream.encode())
            if error is not None:
                raise error
            if self._stream is None:
                raise _Empty
