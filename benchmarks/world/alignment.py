"""How much language gets into the tokens: the levels trained on stored features of the world.

    python -m benchmarks.world.alignment --output results.json
    python -m benchmarks.world.alignment --variants aligned --seeds 0 --save runs/world

Encoder and language model are run once, on all videos and captions (`features.py`); a step then
costs the levels alone. Every variant of every seed runs in one process, so the step is compiled
once; with `--output`, the same command resumes after the last finished training. Measured on
held-out videos, encoded with the null caption unless said otherwise. `--save` writes each trained
tokenizer as a folder that every command reads.

| variant | trained with |
|---|---|
| aligned | the text-codebook term on each video's own caption |
| shuffled | the same term on the caption of another video, a fixed one: the control |
| off | no text term: the price of the others is measured against it |
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from benchmarks.world.features import (
    BACKBONE,
    LANGUAGE,
    LENGTH,
    Networks,
    Videos,
    load_scenes,
    load_videos,
)
from benchmarks.world.measures import heldout_videos, measure, scene_psnr
from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.data.world.vocabulary import seen_names
from pyratok_jax.io.atomic import write_json
from pyratok_jax.losses.codebook import entropy, text_alignment
from pyratok_jax.losses.text import code_features, peak_cosines, unit
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.models.pyratok.quantizers.base import Level
from pyratok_jax.models.pyratok.quantizers.final_latent import square_root
from pyratok_jax.models.text_statistics import MANY, pool_words
from pyratok_jax.nn.text_attention import TextCondition
from pyratok_jax.tokenizer import write_description
from pyratok_jax.training.init.calibration import metric_of
from pyratok_jax.training.optimizer import make_optimizer
from pyratok_jax.training.system import is_trainable

VARIANTS = ("aligned", "shuffled", "off")
TERMS = ("commitment", "entropy", "text")
TAU = 0.25  # of the soft assignments: a logit z_j is the logit of its bit
TEXT_HIDDEN = 256  # width of the code embedding's hidden layer
FITTED = 64  # videos that the levels' start is fitted to
TEXT_MODULES = r"alignment\.|attention\.|text_prior|null_text"


class Levels(nnx.Module):
    """What trains: the levels and the alignment."""

    def __init__(self, tokenizer: PyraTok, alignment: Alignment):
        self.tokenizer, self.alignment = tokenizer, alignment


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of every training; see `parser`."""

    steps: int
    batch: int
    scenes: int
    learning_rate: float
    text_rate: float
    weight: float
    final_weight: float
    levels: tuple[float, ...]
    hidden: float
    negatives: int
    tokens: int
    width: int
    grids: tuple[tuple[int, int], ...]
    stages: tuple[int, ...]
    inputs: str
    surrogate: str
    reconstruction: float
    commitment: float
    entropy: float
    text: float
    quantizer: str = "lapq"
    bits: int = 16
    vocabulary: int | None = None
    code_width: int = 16
    text_guidance: bool = True


class Batch(NamedTuple):
    """One step's inputs.

    Attributes:
        stages, latent: features of the b videos of the world and then of s clips of real scenes.
        text: captions that the levels may attend to.
        hidden: videos whose levels see the null caption instead: a level that sees the caption can
            copy it into its codes, and then learns nothing about the video.
        negatives: unit vectors of captions of other videos, in place of a larger batch.
        weight: of the text term.
        seen: latents that the levels see in place of `latent`, which they are to rebuild; None: the
            same.
    """

    stages: tuple[Float[Array, "b+s _t _h _w _c"], ...]
    latent: Float[Array, "b+s t h w z"]
    text: TextCondition
    hidden: Bool[Array, " b"]
    negatives: Float[Array, "c d"]
    weight: Float[Array, ""]
    seen: Float[Array, "b+s t h w z"] | None = None


def caption_nats(
    features: Float[Array, "b n d"],
    captions: Float[Array, "c d"],
    temperature: Float[Array, ""],
) -> Float[Array, ""]:
    """Cross-entropy in nats of videos against captions, of which the first are the videos' own.

    Captions that are equal to a video's own are all right.
    """
    count = len(features)
    scores = peak_cosines(features, captions) / temperature
    same = captions[:count] @ captions.T > 1.0 - 1e-5
    right = jax.nn.logsumexp(jnp.where(same, scores, -jnp.inf), axis=1)
    return jnp.mean(jax.nn.logsumexp(scores, axis=1) - right)


def codebook_terms(
    settings: Settings, system: Levels, levels: Sequence[Level], captioned: Bool[Array, " b"]
) -> dict[str, Array]:
    """The terms over codes of `TERMS` that have a weight, each summed over the levels."""
    films, found = len(captioned), {}
    if settings.commitment:
        found["commitment"] = sum(system.tokenizer.quantizer.commitment(x) for x in levels)
    if settings.entropy:
        found["entropy"] = sum(entropy(x.z, temperature=TAU)[0] for x in levels)
    if settings.text:
        found["text"] = sum(
            text_alignment(x.z[:films], x.text_logits[:films], captioned, temperature=TAU)
            for x in levels
        )
    return found


