"""What encodes and decodes clips: a trained tokenizer, baselines, files of other tokenizers.

What another tokenizer made of the same clips is read from files and checked against the clips. A
file belongs to a clip by the clip's id: FOLDER/ID with another or a further suffix. `.npy` holds
uint8 (t, h, w, 3) exactly; videos and pictures are decoded.
"""

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from pyratok_jax.assets.fetch import sha256_of
from pyratok_jax.data.video.files import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    is_image,
    iter_span,
    read_image,
)
from pyratok_jax.errors import UserError, short
from pyratok_jax.evaluation.task import BrokenItemError

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import TokenizerLike


class Reconstructed(NamedTuple):
    """A decoded clip, uint8 like its original.

    Attributes:
        video: of the original's size.
        ids: token ids of every level; empty where they are not known.
        bits: of a token.
        stated: bits of the whole clip, as its maker says, where there are no ids.
    """

    video: np.ndarray
    ids: tuple[np.ndarray, ...]
    bits: int
    stated: float | None = None

    @property
    def clip_bits(self) -> float | None:
        """Bits of the whole clip; None where neither ids nor a statement tell."""
        if not self.ids:
            return self.stated
        return float(self.bits * sum(x.size for x in self.ids))


class Reconstructor(Protocol):
    """Encodes and decodes clips."""

    checkpoint_hash: str
    vocabulary: int

    def reconstruct(self, video: np.ndarray, caption: str | None, name: str = "") -> Reconstructed:
        """A clip uint8 (t, h, w, 3) encoded and decoded; `name` is the clip's id."""
        ...

    def embed(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Code embeddings (t, h, w, d) of the ids of every level; empty without embeddings."""
        ...


class TokenizerReconstructor:
    """A tokenizer; clips are padded as its grids need and cropped back.

    Args:
        tokenizer: what to run.
        window: frames at least that are encoded together, where a clip has more (see
            `VideoVAEConfig.window`); 0: whole clips.
    """

    def __init__(self, tokenizer: "TokenizerLike", window: int = 0) -> None:
        self.tokenizer, self.checkpoint_hash = tokenizer, tokenizer.checkpoint_hash
        self._window = tokenizer.config.vae.window(window) if window else 0
        self.vocabulary = tokenizer.config.vocabulary_size

    def reconstruct(self, video: np.ndarray, caption: str | None, name: str = "") -> Reconstructed:
        """Encode and decode one clip."""
        videos, ids, bits = [], [], 0
        step = self._window or len(video)
        for start in range(0, len(video), step):
            encoded = self.tokenizer.encode(video[start : start + step], caption)
            videos.append(self.tokenizer.decode(encoded))
            ids.append(encoded.ids)
            bits = encoded.bits_per_token
        levels = tuple(np.concatenate(level) for level in zip(*ids, strict=True))
        return Reconstructed(np.concatenate(videos), levels, bits)

    def embed(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Code embeddings (t, h, w, d) of the ids of every level."""
        embedded = self.tokenizer.code_embeddings([x[None] for x in ids])
        return [np.asarray(level[0], np.float32) for level in embedded]


class BaselineReconstructor:
    """`oracle` returns the clip and names every pixel's code; `random` returns noise."""

    vocabulary = 256

    def __init__(self, kind: str) -> None:
        self.kind, self.checkpoint_hash = kind, kind

    def reconstruct(self, video: np.ndarray, caption: str | None, name: str = "") -> Reconstructed:
        """The clip itself, or noise of its size."""
        rebuilt = video
        if self.kind == "random":
            rebuilt = np.random.default_rng(0).integers(0, 256, video.shape, np.uint8)
        return Reconstructed(rebuilt, (rebuilt[..., 0].astype(np.uint32),), 8)

    def embed(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """None: its codes have no embedding."""
        return []


_SUFFIXES = (".npy", *VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
_PIXELS, _FRAMES = 64, 33  # to which a clip is thinned out for comparing orders of frames
_CLEARLY = 0.25  # A reordering that leaves less than this of the squared error is no accident.


class ReconstructionFiles:
    """Reconstructions that another tokenizer has written.

    Attributes:
        checkpoint_hash: of name, rate, and the names of the clips and contents of their files.
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
            digest.update(f"{clip}\0{sha256_of(file)}\n".encode(errors="surrogatepass"))
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
