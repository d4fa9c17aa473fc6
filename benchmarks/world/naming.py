"""Teach the map from codes to the text space, on a tokenizer that stays as it is.

    python -m benchmarks.world.naming --tokenizer runs/world/aligned-0 --output runs/world_named

`alignment.py` trains that map together with the levels, in small batches. Tokens stay as they are
here, so that a step costs the map alone: larger batches, a thousand captions beside each, and a
hidden layer that reads the codes around each one (`--no-neighbours`: it alone, as before). With
`--shuffled` each video keeps another's caption: the control. `reading.py` may follow.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from benchmarks.world.alignment import Levels, caption_nats
from benchmarks.world.features import Networks, Videos, load_videos
from benchmarks.world.measures import heldout_videos, measure
from benchmarks.world.reading import codes_of, retaught, save, taught_further
from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.data.world.vocabulary import seen_names
from pyratok_jax.io.atomic import write_json
from pyratok_jax.losses.text import code_features, unit
from pyratok_jax.tokenizer import load_tokenizer
from pyratok_jax.training.optimizer import make_optimizer

PART = 50  # videos whose codes are computed at once


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = taught_further(__doc__.splitlines()[0])
    p.add_argument("--test", type=int, default=144, help="held-out videos of 12 classes")
    p.add_argument("--steps", type=int, default=500)
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--negatives", type=int, default=1024, help="captions beside the batch's own")
    p.add_argument("--learning-rate", type=float, default=2e-3)
    p.add_argument(
        "--neighbours", action=argparse.BooleanOptionalAction, default=True,
        help="let hidden units read the codes around each one",
    )  # fmt: skip
    return p


def learns(name: str, variable: nnx.Variable) -> bool:
    """Whether an array is of the map into the text space."""
    kept = name.startswith(("alignment.text_", "alignment.log_temperature"))
    return kept and isinstance(variable, nnx.Param)


def stored_codes(system: Levels, videos: Videos) -> list[np.ndarray]:
    """Codes of every level without captions, int8 (n, t, h, w, bits)."""
    run = nnx.jit(lambda system, latent: codes_of(system, latent))
    parts = []
    for first in range(0, len(videos), PART):
        latent = jnp.asarray(videos.latent[first : first + PART], jnp.float32)
        parts.append([np.asarray(q).astype(np.int8) for q in run(system, latent)])
    return [np.concatenate(level) for level in zip(*parts, strict=True)]


def train(args: argparse.Namespace, system: Levels, videos: Videos) -> Levels:
    """Descend from the map that there is; the weight of all levels is the same."""
    partition = Partition(system, learns)
    optimizer = make_optimizer(
        {"name": "adamw", "learning_rate": args.learning_rate, "warmup": min(20, args.steps // 4),
         "schedule": "cosine", "final_share": 0.02, "b1": 0.9, "b2": 0.99, "weight_decay": 0.0,
         "clip_norm": 1.0, "groups": ()},
        args.steps,
    )  # fmt: skip

    def loss(trainable: Any, frozen: Any, codes: Any, captions: Float[Array, "c d"]) -> Any:
        alignment = partition.merge(trainable, frozen).alignment
        nats = [
            caption_nats(
                code_features(q.astype(jnp.float32), number, alignment.text_embed),
                captions, alignment.temperature,
            )
            for number, q in enumerate(codes)
        ]  # fmt: skip
        return sum(nats), jnp.stack(nats)

    @nnx.jit
    def step(trainable: Any, state: Any, frozen: Any, codes: Any, captions: Array) -> Any:
        gradient = jax.value_and_grad(loss, has_aux=True)
        (_, nats), grads = gradient(trainable, frozen, codes, captions)
        updates, state = optimizer.update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state, nats

    trainable, frozen = partition.trainable, partition.frozen
    state, rng, begin = optimizer.init(trainable), np.random.default_rng(args.seed), time.time()
    owner = rng.permutation(len(videos)) if args.shuffled else np.arange(len(videos))
    codes = stored_codes(system, videos)
    vectors = unit(system.tokenizer.captions(videos.text(np.arange(len(videos)))).pooled)
    for number in range(args.steps):
        rows = rng.choice(len(videos), args.batch, replace=False)
        others = rng.choice(len(videos), args.negatives, replace=False)
        captions = vectors[np.concatenate([owner[rows], others])]
        batch = tuple(level[rows] for level in codes)
        trainable, state, nats = step(trainable, state, frozen, batch, captions)
        if number % 50 == 0 or number == args.steps - 1:
            print(f"  step {number} {time.time() - begin:.0f} s {np.round(nats, 3)}", flush=True)
    return partition.merge(trainable, frozen)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure and write."""
    args = parser().parse_args(argv)
    tokenizer = load_tokenizer(args.tokenizer)
    networks = Networks(tokenizer)
    if tokenizer.alignment is None or not tokenizer.alignment.text_hidden:
        raise SystemExit(f"--tokenizer {args.tokenizer} has no map into the text space")
    alignment = retaught(tokenizer.alignment, {"text_neighbours": args.neighbours})
    system = Levels(tokenizer.model, alignment)
    videos = load_videos(networks, args.cache, seen_names(), args.films, (0, 0))
    system = train(args, system, videos)
    save(args.tokenizer, args.output, system, args.steps)
    tests = heldout_videos(networks, args.cache, args.test)
    found = measure(system.tokenizer, system.alignment, networks, tests, args.cache)
    settings = {k: v for k, v in vars(args).items() if not isinstance(v, Path)}
    print(json.dumps(found))
    if args.results:
        write_json(args.results, {"settings": settings} | found)


if __name__ == "__main__":
    main()
