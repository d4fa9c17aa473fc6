"""What the drift terms hold: adapters of the encoder trained with and without them.

    python -m benchmarks.world.drift --output runs/drift.json --workdir runs/drift

Every training starts from `builtin:world` with fresh adapters and has all losses of
`configs/world.py:adapted`, on videos of the world alone, less what an ablation of
`training/ablations/table.py` takes away. Measured on held-out videos of the world and on the demo's
held-out real scenes, which no training here sees: how far the encoder's latents have moved from the
frozen encoder's, what they and their codes decode to through the frozen decoder, and the names that
the tokens give.
"""

import argparse
import itertools
import json
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, UInt8

from benchmarks.world.alignment import finished
from benchmarks.world.features import FRAMES, SIDE, Networks, single
from benchmarks.world.measures import encode, queries
from pyratok_jax.checkpoints.pretrained import load_vision
from pyratok_jax.data.config import data_config
from pyratok_jax.data.heldout import heldout_clips
from pyratok_jax.data.world.vocabulary import seen_names
from pyratok_jax.evaluation.world_set import classes
from pyratok_jax.io.atomic import write_json
from pyratok_jax.losses.features import choose_moments
from pyratok_jax.losses.pixel import take_frames
from pyratok_jax.losses.text import unit
from pyratok_jax.models.dino import Dino
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.tokenizer import Tokenizer, load_tokenizer, to_model_range
from pyratok_jax.training.ablations.table import apply
from pyratok_jax.training.tasks.run import run

START = "builtin:world"
PART = 16  # videos that are encoded together
NAMED, DECODED = 144, 32  # videos that are named, and those whose pixels are measured


def parser(description: str, names: str, steps: int, workdir: str) -> argparse.ArgumentParser:
    """The command line of a benchmark that takes terms away, with its defaults."""
    p = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--names", default=names, help="rows of the table of ablations")
    p.add_argument("--seeds", default="0,1,2")
    p.add_argument("--steps", type=int, default=steps)
    p.add_argument("--workdir", type=Path, default=Path(workdir), help="of all trainings")
    p.add_argument("--cache", type=Path, default=Path("runs/world_features"), help="folder")
    p.add_argument("--output", type=Path, help="JSON file of all measurements")
    return p


class Heldout(NamedTuple):
    """What is measured on.

    Attributes:
        videos: of the world, one thing each.
        names: what each shows.
        films: the first of them, whose pixels are measured, in parts that are encoded together.
        scenes: the demo's held-out real scenes, each a part.
    """

    videos: UInt8[np.ndarray, "n t h w 3"]
    names: list[str]
    films: list[UInt8[np.ndarray, "b t h w 3"]]
    scenes: list[UInt8[np.ndarray, "1 t2 h2 w2 3"]]


def heldout(decoded: int) -> Heldout:
    """Videos and scenes that no training shows; the pixels of `decoded` videos are measured."""
    chosen = classes(seen_names())
    names = [chosen[number % len(chosen)] for number in range(NAMED)]
    videos = np.stack(
        [single((9, 1, n), name).draw(FRAMES, SIDE, SIDE) for n, name in enumerate(names)]
    )
    scenes = [clip.video[None] for clip in heldout_clips(data_config(), ("17x96x96",), 8)]
    films = [videos[start : start + PART] for start in range(0, decoded, PART)]
    return Heldout(videos, names, films, scenes)


def take_away(
    args: argparse.Namespace,
    argument: str,
    decoded: int,
    measure: Callable[[Tokenizer], dict[str, Any]],
) -> None:
    """Train `configs/world.py:argument` less what each row takes away; print and write all figures.

    With `--output` the same command goes on after the last finished training.
    """
    make = runpy.run_path("configs/world.py")["get_config"]
    facts = {"steps": args.steps, "films": decoded, "named": NAMED}
    rows = finished(args.output, facts) or [{"variant": "start"} | measure(load_tokenizer(START))]
    print(json.dumps(rows[0]), flush=True)
    for seed, name in itertools.product(map(int, args.seeds.split(",")), args.names.split(",")):
        if any((row["variant"], row.get("seed")) == (name, seed) for row in rows):
            continue
        config = apply(make(argument), name, "world")
        config.steps, config.seed = args.steps, seed
        config.report.clips, config.report.lpips = 1, False  # all that counts is measured here
        folder = args.workdir / f"{name}-{seed}"
        if run(config, folder) is None:
            return
        rows.append({"variant": name, "seed": seed} | measure(load_tokenizer(folder)))
        print(json.dumps(rows[-1]), flush=True)
        if args.output:
            write_json(args.output, {"settings": facts, "runs": rows})


@nnx.jit
def _features(model: PyraTok, video: Array) -> tuple[tuple[Array, ...], Array]:
    """Stage features and the normalised latent."""
    posterior = model.vae.posterior(to_model_range(video))
    return posterior.stages, model.vae.normalize(posterior.mean.astype(jnp.float32))


