"""A trained tokenizer as one object: captions and video to token ids, ids to video.

Everything that is not training goes through it: reconstruction, token export, evaluation. Its
working folder holds `tokenizer.json` (sizes, frozen parts by specification and hash) and
`checkpoints/` (what training changed).
"""

import copy
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.checkpoints.pretrained import load_backbone, load_language
from pyratok_jax.checkpoints.weights import weights_hash
from pyratok_jax.checkpoints.working_folder import newest_step, read_parameters
from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.errors import UserError
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.models.language.text import TextEncoder, mean_embedding
from pyratok_jax.models.pyratok.lfq import ids_to_bits
from pyratok_jax.models.pyratok.model import PyraTok, PyraTokConfig
from pyratok_jax.nn import partitioning
from pyratok_jax.nn.lora import without_adapters
from pyratok_jax.nn.text_attention import TextCondition

FORMAT = "pyratok-jax-tokenizer-1"
DESCRIPTION = "tokenizer.json"
ROWS = "rows"


def to_model_range(video: UInt8[Array, "*n"]) -> Float[Array, "*n"]:
    """uint8 pixels to [-1, 1]."""
    return video.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(video: Float[Array, "*n"]) -> UInt8[Array, "*n"]:
    """[-1, 1] (clamped) to uint8 pixels, rounded to nearest."""
    return jnp.round((jnp.clip(video, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def tokenize_step(graph: Any) -> Callable[..., tuple[Array, ...]]:
    """(state, uint8 video, text) -> ids of every level, for a `PyraTok` split by `nnx.split`."""

    def tokenize(state: Any, video: Array, text: TextCondition | None) -> tuple[Array, ...]:
        return nnx.merge(graph, state).tokenize(to_model_range(video), text)

    return tokenize


def detokenize_step(graph: Any) -> Callable[..., Array]:
    """(state, ids of every level) -> uint8 video, for a `PyraTok` split by `nnx.split`."""

    def detokenize(state: Any, ids: tuple[Array, ...]) -> Array:
        return to_pixels(nnx.merge(graph, state).detokenize(ids))

    return detokenize


class Tokenizer:
    """Video to token ids and back, on the host's arrays.

    `decode(encode(video))` is the reconstruction everywhere; it is the same, bit for bit, after
    the ids went through a file.
    """

    def __init__(
        self,
        model: PyraTok,
        *,
        text: TextEncoder | None = None,
        captions: CaptionTokenizer | None = None,
        alignment: Alignment | None = None,
        checkpoint_hash: str = "",
        folder: Path | None = None,
    ):
        """Wrap the modules; without `text` every caption counts as none."""
        self.model, self.config = model, model.config
        self.text, self.captions, self.alignment = text, captions, alignment
        self.checkpoint_hash, self.folder = checkpoint_hash, folder
        graph, self._state = nnx.split(model)

        def ceiling(state: Any, video: Array) -> Array:
            vae = nnx.merge(graph, state).vae
            vae.encoder = without_adapters(vae.encoder)
            return to_pixels(vae.decode(vae.encode(to_model_range(video)).mean))

        self._tokenize: Callable[..., Any] = jax.jit(tokenize_step(graph))
        self._detokenize: Callable[..., Any] = jax.jit(detokenize_step(graph))
        self._ceiling = jax.jit(ceiling)
        self._tokenize_next = jax.jit(
            lambda state, video, text, caches: nnx.merge(graph, state).tokenize_next(
                to_model_range(video), text, caches
            )
        )

        def detokenize_next(state: Any, ids: tuple[Array, ...], caches: Any) -> tuple[Array, Any]:
            video, caches = nnx.merge(graph, state).detokenize_next(ids, caches)
            return to_pixels(video), caches

        self._detokenize_next = jax.jit(detokenize_next)
        self._embed: Any = None
        if text is not None:
            text_graph, text_state = nnx.split(text)
            run = jax.jit(lambda state, ids, mask: nnx.merge(text_graph, state)(ids, mask))
            self._embed = functools.partial(run, text_state)

    def embed(self, captions: Sequence[str | None]) -> TextCondition | None:
        """Text embeddings (b, l, d) of captions; None where there is no text encoder.

        A batch without any caption skips the language model; the levels see the learned null
        embedding, as they do in a mixed batch.
        """
        if self.text is None or self.captions is None:
            return None
        ids, mask = self.captions(list(captions))
        if not mask.any():
            zeros = jnp.zeros((*ids.shape, self.config.text_width), jnp.float32)
            return TextCondition(zeros, jnp.asarray(mask))
        text = self._embed(jnp.asarray(ids), jnp.asarray(mask))
        return TextCondition(text.embeddings.astype(jnp.float32), text.mask)

    def encode(
        self,
        video: UInt8[np.ndarray, "b t h w 3"],
        captions: Sequence[str | None] | TextCondition | None = None,
    ) -> tuple[np.ndarray, ...]:
        """Token ids uint32 (b, t, h, w) of every level.

        Args:
            video: already padded: 4k+1 frames, sides multiples of `config.spatial_multiple`.
            captions: one per clip, or their embeddings; None: no captions.

        Raises:
            ValueError: a size that does not fit.
        """
        if captions is None:
            captions = [None] * len(video)
        text = captions if isinstance(captions, TextCondition) else self.embed(captions)
        ids = self._tokenize(self._state, jnp.asarray(video), text)
        return tuple(np.asarray(level) for level in ids)

    def decode(self, ids: Sequence[np.ndarray]) -> UInt8[np.ndarray, "b t h w 3"]:
        """Video of token ids of all levels."""
        levels = tuple(jnp.asarray(level, jnp.uint32) for level in ids)
        return np.asarray(self._detokenize(self._state, levels))

    def reconstruct_segments(
        self, segments: Iterable[UInt8[np.ndarray, "t h w 3"]], text: TextCondition | None = None
    ) -> Iterator[tuple[UInt8[np.ndarray, "t h w 3"], tuple[np.ndarray, ...]]]:
        """Reconstruct one long clip piece by piece: yields each segment's video and ids.

        The clip is one clip: its ids are those of `encode` on the whole (up to rounding), and what
        comes out is what `decode` makes of them all. Only caches go from segment to segment.

        Args:
            segments: padded; the first has 4k+1 frames, later ones a multiple of 4.
            text: embedded caption, one row.

        Raises:
            ValueError: a quantiser that does not stream (`PyraTok.streams`).
        """
        if not self.model.streams:
            raise ValueError(f"quantizer {self.config.quantizer!r} cannot walk a clip in chunks")
        seen = shown = None
        for segment in segments:
            ids, seen = self._tokenize_next(self._state, jnp.asarray(segment[None]), text, seen)
            ids = tuple(jnp.asarray(level, jnp.uint32) for level in ids)
            video, shown = self._detokenize_next(self._state, ids, shown)
            yield np.asarray(video[0]), tuple(np.asarray(level) for level in ids)

    def reconstruct_continuous(
        self, video: UInt8[np.ndarray, "b t h w 3"]
    ) -> UInt8[np.ndarray, "b t h w 3"]:
        """What the frozen VAE makes of a padded video without any quantisation: the ceiling."""
        return np.asarray(self._ceiling(self._state, jnp.asarray(video)))

    def split_rows(self, devices: Sequence[Any]) -> "Tokenizer":
        """This tokenizer with the height of every frame split over devices, for 4K and 8K.

        No device holds a whole frame, and there are no seams (`models.rows`). Values differ from
        the plain tokenizer's by rounding, so that a rare code may. Padded heights must be multiples
        of `rows_multiple(len(devices))`.

        Raises:
            UserError: in `encode` and `decode`, for other heights.
        """
        mesh = Mesh(np.asarray(devices), (ROWS,), axis_types=(AxisType.Auto,))
        other = copy.copy(self)
        graph, state = nnx.split(self.model)
        other._state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        rows_sharding = NamedSharding(mesh, PartitionSpec(None, None, ROWS))

        def split(step: Callable[..., Any]) -> Callable[..., Any]:
            compiled = jax.jit(step)

            def run(state: Any, frames: Any, *more: Any) -> Any:
                self._check_rows(frames, mesh.size)
                frames = jax.tree.map(lambda x: _rows_or_whole(x, rows_sharding), frames)
                with jax.set_mesh(mesh), partitioning.over_devices(partitioning.Split(height=ROWS)):
                    return compiled(state, frames, *more)

            return run

        other._tokenize, other._detokenize = (
            split(tokenize_step(graph)),
            split(detokenize_step(graph)),
        )
        return other

    def _check_rows(self, frames: Any, devices: int) -> None:
        """Refuse a video, or ids of one, whose height does not split over so many devices."""
        levels = frames if isinstance(frames, tuple) else None
        height = levels[0].shape[2] * self.config.grids[0][1] if levels else frames.shape[2]
        if height % self.rows_multiple(devices):
            raise UserError(
                f"a padded height of {height} does not split over {devices} devices, it must be a "
                f"multiple of {self.rows_multiple(devices)}; take fewer devices (--spatial), or "
                "tokens that were made for as many"
            )

    def rows_multiple(self, devices: int) -> int:
        """What padded heights must be a multiple of when so many devices share a frame."""
        return math.lcm(self.config.spatial_multiple, self.config.latent_stride[1] * devices)

    def code_embeddings(self, ids: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """E(q) of every level, float32 (b, t, h, w, D), in the language model's width.

        Without an alignment module the +-1 codes themselves.
        """
        codes = [ids_to_bits(jnp.asarray(x, jnp.uint32), self.config.bits) for x in ids]
        if self.alignment is not None:
            codes = [self.alignment.embed(q, level) for level, q in enumerate(codes)]
        return tuple(np.asarray(q) for q in codes)

    def text_features(self, captions: Sequence[str]) -> np.ndarray:
        """Mean embedding of each text, float32 (n, D).

        Raises:
            UserError: this tokenizer has no text encoder.
        """
        text = self.embed(captions)
        if text is None:
            raise UserError("this tokenizer has no language model: there are no text features")
        return np.asarray(mean_embedding(text))


def local_devices(count: int) -> list[Any]:
    """The first devices of this host.

    Raises:
        UserError: it has fewer.
    """
    devices = jax.local_devices()
    if not 1 <= count <= len(devices):
        raise UserError(f"--spatial {count}: this host has {len(devices)} devices")
    return devices[:count]


def _rows_or_whole(x: Array, sharding: NamedSharding) -> Array:
    """An array by rows where they divide; coarse token grids may have too few."""
    parts = sharding.mesh.size
    divides = x.shape[2] % parts == 0
    return jax.device_put(x, sharding if divides else NamedSharding(sharding.mesh, PartitionSpec()))


def write_description(
    workdir: Path,
    config: PyraTokConfig,
    *,
    backbone: dict[str, str],
    language_model: dict[str, Any] | None,
    alignment: dict[str, Any] | None,
) -> None:
    """Write `tokenizer.json` into a working folder, atomically.

    Args:
        workdir: the folder.
        config: sizes.
        backbone: spec and sha256.
        language_model: spec, sha256, length (tokens per caption) and bits (of its kernels).
        alignment: arguments of `Alignment`.
    """
    values = {
        "format": FORMAT,
        "tokenizer": config.to_dict(),
        "backbone": backbone,
        "language_model": language_model,
        "alignment": alignment,
    }
    scratch = workdir / f".{DESCRIPTION}.tmp"
    scratch.write_text(json.dumps(values, indent=1) + "\n")
    os.replace(scratch, workdir / DESCRIPTION)


def load_tokenizer(checkpoint: str | Path) -> Tokenizer:
    """The tokenizer in a working folder (its newest checkpoint) or in its `checkpoints/STEP`.

    Raises:
        UserError: no such folder, no tokenizer's, or frozen weights that are not those it was
            trained with.
    """
    workdir, step = _locate(Path(checkpoint))
    description = _read_description(workdir)
    config = PyraTokConfig.from_dict(description["tokenizer"])
    backbone = load_backbone(description["backbone"]["spec"])
    _same(workdir, "backbone", description["backbone"], backbone.sha256)
    arrays = read_parameters(workdir, step)
    names = {f"tokenizer.vae.{name}": jnp.asarray(v) for name, v in backbone.arrays.items()}
    model = _filled(lambda: PyraTok(config, rngs=nnx.Rngs(0)), "tokenizer", arrays, names, workdir)
    text, captions, language_hash = None, None, ""
    if description["language_model"]:
        said = description["language_model"]
        language = load_language(said["spec"], bits=said.get("bits", 0))
        _same(workdir, "language model", said, language.sha256)
        text, captions = (
            TextEncoder(language.model),
            CaptionTokenizer(language.tokenizer, said["length"]),
        )
        language_hash = language.sha256
    alignment = None
    if description["alignment"]:
        values = description["alignment"]
        alignment = _filled(
            lambda: Alignment(**values, rngs=nnx.Rngs(0)), "alignment", arrays, {}, workdir
        )
    own = {k: np.asarray(v) for k, v in arrays.items()}
    parts = [weights_hash(own), backbone.sha256, language_hash, json.dumps(config.to_dict())]
    digest = hashlib.sha256("|".join(parts).encode()).hexdigest()
    return Tokenizer(
        model,
        text=text,
        captions=captions,
        alignment=alignment,
        checkpoint_hash=digest,
        folder=workdir,
    )


def _locate(path: Path) -> tuple[Path, int]:
    """(working folder, step) of what the user named."""
    if not path.exists():
        raise UserError(f"--checkpoint {path}: no such folder; name the --workdir of a training")
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path.parent.parent, int(path.name)
    step = newest_step(path) if path.is_dir() else None
    if step is None:
        raise UserError(f"--checkpoint {path} holds no checkpoint; name a training's --workdir")
    return path, step


def _read_description(workdir: Path) -> dict[str, Any]:
    path = workdir / DESCRIPTION
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise UserError(f"{path} is of format {values['format']}, expected {FORMAT}")
    except OSError as error:
        raise UserError(f"{workdir} has no {DESCRIPTION}: it holds no tokenizer") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no description of a tokenizer ({error})") from error
    return values


def _same(workdir: Path, what: str, said: dict[str, str], found: str) -> None:
    if said["sha256"] != found:
        raise UserError(
            f"the {what} {said['spec']} is not the one that {workdir} was trained with (SHA-256 "
            f"{found[:12]}, expected {said['sha256'][:12]}); put the original weights back"
        )


def _filled(make: Any, prefix: str, arrays: Any, extra: Any, workdir: Path) -> Any:
    """The module that `make` describes, its arrays taken by name from the checkpoint."""
    partition = Partition(nnx.eval_shape(make), lambda name, variable: True)
    values = {}
    for name, shape in partition.trainable.items():
        key = f"{prefix}.{name}"
        value = arrays.get(key, extra.get(key))
        if value is None or tuple(value.shape) != tuple(shape.shape):
            raise UserError(f"{workdir}: its checkpoint does not fit its {DESCRIPTION} at {key}")
        values[name] = value
    return partition.merge(values)
