"""What a tokenizer's tokens of held-out videos of the world say and rebuild.

    python -m benchmarks.world.measures --tokenizer builtin:world --output results.json

`alignment.py` measures the same at the end of each training, less the PSNR against the videos.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from benchmarks.world.features import (
    FRAMES,
    SIDE,
    Networks,
    Videos,
    hide_patches,
    load_videos,
    single,
)
from pyratok_jax.data.config import data_config
from pyratok_jax.data.heldout import heldout_clips
from pyratok_jax.data.world.vocabulary import seen_names, unseen_names
from pyratok_jax.evaluation.world_set import classes
from pyratok_jax.io.atomic import write_json
from pyratok_jax.losses.text import code_features, peak_cosines, unit
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.models.pyratok.quantizers.lapq import LaPQ
from pyratok_jax.nn.text_attention import TextCondition
from pyratok_jax.tokenizer import Tokenizer, load_tokenizer, to_model_range

DECODED = 24  # videos whose pixels are measured


def queries(networks: Networks, folder: Path, names: Sequence[str]) -> TextCondition:
    """Embedded prompts "A video of a red circle."; kept in `folder`."""
    said = [f"A video of {'an' if name[0] in 'aeiou' else 'a'} {name}." for name in names]
    words, _, mask = networks.embed_once(folder, said)
    return TextCondition(jnp.asarray(words, jnp.float32), jnp.asarray(mask))


@nnx.jit
def encode(
    tokenizer: PyraTok, alignment: Alignment, stages: Any, latent: Array,
    text: TextCondition | None, vectors: Float[Array, "c d"],
) -> tuple[tuple[Array, ...], Float[Array, "l b c"], Float[Array, "b t h w z"]]:  # fmt: skip
    """Codes, likeness to unit text vectors by level, and the latents that the codes synthesise."""
    levels, rebuilt = tokenizer.quantize(stages, latent, text)
    embed = alignment.text_embed
    scores = [peak_cosines(code_features(x.q, i, embed), vectors) for i, x in enumerate(levels)]
    return tuple(x.q for x in levels), jnp.stack(scores), rebuilt


def top1(found: Float[Array, "l b c"], names: Sequence[str], videos: Videos) -> list[float]:
    """Right names in percent, by each level and, last, by the mean over levels."""
    scores = np.asarray(found)
    scores = np.concatenate([scores, scores.mean(axis=0, keepdims=True)])
    right = np.array([names.index(name) for name in videos.names])
    return [round(100 * float((s.argmax(axis=1) == right).mean()), 1) for s in scores]


def right_words(
    found: Float[Array, "l b c"], names: Sequence[str], videos: Videos, word: int
) -> float:
    """Names in percent of which one word is right, by the mean over levels."""
    best = np.asarray(found).mean(axis=0).argmax(axis=1)
    right = [
        names[b].split()[word] == name.split()[word]
        for b, name in zip(best, videos.names, strict=True)
    ]
    return round(100 * float(np.mean(right)), 1)


def psnr(tokenizer: PyraTok, latent: Array, rebuilt: Array) -> float:
    """Mean PSNR in dB of videos decoded from codes against those from the encoder's own latents."""
    decode = nnx.jit(lambda model, z: jnp.clip(model.decode(z), -1.0, 1.0))
    squares = (decode(tokenizer, latent) - decode(tokenizer, rebuilt)) ** 2
    error = np.asarray(jnp.mean(squares, axis=(1, 2, 3, 4)))
    return float(np.mean(10 * np.log10(4.0 / np.maximum(error, 1e-10))))


def scene_psnr(tokenizer: PyraTok) -> float:
    """Mean PSNR in dB of the demo's held-out scenes (17x96x96), against the videos themselves."""
    clips = heldout_clips(data_config(), ("17x96x96",), 8)
    errors = []
    for clip in clips:
        video = to_model_range(jnp.asarray(clip.video)[None])
        squares = (jnp.clip(_rebuild(tokenizer, video), -1.0, 1.0) - video) ** 2
        errors.append(np.asarray(jnp.mean(squares, axis=(0, 2, 3, 4))))
    return float(np.mean([10 * np.log10(4.0 / error) for error in errors]))


