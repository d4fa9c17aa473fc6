"""What another tokenizer made of the same clips, read from files, and checked against the clips.

A file belongs to a clip by the clip's id: FOLDER/ID with another or a further suffix. `.npy` holds
uint8 (t, h, w, 3) exactly; videos and pictures are decoded.
"""

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyratok_jax.data.video.files import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    is_image,
    iter_span,
    read_image,
)
from pyratok_jax.errors import UserError, short
from pyratok_jax.evaluation.models.reconstructors import Reconstructed
from pyratok_jax.evaluation.task import BrokenItemError

_SUFFIXES = (".npy", *VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
_PIXELS, _FRAMES = 64, 33  # to which a clip is thinned out for comparing orders of frames
_CLEARLY = 0.25  # A reordering that leaves less than this of the squared error is no accident.


class ReconstructionFiles:
    """Reconstructions that another tokenizer has written.

    Attributes:
        checkpoint_hash: of name, rate, and the names and sizes of the files.
        vocabulary: 1, as it has no ids here.
    """

    vocabulary = 1

    def __init__(self, folder: str, rate: float | None, name: str, clips: Sequence[str]) -> None:
        """Find the file of every clip.

        Args:
            folder: where they are.
            rate: bits per pixel of the tokens; None of a continuous latent.
            name: of the method.
            clips: ids of the clips to be compared.

        Raises:
            UserError: no such folder, or a clip has no file.
        """
        self._folder, self._rate = Path(folder), rate
        if not self._folder.is_dir():
            raise UserError(f"--reconstructions {folder} is no folder")
        found = {clip: self._find(clip) for clip in clips}
        missing = [clip for clip, file in found.items() if file is None]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(clips)} clips have no file in --reconstructions {folder}; "
                f"the first is {short(missing[0], 200)}: expected its name with one of "
                f"{', '.join(_SUFFIXES)}"
            )
        self._files = {clip: file for clip, file in found.items() if file is not None}
        digest = hashlib.sha256(f"{name}\0{rate}\n".encode())
        for clip, file in self._files.items():
            digest.update(f"{clip}\0{file.stat().st_size}\n".encode(errors="surrogatepass"))
        self.checkpoint_hash = digest.hexdigest()

    def _find(self, clip: str) -> Path | None:
        inside = clip.lstrip("/")  # An absolute path would lead out of the folder.
        stems = dict.fromkeys((inside, str(Path(inside).with_suffix(""))))
        names = [inside, *(f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES)]
        files = (self._folder / name for name in names)
        return next((file for file in files if file.is_file()), None)

    def reconstruct(self, video: np.ndarray, caption: str | None, name: str = "") -> Reconstructed:
        """The file of the clip `name`, if it fits the clip.

        Raises:
            BrokenItemError: it does not.
            BrokenVideoError: it cannot be decoded.
        """
        file = self._files[name]
        found = _read(file, len(video))
        try:
            check_match(video, found)
        except ValueError as error:
            raise BrokenItemError(f"{file}: {error}") from error
        bits = None if self._rate is None else self._rate * found[..., 0].size
        return Reconstructed(found, (), 0, bits)

    def embed(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """None: there are no ids."""
        return []


def _read(file: Path, frames: int) -> np.ndarray:
    """The clip in a file, uint8; not much longer than `frames`, which is refused anyway."""
    if file.suffix == ".npy":
        try:
            array = np.load(file, allow_pickle=False, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise BrokenItemError(f"{file}: no array ({short(str(error), 200)})") from error
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
            raise BrokenItemError(
                f"{file}: expected uint8 (t, h, w, 3), found {array.dtype} {array.shape}"
            )
        return np.asarray(array[: frames + 1])
    if is_image(str(file)):
        return read_image(str(file))[None]
    shown = [frame for _, frame in itertools.islice(iter_span(str(file)), frames + 1)]
    if len({frame.shape for frame in shown}) != 1:
        raise BrokenItemError(f"{file}: its frames are of several sizes")
    return np.stack(shown)


def check_match(original: np.ndarray, found: np.ndarray) -> None:
    """Refuse a reconstruction (uint8, t h w 3) of another length, size, range or order of frames.

    Raises:
        ValueError: what differs.
    """
    if found.shape[1:3] != original.shape[1:3]:
        sizes = (f"{x.shape[2]}x{x.shape[1]}" for x in (found, original))
        raise ValueError("frames of {} pixels, the clip has {}".format(*sizes))
    if len(found) != len(original):
        more = "more than " if len(found) > len(original) else ""
        raise ValueError(f"{more}{min(len(found), len(original))} frames, not {len(original)}")
    if found.max() <= 1 and original.max() > 8:
        raise ValueError("no value above 1; store 0 to 255")
    step = -(-max(original.shape[1:3]) // _PIXELS)
    first, second = (x[:_FRAMES, ::step, ::step].astype(np.float32) for x in (original, found))
    whole = original.shape[0] <= _FRAMES
    error = _squared(first, second)
    found_as = {
        "red and blue are exchanged": _squared(first, second[..., ::-1]),
        "values are in 16..235": _squared(first, (second - 16) * (255 / 219)),
        "values were stretched from 16..235": _squared(first, second * (219 / 255) + 16),
    }
    if len(first) > 1:
        found_as["frames are late by one"] = _squared(first[:-1], second[1:])
        found_as["frames are early by one"] = _squared(first[1:], second[:-1])
        if whole:
            found_as["frames are in reverse order"] = _squared(first, second[::-1])
    name, least = min(found_as.items(), key=lambda entry: entry[1])
    if least < _CLEARLY * error:
        raise ValueError(f"{name}: so corrected, it is much closer to the clip")


def _squared(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.mean(np.square(first - second)))