@nnx.jit
def _decoded(model: PyraTok, stages: tuple[Array, ...], latent: Array) -> tuple[Array, Array]:
    """What the latent decodes to, and what its codes do."""
    return model.decode(latent), model.decode(model.quantize(stages, latent, None)[1])


def _psnr(found: Array, video: UInt8[np.ndarray, "b t h w 3"]) -> list[float]:
    errors = (jnp.clip(found, -1.0, 1.0) - to_model_range(jnp.asarray(video))) ** 2
    return [float(10 * np.log10(4.0 / e)) for e in np.asarray(errors.mean(axis=(1, 2, 3, 4)))]


def compare(
    tokenizer: Tokenizer, frozen: Tokenizer, parts: Sequence[UInt8[np.ndarray, "b t h w 3"]]
) -> dict[str, float]:
    """How far latents have moved, in percent of their energy, and PSNR in dB."""
    moved, energy = 0.0, 0.0
    psnr: dict[str, list[float]] = {"latents": [], "codes": []}
    for video in parts:
        before = _features(frozen.model, jnp.asarray(video))[1]
        stages, latent = _features(tokenizer.model, jnp.asarray(video))
        plain, coded = _decoded(tokenizer.model, stages, latent)
        moved += float(jnp.sum((latent - before) ** 2))
        energy += float(jnp.sum(before**2))
        psnr["latents"] += _psnr(plain, video)
        psnr["codes"] += _psnr(coded, video)
    figures = {f"psnr of {name}": round(float(np.mean(x)), 2) for name, x in psnr.items()}
    return {"latents moved, %": round(100 * moved / energy, 2)} | figures


def vision_read(
    tokenizer: Tokenizer, vision: Dino, parts: Sequence[UInt8[np.ndarray, "b t h w 3"]]
) -> float:
    """Share of the variance of DINO's patches that a linear map reads off the latents, in percent.

    Position by position, in the last video frame of each latent frame; the map is fitted (ridge)
    to the first half of the videos and measured on the second.
    """
    found: list[np.ndarray] = []
    wanted: list[np.ndarray] = []
    for video in parts:
        latent = _features(tokenizer.model, jnp.asarray(video))[1]
        b, t, h, w, _ = latent.shape
        moments = choose_moments(video.shape[1], t, 0, None)
        patches = _patches(vision, take_frames(to_model_range(jnp.asarray(video)), moments.video))
        grid = jax.image.resize(patches, (b * t, h, w, patches.shape[-1]), "bilinear")
        found.append(np.asarray(latent, np.float64).reshape(b, -1, latent.shape[-1]))
        wanted.append(np.asarray(grid, np.float64).reshape(b, -1, grid.shape[-1]))
    x, y = np.concatenate(found), np.concatenate(wanted)
    half = len(x) // 2
    train, test = (np.concatenate(list(x[rows])) for rows in (slice(half), slice(half, None)))
    to_fit, truth = (np.concatenate(list(y[rows])) for rows in (slice(half), slice(half, None)))
    mean, offset = train.mean(axis=0), to_fit.mean(axis=0)
    train, test = train - mean, test - mean
    scale = 1e-4 * np.trace(train.T @ train) / train.shape[1]
    inverse = np.linalg.inv(train.T @ train + scale * np.eye(train.shape[1]))
    read = test @ (inverse @ train.T @ (to_fit - offset)) + offset
    left = np.sum((truth - read) ** 2) / np.sum((truth - offset) ** 2)
    return round(100 * float(1 - left), 2)


@nnx.jit
def _patches(vision: Dino, images: Array) -> Array:
    return vision(images).patches


def names_right(
    tokenizer: Tokenizer, networks: Networks, folder: Path, videos: np.ndarray, names: list[str]
) -> float:
    """Right names of 12 in percent by level 1, videos encoded without a caption."""
    assert tokenizer.alignment is not None, "trained with a text term"
    said = sorted(set(names))
    vectors = unit(tokenizer.model.captions(queries(networks, folder, said)).pooled)
    right = 0
    for start in range(0, len(videos), PART):
        features = _features(tokenizer.model, jnp.asarray(videos[start : start + PART]))
        _, scores, _ = encode(tokenizer.model, tokenizer.alignment, *features, None, vectors)
        best = np.asarray(scores[0]).argmax(axis=1)
        right += sum(said[b] == n for b, n in zip(best, names[start : start + PART], strict=True))
    return round(100 * right / len(videos), 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Run all variants of all seeds."""
    args = parser(__doc__.splitlines()[0], "full,no_drift", 120, "runs/drift").parse_args(argv)
    networks, frozen = Networks(), load_tokenizer(START)
    vision, shown = load_vision("builtin:demo-vision"), heldout(DECODED)

    def measure(tokenizer: Tokenizer) -> dict[str, Any]:
        return {
            "films": compare(tokenizer, frozen, shown.films),
            "real scenes": compare(tokenizer, frozen, shown.scenes),
            "names": names_right(tokenizer, networks, args.cache, shown.videos, shown.names),
            "vision read, %": vision_read(tokenizer, vision, shown.films),
        }

    take_away(args, "adapted", DECODED, measure)


if __name__ == "__main__":
    main()