def text_weight(settings: Settings, step: int) -> float:
    """Weight of the text term: constant for half of the steps, then linear to the final one.

    What a level has learned to see stays in its codes at a small weight, while the reconstruction
    recovers what the term has cost.
    """
    fallen = min(max(step / settings.steps - 0.5, 0.0) / 0.4, 1.0)
    return settings.weight + fallen * (settings.final_weight - settings.weight)


def objective(
    settings: Settings, system: Levels, root: Float[np.ndarray, "z z"], batch: Batch
) -> tuple[Array, dict[str, Array], tuple[Level, ...]]:
    """The loss, its parts, and the levels; `root` is that of the decoder's metric."""
    metric = jnp.asarray(root, jnp.float32)
    films, scenes = len(batch.hidden), len(batch.latent) - len(batch.hidden)
    shown = batch.text._replace(mask=batch.text.mask & ~batch.hidden[:, None])
    shown = TextCondition(*(jnp.pad(x, ((0, scenes), *[(0, 0)] * (x.ndim - 1))) for x in shown))
    seen = batch.latent if batch.seen is None else batch.seen
    levels, latent = system.tokenizer.quantize(batch.stages, seen, shown)
    missed, whole = (latent - batch.latent) @ metric, batch.latent @ metric
    error = jnp.mean(missed**2) / jnp.mean(whole**2)
    parts = {"error": error} | codebook_terms(settings, system, levels, ~batch.hidden)
    total = settings.reconstruction * error
    for name in TERMS:
        total += getattr(settings, name) * parts.get(name, 0.0)
    embed = system.alignment.text_embed
    own = unit(system.tokenizer.captions(batch.text).pooled)
    captions = jax.lax.stop_gradient(jnp.concatenate([own, batch.negatives]))
    for number, level in enumerate(levels):
        features = code_features(level.q[:films], number, embed, settings.tokens)
        value = caption_nats(features, captions, system.alignment.temperature)
        total += settings.levels[number] * batch.weight * value
        parts[f"nats/{number + 1}"] = value
    return total, parts, tuple(levels)


