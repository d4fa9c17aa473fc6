"""What the autoregressive loss does to the tokens: levels trained further with it and without it.

    python -m benchmarks.world.autoregression --output runs/autoregression.json

A trained tokenizer takes some more steps of its own terms (`alignment.py`), on stored features.
The head that predicts tokens starts afresh and learns alike in every variant, so that held-out nats
can be compared. The command resumes after the last finished training.

| variant | the autoregressive loss |
|---|---|
| with | reaches the codes, as inputs and as straight-through targets |
| without | teaches the head alone: its gradient stops at the codes |
| shuffled | as `with`, on captions of other videos: the control, own captions gain nothing |
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from benchmarks.world.alignment import (
    Batch,
    Levels,
    Settings,
    Trainer,
    finished,
    make_settings,
    objective,
)
from benchmarks.world.alignment import parser as settings_parser
from benchmarks.world.features import Networks, Videos, load_scenes, load_videos
from benchmarks.world.measures import heldout_videos, measure
from benchmarks.world.reading import HELDOUT, codes_of, heldout_nats, prompts_of, retaught, save
from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.data.world.vocabulary import seen_names
from pyratok_jax.evaluation.world_set import classes
from pyratok_jax.io.atomic import write_json
from pyratok_jax.losses.autoregressive import Prompts, autoregressive_loss
from pyratok_jax.losses.text import unit
from pyratok_jax.models.language.model import LanguageModel
from pyratok_jax.models.pyratok.quantizers.final_latent import square_root
from pyratok_jax.tokenizer import load_tokenizer
from pyratok_jax.training.init.calibration import metric_of
from pyratok_jax.training.optimizer import make_optimizer

VARIANTS = ("with", "without", "shuffled")
GUIDES = {"pooled_text": True, "grid_places": True}


class Data(NamedTuple):
    """What is trained on: videos of the world, and latents of clips of real scenes."""

    videos: Videos
    scenes: np.ndarray
    root: Float[np.ndarray, "z z"]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--tokenizer", default="builtin:world", help="that the trainings start from")
    p.add_argument("--variants", default=",".join(VARIANTS))
    p.add_argument("--seeds", default="0,1,2")
    p.add_argument("--cache", type=Path, default=Path("runs/world_features"), help="folder")
    p.add_argument("--output", type=Path, help="JSON file of all measurements")
    p.add_argument("--save", type=Path, help="folder of the trained tokenizers")
    p.add_argument("--films", type=int, default=5100, help="training videos")
    p.add_argument("--test", type=int, default=144, help="held-out videos of 12 classes")
    p.add_argument("--steps", type=int, default=200)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--scenes", type=int, default=8, help="real clips in a batch, beside it")
    p.add_argument("--weight", type=float, default=0.2, help="of the autoregressive loss")
    p.add_argument("--learning-rate", type=float, default=3e-3, help="of the head")
    p.add_argument("--levels-rate", type=float, default=5e-4, help="of the levels")
    p.add_argument("--tokens", type=int, default=64, help="of a video that are predicted")
    p.add_argument("--layers", type=int, default=6, help="of the language model")
    return p


def make_step(
    args: argparse.Namespace, settings: Settings, partition: Partition[Levels], root: np.ndarray
) -> tuple[Any, optax.GradientTransformation]:
    """The jitted step (it takes whether the loss reaches the codes) and its optimizer."""
    optimizer = make_optimizer(
        {"name": "adamw", "learning_rate": args.learning_rate, "warmup": min(10, args.steps // 4),
         "schedule": "cosine", "final_share": 0.05, "b1": 0.9, "b2": 0.99, "weight_decay": 0.0,
         "clip_norm": 1.0, "groups": ((r"^tokenizer\.", args.levels_rate / args.learning_rate),)},
        args.steps,
    )  # fmt: skip

    def loss(trainable: Any, frozen: Any, model: LanguageModel, batch: Batch, own: Prompts,
             key: Array, reaches: Array) -> tuple[Array, dict[str, Array]]:  # fmt: skip
        system = partition.merge(trainable, frozen)
        total, parts, levels = objective(settings, system, root, batch)
        codes = tuple(level.q[: len(batch.hidden)] for level in levels)
        # Of one program, so that all variants share its compilation.
        codes = tuple(reaches * q + (1.0 - reaches) * jax.lax.stop_gradient(q) for q in codes)
        nats, _ = autoregressive_loss(
            system.alignment, model, codes, (own.ids, own.mask), args.tokens, key,
            layers=args.layers, targets="straight_through", pooled=own.pooled,
        )  # fmt: skip
        return total + args.weight * nats, parts | {"autoregressive": nats}

    @jax.jit
    def step(trainable: Any, state: Any, frozen: Any, *batch: Any) -> Any:
        (_, parts), grads = jax.value_and_grad(loss, has_aux=True)(trainable, frozen, *batch)
        updates, state = optimizer.update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state, parts

    return step, optimizer


class Further:
    """Trainings from one start, whose step is compiled once."""

    def __init__(
        self, args: argparse.Namespace, start: Levels, model: LanguageModel, data: Data
    ) -> None:
        self.args, self.data, self.model, self.start = args, data, model, start
        chosen = ["--batch", str(args.batch), "--scenes", str(args.scenes)]
        settings = make_settings(settings_parser().parse_args(chosen))
        self.batches = Trainer(settings, start, data.root, data.videos, data.scenes)
        self.partition = self.batches.partition
        self.step, self.optimizer = make_step(args, settings, self.partition, data.root)

    def train(self, variant: str, seed: int) -> Levels:
        """Descend from the start."""
        trainable, frozen = self.partition.trainable, self.partition.frozen
        state, rng, begin = self.optimizer.init(trainable), np.random.default_rng(seed), time.time()
        count, weight = len(self.data.videos), self.batches.settings.final_weight
        vectors = unit(self.start.tokenizer.captions(self.batches.text).pooled)
        owner = rng.permutation(count) if variant == "shuffled" else np.arange(count)
        reaches = jnp.float32(variant != "without")
        for number in range(self.args.steps):
            rows = rng.choice(count, self.args.batch, replace=False)
            # The tokenizer's own terms have own captions in every variant.
            batch = self.batches.batch(rows, rows, vectors, weight, rng)
            own = prompts_of(self.start, self.data.videos, owner[rows])
            key = jax.random.fold_in(jax.random.key(seed), number)
            trainable, state, parts = self.step(
                trainable, state, frozen, self.model, batch, own, key, reaches
            )
            if number % 25 == 0 or number == self.args.steps - 1:
                shown = {k: round(float(v), 3) for k, v in parts.items()}
                print(f"  step {number} {time.time() - begin:.0f} s {shown}", flush=True)
        return self.partition.merge(trainable, frozen)


def codes_in_use(system: Levels, videos: Videos) -> list[int]:
    """How many different codes each level gives to the videos."""
    latent = jnp.asarray(videos.latent, jnp.float32)
    bits = [np.asarray(q).reshape(-1, q.shape[-1]) > 0 for q in codes_of(system, latent)]
    return [len(np.unique(np.packbits(x, axis=1), axis=0)) for x in bits]


def main(argv: Sequence[str] | None = None) -> None:
    """Run all variants of all seeds and print, and write, their numbers."""
    args = parser().parse_args(argv)
    tokenizer, names = load_tokenizer(args.tokenizer), seen_names()
    networks = Networks(tokenizer)
    if tokenizer.alignment is None or tokenizer.text is None:
        raise SystemExit(f"--tokenizer {args.tokenizer} has no language model")
    model = tokenizer.text.language_model
    start = Levels(tokenizer.model, retaught(tokenizer.alignment, GUIDES, keeps_head=False))
    videos = load_videos(networks, args.cache, names, args.films, (0, 0))
    scenes = load_scenes(networks, args.cache)
    metric = metric_of(start.tokenizer, np.asarray(scenes[:64], np.float32), 0)
    heldout = load_videos(networks, args.cache, classes(names), HELDOUT, (9, 4))
    tests = heldout_videos(networks, args.cache, args.test)
    trainer = Further(args, start, model, Data(videos, scenes, square_root(metric)))
    settings = {k: v for k, v in vars(args).items() if not isinstance(v, Path)}
    settings = {k: v for k, v in settings.items() if k not in ("variants", "seeds", "output")}
    rows = finished(args.output, settings)
    done = {(row["variant"], row["seed"]) for row in rows}
    for seed in map(int, args.seeds.split(",")):
        for variant in args.variants.split(","):
            if (variant, seed) in done:
                continue
            print(f"{variant}, seed {seed}", flush=True)
            system = trainer.train(variant, seed)
            if args.save:
                save(args.tokenizer, args.save / f"{variant}-{seed}", system, args.steps)
            found = measure(system.tokenizer, system.alignment, networks, tests, args.cache)
            del found["effects"]
            found["nats"] = heldout_nats(system, model, heldout, args.layers)
            found["codes in use, by level"] = codes_in_use(system, tests["seen"])
            rows.append({"variant": variant, "seed": seed} | found)
            print(json.dumps(rows[-1]), flush=True)
            if args.output:
                write_json(args.output, {"settings": settings, "runs": rows})


if __name__ == "__main__":
    main()