@nnx.jit
def _rebuild(tokenizer: PyraTok, video: Array) -> Array:
    posterior = tokenizer.vae.posterior(video)
    latent = tokenizer.vae.normalize(posterior.mean.astype(jnp.float32))
    return tokenizer.decode(tokenizer.quantize(posterior.stages, latent, None)[1])


def without_previous(tokenizer: PyraTok) -> PyraTok:
    """The tokenizer with q(l-1) = 0 at every level."""
    changed = nnx.clone(tokenizer)
    for block in changed.quantizer.blocks:  # type: ignore[attr-defined]
        if block.previous is not None:
            block.previous.kernel[...] = jnp.zeros_like(block.previous.kernel[...])
    return changed


def changed_bits(a: Sequence[Array], b: Sequence[Array]) -> list[float]:
    """Percent of the bits of each level that differ."""
    return [round(100 * float(jnp.mean(x != y)), 2) for x, y in zip(a, b, strict=True)]


def effects(
    tokenizer: PyraTok, alignment: Alignment, videos: Videos, names: Sequence[str], vectors: Array
) -> dict[str, Any]:
    """Bits, latent error and names when an input of the levels is replaced."""
    rows = np.arange(len(videos))
    stages, latent = videos.features(rows)
    # A level that reads the latent as its feature finds it after the last stage.
    stages = (*stages, latent)
    # Films come class by class in turn, so that neighbours differ.
    other = tuple(jnp.roll(stage, 1, axis=0) for stage in stages)
    own, wrong = videos.text(rows), videos.text(np.roll(rows, 1))
    cases = {
        "plain": (tokenizer, stages, None),
        "F = 0": (tokenizer, tuple(jnp.zeros_like(stage) for stage in stages), None),
        "F of another video": (tokenizer, other, None),
        "q(l-1) = 0": (without_previous(tokenizer), stages, None),
        "own caption": (tokenizer, stages, own),
        "another video's caption": (tokenizer, stages, wrong),
    }
    found: dict[str, Any] = {}
    plain: Sequence[Array] = ()
    for name, (model, features, text) in cases.items():
        codes, scores, rebuilt = encode(model, alignment, features, latent, text, vectors)
        plain = plain or codes
        error = float(jnp.mean((rebuilt - latent) ** 2) / jnp.mean(latent**2))
        found[name] = {
            "bits changed, by level": changed_bits(plain, codes),
            "latent error": round(error, 4),
            "top-1": top1(scores, names, videos)[-1],
        }
    return found


