"""Opening media: what counts as a source, what may be opened, and which stream is shown."""

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from typing import Any

import av
from av.stream import Disposition

from pyratok_jax.data.video.containers import cut_off
from pyratok_jax.data.video.display import UnshowableError, unshowable
from pyratok_jax.errors import UserError, short, storage_reason
from pyratok_jax.io import remote

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ogv", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
IMAGE_SIGNATURES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"BM")
NAME_OF_BYTES = "<bytes>"

# FFmpeg may open these containers alone: others (concat, hls, dash, sdp, rtsp) name further files
# or addresses to open.
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpeg", "mpegts", "mpegvideo", "ogg", "gif",
)  # fmt: skip
_OPTIONS = {"format_whitelist": ",".join(DEMUXERS), "protocol_whitelist": "none"}
_STILL_CODECS = ("mjpeg", "png", "bmp", "webp", "tiff")
MAX_TEXT_BYTES = 1 << 20  # Of a caption.
MAX_PIXELS = 1 << 27  # Of a picture or a frame.

# What PyAV raises for damaged files: metadata, absent decoders, absurd sizes.
_DAMAGED = (ValueError, TypeError, AttributeError, OverflowError, ImportError)

VideoSource = str | os.PathLike | bytes


class BrokenVideoError(UserError):
    """A file that is not a readable video, or not readable to its end.

    `path` is the file and `reason` says what is wrong with it, without the file's name;
    `transient` tells that the file is on remote storage and may be there at the next attempt.
    """

    def __init__(self, path: str, reason: str, transient: bool = False) -> None:
        reason = short(reason)
        super().__init__(
            f"cannot read {path}: {reason}; expected a playable video or image: "
            "check the file or leave it out"
        )
        self.path = path
        self.reason = reason
        self.transient = transient

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.reason, self.transient)


def name_of(source: VideoSource) -> str:
    """How messages call a source."""
    return NAME_OF_BYTES if isinstance(source, bytes) else os.fspath(source)


def is_remote(source: VideoSource) -> bool:
    """Whether a path is on remote storage."""
    return not isinstance(source, bytes) and remote.is_remote(source)


def is_image(source: VideoSource) -> bool:
    """Whether it is a still image: a path by its suffix, bytes by their first ones."""
    if isinstance(source, bytes):
        webp = source[:4] == b"RIFF" and source[8:12] == b"WEBP"
        return webp or source.startswith(IMAGE_SIGNATURES)
    return name_of(source).lower().endswith(IMAGE_SUFFIXES)


@contextlib.contextmanager
def _readable(source: VideoSource) -> Iterator[Any]:
    """The source as what PyAV opens: always a seekable file object.

    FFmpeg gets no name at all: it would take some for addresses, patterns or devices.

    Raises:
        BrokenVideoError: not a regular file, or an address that is no remote storage.
        UnreachableError: remote storage that does not answer.
    """
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    check_regular(source)
    if is_remote(source):
        with remote.open_path(source).open("rb") as file:
            yield file
    else:
        with open(os.path.abspath(source), "rb") as local:
            yield local


def check_regular(source: str | os.PathLike) -> None:
    """Refuse pipes, devices, sockets, folders, and addresses that are no remote storage.

    Raises:
        BrokenVideoError: saying which.
        FileNotFoundError: no such file.
    """
    name = os.fspath(source)
    if remote.is_remote(name):
        if name.partition("://")[0] not in remote.SCHEMES:
            raise BrokenVideoError(name, f"only files and {', '.join(remote.SCHEMES)} are opened")
        return
    if "\0" in name:
        raise BrokenVideoError(name, "no file's name holds a zero byte")
    mode = os.stat(name).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
        raise BrokenVideoError(name, f"it is {kind}, not a regular file")


@contextlib.contextmanager
def opened(source: VideoSource, threads: int = 1) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and first video stream; whatever fails inside becomes our error.

    Raises:
        BrokenVideoError: unreadable, or no video stream.
        UnreachableError: remote storage that does not answer.
    """
    name = name_of(source)
    try:
        with _readable(source) as readable, _open(name, readable) as container:
            stream = _video_stream(name, container)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = threads
            yield container, stream
    except FileNotFoundError as error:
        raise BrokenVideoError(name, "no such file", is_remote(source)) from error
    except av.error.FFmpegError as error:
        raise BrokenVideoError(name, error.strerror or type(error).__name__) from error
    except OSError as error:
        raise BrokenVideoError(name, error.strerror or str(error), is_remote(source)) from error
    except UnshowableError as error:
        raise BrokenVideoError(name, str(error)) from error
    except Exception as error:
        reason = storage_reason(error) if is_remote(source) else None
        if reason is not None:
            raise BrokenVideoError(name, reason, transient=True) from error
        if not isinstance(error, _DAMAGED):
            raise
        raise BrokenVideoError(name, f"{type(error).__name__}: {error}") from error


def _open(name: str, readable: Any) -> Any:
    """PyAV's container, which follows no reference to another file.

    Raises:
        BrokenVideoError: the file ends before what its boxes or elements say.
    """
    if not remote.is_remote(name) and cut_off(readable):
        raise BrokenVideoError(name, "it is cut off: its header states more bytes than it has")
    readable.seek(0)
    return av.open(
        readable, container_options=_OPTIONS, metadata_errors="replace", buffer_size=1 << 17
    )


def _codec_of(stream: Any) -> str:
    return "" if stream.codec_context is None else stream.codec_context.codec.name


def _video_stream(name: str, container: Any) -> Any:
    """The stream that a player shows: never a cover picture, by preference the default one.

    Of equals the first that is no still picture: some muxers write covers as common streams.
    """
    hidden = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [s for s in container.streams.video if not s.disposition & hidden]
    if not streams:
        raise BrokenVideoError(name, "it holds no video stream")
    streams = [s for s in streams if s.disposition & Disposition.default] or streams
    stream = next((s for s in streams if _codec_of(s) not in _STILL_CODECS), streams[0])
    context = stream.codec_context
    if context is None:
        raise BrokenVideoError(name, "no decoder knows its video stream")
    if context.width * context.height > MAX_PIXELS:
        size = f"{context.width}x{context.height}"
        raise BrokenVideoError(name, f"its frames of {size} have more than {MAX_PIXELS} pixels")
    reason = unshowable(context.colorspace, context.color_trc, context.color_primaries)
    if reason is not None:
        raise BrokenVideoError(name, reason)
    return stream