def make_loss(
    settings: Settings, partition: Partition[Levels], root: Float[np.ndarray, "z z"]
) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """(trainable, frozen, batch) -> loss and its parts."""

    def loss(trainable: Any, frozen: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
        return objective(settings, partition.merge(trainable, frozen), root, batch)[:2]

    return loss


def build(
    settings: Settings, networks: Networks, videos: Videos, scenes: np.ndarray, seed: int
) -> tuple[Levels, Float[np.ndarray, "z z"]]:
    """Fresh levels with their data-dependent start, and statistics of the captions.

    Returns:
        them, and the root of the decoder's metric on the latent.
    """
    backbone, width = networks.backbone, videos.words.shape[-1]
    config = PyraTokConfig(
        vae=backbone.config, grids=settings.grids, stages=settings.stages,
        width=settings.width, heads=4,
        synthesis_width=32, lora_rank=0, text_width=width,
        inputs=settings.inputs, surrogate=settings.surrogate, quantizer=settings.quantizer,
        bits=settings.bits, vocabulary=settings.vocabulary, code_width=settings.code_width,
        text_guidance=settings.text_guidance,
    )  # fmt: skip
    tokenizer = PyraTok(config, rngs=nnx.Rngs(seed), vae=networks.vae())
    stages, latent = mixed(videos, scenes, np.arange(FITTED), np.arange(min(FITTED, len(scenes))))
    root = square_root(metric_of(tokenizer, np.asarray(latent)[::-1], seed))
    tokenizer.quantizer.fit([latent], stages=[stages], root=root, seed=seed, steps=60)
    levels = len(config.grids)
    alignment = Alignment(
        config.bits, levels, width, rngs=nnx.Rngs(seed + 1), text_hidden=TEXT_HIDDEN
    )
    statistics = tokenizer.text_statistics
    assert statistics is not None
    text = videos.text(np.arange(len(videos)))
    pooled, words = pool_words(text), text.embeddings[text.mask]
    statistics.mean[...], statistics.variance[...] = pooled.mean(axis=0), pooled.var(axis=0)
    statistics.word_mean[...], statistics.word_variance[...] = words.mean(axis=0), words.var(axis=0)
    statistics.batches[...] = jnp.asarray(MANY)
    return Levels(tokenizer, alignment), root


def mixed(
    videos: Videos, scenes: Float[np.ndarray, "n t h w z"], rows: np.ndarray, clips: np.ndarray
) -> tuple[tuple[Array, ...], Array]:
    """Features of some videos of the world and then of some clips of real scenes.

    Of scenes only latents are stored: with them, stages are placeholders that no level reads.
    """
    stages, latent = videos.features(rows)
    if not len(clips):
        return stages, latent
    latent = jnp.concatenate([latent, jnp.asarray(scenes[clips], jnp.float32)])
    return tuple(jnp.zeros((len(latent), 1, 1, 1, 1)) for _ in stages), latent


class Trainer:
    """Trainings of one shape, whose step is compiled once."""

    def __init__(
        self,
        settings: Settings,
        start: Levels,
        root: Float[np.ndarray, "z z"],
        videos: Videos,
        scenes: np.ndarray,
    ) -> None:
        self.settings, self.videos, self.scenes = settings, videos, scenes
        self.partition = Partition(start, is_trainable)
        self.text = videos.text(np.arange(len(videos)))
        loss = make_loss(settings, self.partition, root)
        factor = settings.text_rate / settings.learning_rate
        self.optimizer = make_optimizer(
            {"name": "adamw", "learning_rate": settings.learning_rate,
             "warmup": min(20, settings.steps // 4), "schedule": "cosine", "final_share": 0.02,
             "b1": 0.9, "b2": 0.99, "weight_decay": 0.0, "clip_norm": 1.0,
             "groups": ((TEXT_MODULES, factor),)},
            settings.steps,
        )  # fmt: skip

        @jax.jit
        def step(trainable: Any, state: Any, frozen: Any, batch: Batch) -> Any:
            gradient = jax.value_and_grad(loss, has_aux=True)
            (_, parts), grads = gradient(trainable, frozen, batch)
            updates, state = self.optimizer.update(grads, state, trainable)
            return optax.apply_updates(trainable, updates), state, parts

        self.step = step

    def train(self, start: Levels, variant: str, seed: int) -> Levels:
        """Descend from `start`, which has the shape of the first one."""
        arrays, settings = Partition(start, is_trainable), self.settings
        trainable, frozen = arrays.trainable, arrays.frozen
        state = self.optimizer.init(trainable)
        rng, begin = np.random.default_rng(seed), time.time()
        count = len(self.videos)
        # Every video keeps one wrong caption, so that it could be learned by heart, no more.
        owner = rng.permutation(count) if variant == "shuffled" else np.arange(count)
        vectors = unit(start.tokenizer.captions(self.text).pooled)
        for number in range(settings.steps):
            rows = rng.choice(count, settings.batch, replace=False)
            weight = 0.0 if variant == "off" else text_weight(settings, number)
            batch = self.batch(rows, owner[rows], vectors, weight, rng)
            trainable, state, parts = self.step(trainable, state, frozen, batch)
            if number % 50 == 0 or number == settings.steps - 1:
                shown = {k: round(float(v), 3) for k, v in parts.items()}
                print(f"  step {number} {time.time() - begin:.0f} s {shown}", flush=True)
            if settings.scenes and number % 200 == 199:
                now = scene_psnr(self.partition.merge(trainable, frozen).tokenizer)
                print(f"  held-out scenes: {now:.2f} dB", flush=True)
        return self.partition.merge(trainable, frozen)

    def batch(
        self,
        rows: Int[np.ndarray, " b"],
        captions: Int[np.ndarray, " b"],
        vectors: Float[Array, "n d"],
        weight: float,
        rng: np.random.Generator,
    ) -> Batch:
        """Inputs of a step: which videos, whose captions they have, and all captions' vectors."""
        settings = self.settings
        text = TextCondition(self.text.embeddings[captions], self.text.mask[captions])
        hidden = jnp.asarray(rng.random(settings.batch) < settings.hidden)
        others = rng.choice(len(self.videos), settings.negatives, replace=False)
        clips = rng.choice(len(self.scenes), settings.scenes, replace=False)
        features = mixed(self.videos, self.scenes, rows, clips)
        return Batch(*features, text, hidden, vectors[others], jnp.float32(weight))


def save(folder: Path, system: Levels, networks: Networks, step: int) -> None:
    """Write a trained tokenizer as the working folder of a training, without optimizer state."""
    arrays = Partition(system, is_trainable)
    backbone, language = networks.backbone, networks.language
    config = system.tokenizer.config
    folder.mkdir(parents=True, exist_ok=True)
    write_description(
        folder,
        config,
        backbone={"spec": BACKBONE, "sha256": backbone.sha256},
        language_model={
            "spec": LANGUAGE, "sha256": language.sha256, "length": LENGTH, "bits": 0
        },
        alignment=dict(system.alignment.arguments),
    )  # fmt: skip
    with ocp.StandardCheckpointer() as checkpointer:
        place = folder.resolve() / "checkpoints" / str(step) / "state"
        checkpointer.save(place, {"params": arrays.trainable}, force=True)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _factors(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


def _pairs(text: str) -> tuple[tuple[int, int], ...]:
    pairs = (pair.split("x") for pair in text.split(","))
    return tuple((int(time), int(space)) for time, space in pairs)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--variants", default=",".join(VARIANTS))
    p.add_argument("--seeds", default="0")
    p.add_argument("--cache", type=Path, default=Path("runs/world_features"), help="folder")
    p.add_argument("--output", type=Path, help="JSON file of all measurements")
    p.add_argument("--save", type=Path, help="folder of the trained tokenizers")
    p.add_argument("--films", type=int, default=5100, help="training videos")
    p.add_argument("--test", type=int, default=144, help="held-out videos of 12 classes")
    p.add_argument("--steps", type=int, default=1600)
    p.add_argument("--batch", type=int, default=24)
    p.add_argument("--scenes", type=int, default=12, help="real clips in a batch, beside it")
    p.add_argument("--learning-rate", type=float, default=2e-3, help="of the levels")
    p.add_argument("--text-rate", type=float, default=5e-3, help="of text modules and alignment")
    p.add_argument(
        "--reconstruction", type=float, default=12.0, help="weight of the latent's error"
    )
    p.add_argument("--commitment", type=float, default=0.05, help="weight of its term")
    p.add_argument("--entropy", type=float, default=0.0, help="weight of its term")
    p.add_argument("--text", type=float, default=0.0, help="weight of the text-conditioned term")
    p.add_argument("--weight", type=float, default=1.0, help="of the text term, for each level")
    p.add_argument("--final-weight", type=float, default=0.3, help="of the term in the end")
    p.add_argument(
        "--levels",
        type=_factors,
        default="1,.02,.02,.1",
        help="factors of the term's weight by level",
    )
    p.add_argument("--hidden", type=float, default=0.9, help="share of captions hidden")
    p.add_argument("--negatives", type=int, default=112, help="captions beside the batch's own")
    p.add_argument("--tokens", type=int, default=96, help="of a level in the text term")
    p.add_argument("--width", type=int, default=64)
    p.add_argument("--grids", type=_pairs, default="4x8,1x16,2x8,4x8", help="strides by level")
    p.add_argument("--stages", type=_numbers, default="5,5,5,5", help="5 is the latent")
    p.add_argument("--inputs", default="latent-first", help="of the levels, see PyraTokConfig")
    p.add_argument("--surrogate", default="tanh", help="whose gradient the signs have")
    return p


def make_settings(args: argparse.Namespace) -> Settings:
    """Of the command line."""
    names = {field.name for field in dataclasses.fields(Settings)}
    return Settings(**{k: v for k, v in vars(args).items() if k in names})


def finished(output: Path | None, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measurements that an earlier run of these settings has written.

    Raises:
        SystemExit: the file is of other settings.
    """
    if output is None or not output.exists():
        return []
    stored = json.loads(output.read_text())
    if stored["settings"] != json.loads(json.dumps(settings)):
        raise SystemExit(f"{output} has results of other settings; choose another --output")
    return stored["runs"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run all variants of all seeds and print, and write, their numbers."""
    args = parser().parse_args(argv)
    settings = make_settings(args)
    networks = Networks()
    begin = time.time()
    videos = load_videos(networks, args.cache, seen_names(), args.films, (0, 0))
    tests = heldout_videos(networks, args.cache, args.test)
    scenes = load_scenes(networks, args.cache) if settings.scenes else np.zeros((0, 0, 0, 0, 0))
    if settings.scenes and set(settings.stages) != {5}:
        raise SystemExit("--scenes: only latents of scenes are stored; give all --stages 5")
    print(f"features of {len(videos)} videos after {time.time() - begin:.0f} s", flush=True)
    trainer: Trainer | None = None
    rows = finished(args.output, dataclasses.asdict(settings))
    done = {(row["variant"], row["seed"]) for row in rows}
    for seed in map(int, args.seeds.split(",")):
        start, root = build(settings, networks, videos, scenes, seed)
        trainer = trainer or Trainer(settings, start, root, videos, scenes)
        for variant in args.variants.split(","):
            if (variant, seed) in done:
                continue
            print(f"{variant}, seed {seed}", flush=True)
            began = time.time()
            system = trainer.train(start, variant, seed)
            seconds = round(time.time() - began)
            if args.save:
                save(args.save / f"{variant}-{seed}", system, networks, settings.steps)
            found = measure(system.tokenizer, system.alignment, networks, tests, args.cache)
            row = {"variant": variant, "seed": seed, "seconds": seconds} | found
            rows.append(row)
            print(json.dumps(row), flush=True)
            if args.output:
                write_json(args.output, {"settings": dataclasses.asdict(settings), "runs": rows})


if __name__ == "__main__":
    main()