def measure(
    tokenizer: PyraTok, alignment: Alignment, networks: Networks, tests: Mapping[str, Videos],
    folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """All of `heldout_videos`; rows of levels end with that of their mean."""
    found: dict[str, Any] = {}
    for kind in ("seen", "unseen"):
        videos = tests[kind]
        names = sorted(set(videos.names))
        vectors = unit(tokenizer.captions(queries(networks, folder, names)).pooled)
        stages, latent = videos.features(np.arange(len(videos)))
        _, scores, rebuilt = encode(tokenizer, alignment, stages, latent, None, vectors)
        found[f"top-1 of {len(names)}, {kind}"] = top1(scores, names, videos)
        found[f"right colour, {kind}"] = right_words(scores, names, videos, 0)
        found[f"right shape, {kind}"] = right_words(scores, names, videos, 1)
        if kind == "seen":
            error = jnp.mean((rebuilt - latent) ** 2) / jnp.mean(latent**2)
            found["latent error"] = round(float(error), 4)
            few = slice(0, DECODED)
            found["psnr of codes"] = round(psnr(tokenizer, latent[few], rebuilt[few]), 3)
            found["psnr of held-out scenes"] = round(scene_psnr(tokenizer), 3)
            if isinstance(tokenizer.quantizer, LaPQ):
                found["effects"] = effects(tokenizer, alignment, videos, names, vectors)
    return found | retrieval(tokenizer, alignment, tests["retrieval"])


def retrieval(tokenizer: PyraTok, alignment: Alignment, videos: Videos) -> dict[str, Any]:
    """Videos whose own caption is the best of all captions, percent by level and by their mean."""
    rows = np.arange(len(videos))
    stages, latent = videos.features(rows)
    captions = unit(tokenizer.captions(videos.text(rows)).pooled)
    _, scores, _ = encode(tokenizer, alignment, stages, latent, None, captions)
    levels = [*np.asarray(scores), np.asarray(scores).mean(axis=0)]
    own = np.array(videos.captions)
    right = [round(100 * float(np.mean(own[s.argmax(axis=1)] == own)), 1) for s in levels]
    return {f"retrieval R@1 of {len(rows)}, by level": right[:-1],
            f"retrieval R@1 of {len(rows)}": right[-1]}  # fmt: skip


def video_psnr(tokenizer: Tokenizer) -> dict[str, float]:
    """Mean PSNR in dB of held-out videos rebuilt from tokens, and of flat mean colours."""
    names, errors = classes(seen_names()), []
    for number in range(DECODED):
        clip = single((9, 1, number), names[number % len(names)]).draw(FRAMES, SIDE, SIDE)
        pictures = tokenizer.reconstruct(clip), clip.mean(axis=(0, 1, 2), keepdims=True)
        errors.append([np.mean((x.astype(float) - clip) ** 2) for x in pictures])
    rebuilt, flat = np.mean(10 * np.log10(255.0**2 / np.array(errors)), axis=0)
    return {"psnr of videos": round(rebuilt, 2), "psnr of flat pictures": round(flat, 2)}


def hidden_psnr(tokenizer: Tokenizer, how: str = "frames") -> dict[str, float]:
    """PSNR in dB inside things of held-out videos, of which most patches are hidden.

    The encoder sees what `hide_patches` leaves in this way, with the video's own caption, none, and
    that of a video of another thing.
    """
    names = classes(seen_names())
    films = [single((9, 1, number), names[number % len(names)]) for number in range(DECODED)]
    drawn = [film.film(FRAMES, SIDE, SIDE) for film in films]
    clean, inside = (
        np.stack(x) for x in zip(*((f.frames, f.masks[0]) for f in drawn), strict=True)
    )
    shown = hide_patches(clean, how)
    own = [film.caption for film in films]
    found = {}
    for name, captions in (("own", own), ("no", None), ("another's", own[1:] + own[:1])):
        rebuilt = tokenizer.decode_padded(tokenizer.encode_padded(shown, captions)).astype(float)
        errors = [np.mean((x - y)[m] ** 2) for x, y, m in zip(rebuilt, clean, inside, strict=True)]
        found[name] = round(float(np.mean(10 * np.log10(255.0**2 / np.array(errors)))), 2)
    return {f"psnr inside hidden things, {name} caption": x for name, x in found.items()}


def heldout_videos(networks: Networks, folder: Path, count: int) -> dict[str, Videos]:
    """Held-out videos of 12 classes whose pairs training has seen and has not, and 100 others."""
    seen, unseen = seen_names(), unseen_names()
    return {
        "seen": load_videos(networks, folder, classes(seen), count, (9, 1)),
        "unseen": load_videos(networks, folder, classes(unseen), count, (9, 2)),
        "retrieval": load_videos(networks, folder, seen, 100, (9, 3)),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure a tokenizer that was saved or shipped."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--tokenizer", default="builtin:world", help="folder, or what is shipped")
    p.add_argument("--cache", type=Path, default=Path("runs/world_features"), help="folder")
    p.add_argument("--test", type=int, default=144, help="held-out videos of 12 classes")
    p.add_argument("--output", type=Path, help="JSON file")
    args = p.parse_args(argv)
    tokenizer = load_tokenizer(args.tokenizer)
    networks = Networks(tokenizer)
    assert tokenizer.alignment is not None, "it was trained without a text term"
    found: dict[str, Any] = {"checkpoint": tokenizer.checkpoint_hash, **video_psnr(tokenizer)}
    found |= hidden_psnr(tokenizer)
    tests = heldout_videos(networks, args.cache, args.test)
    found |= measure(tokenizer.model, tokenizer.alignment, networks, tests, args.cache)
    print(json.dumps(found))
    if args.output:
        write_json(args.output, found)


if __name__ == "__main__":
    main()
