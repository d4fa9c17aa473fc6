"""Stored features of the world: what the frozen networks make of videos and captions, made once.

A video becomes the latent and stage features of the frozen encoder, its caption the final states of
the language model. Trainings of the levels on them then cost neither. Parts of a set are kept in
files named after everything that they depend on.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from pyratok_jax.checkpoints.partition import build_module
from pyratok_jax.checkpoints.pretrained import Backbone, Language, load_backbone, load_language
from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.data.sources.builtin import demo_clips, film_clips, street_clips
from pyratok_jax.data.world.films import WorldFilm
from pyratok_jax.data.world.scenes import KINDS, Scene, draw_backdrop, draw_thing
from pyratok_jax.data.world.sentences import caption
from pyratok_jax.models.language.model import TextEncoder
from pyratok_jax.models.masking import patch_mask
from pyratok_jax.models.video_vae import VideoVAE, build_vae
from pyratok_jax.nn.text_attention import TextCondition
from pyratok_jax.tokenizer import Tokenizer, to_model_range

FRAMES, SIDE, LENGTH = 9, 64, 20
BACKBONE, LANGUAGE = "builtin:demo-backbone", "builtin:smollm2"
HIDDEN = 0.75  # share of the patches in `hide_patches`
HIDINGS = ("frames", "tubes")
_PART = 32  # videos or captions that are computed together


@dataclasses.dataclass(frozen=True)
class Videos:
    """Stored features of n videos, and what they show.

    Attributes:
        latent: (n, t, h, w, z) normalised latents, float16.
        stages: stage features of the encoder, float16.
        words: (n, LENGTH, d) final states of the language model on the captions, float16.
        ids: (n, LENGTH) the captions' token ids.
        mask: (n, LENGTH) True at real tokens.
        names: colour and shape of the thing that a video shows.
        motions: what it does.
        captions: the sentences.
    """

    latent: np.ndarray
    stages: tuple[np.ndarray, ...]
    words: np.ndarray
    ids: Int[np.ndarray, "n l"]
    mask: Bool[np.ndarray, "n l"]
    names: list[str]
    motions: list[str]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def features(
        self, rows: Int[np.ndarray, " b"]
    ) -> tuple[tuple[Float[Array, "b _t _h _w _c"], ...], Float[Array, "b t h w z"]]:
        """Stage features and latents of some videos, float32."""
        stages = tuple(jnp.asarray(stage[rows], jnp.float32) for stage in self.stages)
        return stages, jnp.asarray(self.latent[rows], jnp.float32)

    def text(self, rows: Int[np.ndarray, " b"]) -> TextCondition:
        """Embedded captions of some videos."""
        words = jnp.asarray(self.words[rows], jnp.float32)
        return TextCondition(words, jnp.asarray(self.mask[rows]))


class Networks:
    """The frozen networks, each loaded when it is first needed.

    Args:
        tokenizer: the videos are seen through the adapters of its encoder, if it has any.
    """

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        adapted = tokenizer is not None and tokenizer.config.lora_rank > 0
        self._adapted = tokenizer if adapted else None
        self._backbone: Backbone | None = None
        self._language: Language | None = None
        self._encode = nnx.jit(_features)
        self._embed = nnx.jit(lambda m, ids, mask: m(ids, mask).embeddings.astype(jnp.float16))

    @property
    def backbone(self) -> Backbone:
        """Sizes and arrays of the VAE."""
        self._backbone = self._backbone or load_backbone(BACKBONE)
        return self._backbone

    @property
    def language(self) -> Language:
        """The language model."""
        self._language = self._language or load_language(LANGUAGE)
        return self._language

    @property
    def encoder_hash(self) -> str:
        """Of all weights that a latent depends on."""
        return self._adapted.checkpoint_hash if self._adapted else self.backbone.sha256

    def vae(self) -> VideoVAE:
        """The VAE with its weights and adapters."""
        if self._adapted:
            return self._adapted.model.vae
        config = self.backbone.config
        return build_module(lambda: build_vae(config, rngs=nnx.Rngs(0)), self.backbone.arrays)

    def embed(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Final states (n, LENGTH, d) float16, token ids and mask of captions."""
        ids, mask = CaptionTokenizer(self.language.tokenizer, LENGTH)(list(captions))
        encoder = TextEncoder(self.language.model)
        parts = [
            np.asarray(self._embed(encoder, jnp.asarray(i), jnp.asarray(k)))
            for i, k in _parts(ids, mask)
        ]
        return np.concatenate(parts)[: len(ids)], ids, mask

    def embed_once(
        self, folder: Path, captions: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `embed`; kept in `folder`."""
        path = _kept(folder, "captions", (LANGUAGE, str(LENGTH), "\n".join(captions)))
        if not path.exists():
            words, ids, mask = self.embed(captions)
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(path, words=words, ids=ids, mask=mask)
        with np.load(path) as text:
            return text["words"], text["ids"], text["mask"]

    def encode(self, videos: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Latents and stage features of videos (n, t, h, w, 3) uint8, float16."""
        vae = self.vae()
        parts = [self._encode(vae, jnp.asarray(part)) for (part,) in _parts(videos)]
        latent, stages = jax.tree.map(lambda *x: np.concatenate(x)[: len(videos)], *parts)
        return latent, stages


def _features(vae: VideoVAE, video: Array) -> tuple[Array, tuple[Array, ...]]:
    posterior = vae.posterior(to_model_range(video))
    latent = vae.normalize(posterior.mean.astype(jnp.float32))
    half = tuple(stage.astype(jnp.float16) for stage in posterior.stages)
    return latent.astype(jnp.float16), half


def _parts(*arrays: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """Parts of `_PART` rows, so that one shape is compiled; the last is filled up with its end."""
    short = -len(arrays[0]) % _PART
    filled = [np.concatenate([x, np.repeat(x[-1:], short, axis=0)]) for x in arrays]
    starts = range(0, len(filled[0]), _PART)
    return [tuple(x[i : i + _PART] for x in filled) for i in starts]


def single(seed: Sequence[int], name: str) -> WorldFilm:
    """A film of one thing of a name, with a caption."""
    rng = np.random.default_rng(seed)
    colour, shape = name.split()
    scene = Scene((draw_thing(rng, (colour, shape)),), (draw_backdrop(rng),), KINDS[0])
    return WorldFilm(scene, caption(scene, rng), ())


def hide_patches(
    videos: UInt8[np.ndarray, "n t h w 3"], how: str
) -> UInt8[np.ndarray, "n t h w 3"]:
    """The videos with three quarters of their patches of 8 pixels grey.

    Args:
        videos: as they are.
        how: one of `HIDINGS`: others in each of the "frames", or the same in all ("tubes").
    """
    count, frames, height, width = videos.shape[:4]
    shape = (count, 1 if how == "tubes" else frames, height, width)
    chosen = patch_mask(jax.random.key(0), shape, 8, jnp.float32(HIDDEN))
    return np.where(np.asarray(chosen)[..., None], np.uint8(128), videos)


def load_videos(
    networks: Networks,
    folder: Path,
    names: Sequence[str],
    count: int,
    seed: Sequence[int],
    *,
    hidden: str = "",
) -> Videos:
    """`count` films of `names` in turn, their features from `folder` where it has them.

    Args:
        networks: run for what is not there.
        folder: of the files; made if need be.
        names: colour and shape.
        count: number of films.
        seed: of the films.
        hidden: have the encoder see them through `hide_patches`, one of `HIDINGS`.
    """
    films = [single((*seed, number), names[number % len(names)]) for number in range(count)]
    scenes = "\n".join(repr(film.scene) for film in films)
    captions = [film.caption for film in films]
    folder.mkdir(parents=True, exist_ok=True)
    through = (str(HIDDEN), hidden) if hidden else ()
    seen = _kept(folder, "videos", (networks.encoder_hash, scenes, str((FRAMES, SIDE)), *through))
    if not seen.exists():
        videos = np.stack([film.draw(FRAMES, SIDE, SIDE) for film in films])
        videos = hide_patches(videos, hidden) if hidden else videos
        latent, stages = networks.encode(videos)
        parts = {f"stage_{number}": stage for number, stage in enumerate(stages)}
        np.savez(seen, latent=latent, **parts)
    words, ids, mask = networks.embed_once(folder, captions)
    with np.load(seen) as video:
        stages = tuple(video[f"stage_{number}"] for number in range(len(video.files) - 1))
        return Videos(
            video["latent"], stages, words, ids, mask,
            [film.scene.things[0].name for film in films],
            [film.scene.things[0].motion for film in films],
            captions,
        )  # fmt: skip


def load_scenes(networks: Networks, folder: Path) -> np.ndarray:
    """Latents (n, t, h, w, z) of short clips of real scenes and of an animated film, float16.

    The demo's training scenes, a street and Big Buck Bunny, nothing of the demo's held-out scenes;
    kept in `folder`.
    """
    seen = _kept(folder, "scenes", (networks.encoder_hash, str((FRAMES, SIDE))))
    if not seen.exists():
        cut = [(demo_clips, 750), (street_clips, 300), (film_clips, 3000)]
        clips = [make(None, count, 17, SIDE, seed=1)[:750] for make, count in cut]
        halves = [np.concatenate([x[:, :FRAMES], x[:, -FRAMES:]]) for x in clips]
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(seen, latent=networks.encode(np.concatenate(halves))[0])
    with np.load(seen) as video:
        return video["latent"]


def _kept(folder: Path, kind: str, reasons: Sequence[str]) -> Path:
    digest = hashlib.sha256("\n".join(reasons).encode()).hexdigest()
    return folder / f"{kind}_{digest[:16]}.npz"
