"""Teach the head that predicts tokens from captions, on a tokenizer that stays as it is.

    python -m benchmarks.world.reading --tokenizer runs/world/aligned-0 --output runs/world_read

`alignment.py` trains levels and the embedding of codes in the text space; the head through which
the frozen language model predicts tokens is still fresh after it. Here only that head, the codes'
embedding in the model's input space and the markers of the sequence learn, on stored latents of the
world; with `--shuffled` each video keeps another's caption (the control: own captions gain
nothing). Prints nats per token of held-out videos under their own caption, none and another's.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import Array

from benchmarks.world.alignment import Levels, mixed
from benchmarks.world.features import Networks, Videos, load_videos
from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.data.world.vocabulary import seen_names
from pyratok_jax.evaluation.world_set import classes
from pyratok_jax.io.atomic import write_json
from pyratok_jax.losses.autoregressive import Prompts, autoregressive_loss, caption_nats
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.models.language.model import LanguageModel
from pyratok_jax.tokenizer import DESCRIPTION, load_tokenizer, write_description
from pyratok_jax.tokenizer.loading import tokenizer_folder
from pyratok_jax.training.optimizer import make_optimizer
from pyratok_jax.training.system import is_trainable

HELDOUT = 48


def taught_further(description: str) -> argparse.ArgumentParser:
    """Arguments of every training that leaves a tokenizer's tokens as they are."""
    p = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--tokenizer", required=True, help="working folder, or what is shipped")
    p.add_argument("--output", type=Path, required=True, help="folder of the tokenizer with it")
    p.add_argument("--results", type=Path, help="JSON file of the measurements")
    p.add_argument("--cache", type=Path, default=Path("runs/world_features"), help="folder")
    p.add_argument("--films", type=int, default=5100, help="training videos")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--shuffled", action="store_true", help="train on captions of other videos")
    return p


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = taught_further(__doc__.splitlines()[0])
    p.add_argument("--steps", type=int, default=250)
    p.add_argument("--batch", type=int, default=24)
    p.add_argument("--learning-rate", type=float, default=3e-3)
    p.add_argument("--tokens", type=int, default=64, help="of a video that are predicted")
    p.add_argument("--layers", type=int, default=6, help="of the language model")
    for name, what in (("pooled-text", "the pooled caption"), ("grid-places", "a code's place")):
        p.add_argument(
            f"--{name}",
            action=argparse.BooleanOptionalAction,
            default=True,
            help=f"add {what} to the inputs of the language model",
        )
    return p


def learns(name: str, variable: nnx.Variable) -> bool:
    """Whether an array is of the head, the codes' embedding or the markers."""
    kept = name.startswith("alignment.") and "text_embed" not in name and "temperature" not in name
    return kept and isinstance(variable, nnx.Param)


def guides(args: argparse.Namespace) -> dict[str, bool]:
    """What the inputs are told besides, as arguments of `Alignment`."""
    return {"pooled_text": args.pooled_text, "grid_places": args.grid_places}


def retaught(
    alignment: Alignment, changes: Mapping[str, bool], *, keeps_head: bool = True
) -> Alignment:
    """An alignment with other arguments that has what a trained one has.

    Args:
        alignment: the trained one.
        changes: arguments of `Alignment` that are to be others; what they add starts at zero.
        keeps_head: False: the map into the text space alone is kept, all else is fresh.
    """
    made = Alignment(**{**alignment.arguments, **changes}, rngs=nnx.Rngs(1))  # type: ignore[arg-type]
    kept = nnx.to_flat_state(nnx.state(alignment, nnx.Param))
    if not keeps_head:
        kept = [(path, x) for path, x in kept if str(path[0]).startswith(("text_", "log_"))]
    there = {path for path, _ in nnx.to_flat_state(nnx.state(made, nnx.Param))}
    nnx.update(made, nnx.from_flat_state([(path, x) for path, x in kept if path in there]))
    return made


def prompts_of(system: Levels, videos: Videos, rows: np.ndarray) -> Prompts:
    """The captions of some videos."""
    text = videos.text(rows)
    return Prompts(jnp.asarray(videos.ids[rows]), text.mask, system.tokenizer.captions(text).told)


def codes_of(system: Levels, latent: Array) -> tuple[Array, ...]:
    """Codes without a caption, from which no gradient is taken."""
    stages = tuple(jnp.zeros((len(latent), 1, 1, 1, 1)) for _ in range(4))
    levels, _ = system.tokenizer.quantize(stages, latent, None)
    return tuple(jax.lax.stop_gradient(level.q) for level in levels)


def train(args: argparse.Namespace, system: Levels, model: LanguageModel, videos: Videos) -> Levels:
    """Descend from a fresh head."""
    partition = Partition(system, learns)
    optimizer = make_optimizer(
        {"name": "adamw", "learning_rate": args.learning_rate, "warmup": min(10, args.steps // 4),
         "schedule": "cosine", "final_share": 0.05, "b1": 0.9, "b2": 0.99, "weight_decay": 0.0,
         "clip_norm": 1.0, "groups": ()},
        args.steps,
    )  # fmt: skip

    def loss(trainable: Any, frozen: Any, model: LanguageModel, latent: Array, own: Prompts,
             key: Array) -> Array:  # fmt: skip
        merged = partition.merge(trainable, frozen)
        return autoregressive_loss(
            merged.alignment, model, codes_of(merged, latent), (own.ids, own.mask), args.tokens,
            key, layers=args.layers, targets="fixed", pooled=own.pooled,
        )[0]  # fmt: skip

    @nnx.jit
    def step(trainable: Any, state: Any, frozen: Any, model: LanguageModel, *batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(trainable, frozen, model, *batch)
        updates, state = optimizer.update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state, value

    trainable, frozen = partition.trainable, partition.frozen
    state, rng, begin = optimizer.init(trainable), np.random.default_rng(args.seed), time.time()
    owner = rng.permutation(len(videos)) if args.shuffled else np.arange(len(videos))
    none = np.zeros(0, int)
    for number in range(args.steps):
        rows = rng.choice(len(videos), args.batch, replace=False)
        _, latent = mixed(videos, np.zeros((0, 0, 0, 0, 0)), rows, none)
        own = prompts_of(system, videos, owner[rows])
        key = jax.random.key(number)
        trainable, state, value = step(trainable, state, frozen, model, latent, own, key)
        if number % 25 == 0 or number == args.steps - 1:
            print(f"  step {number} {time.time() - begin:.0f} s {float(value):.3f}", flush=True)
    return partition.merge(trainable, frozen)


def heldout_nats(
    system: Levels, model: LanguageModel, videos: Videos, layers: int
) -> dict[str, float]:
    """Nats per token of all tokens of held-out videos, by caption and level."""

    @nnx.jit
    def run(system: Levels, model: LanguageModel, latent: Array, own: Prompts) -> Any:
        codes = codes_of(system, latent)
        return caption_nats(system.alignment, model, codes, own, None, layers=layers)

    parts = []
    for first in range(0, len(videos), 12):
        rows = np.arange(first, first + 12)
        latent = jnp.asarray(videos.latent[rows], jnp.float32)
        own = prompts_of(system, videos, rows)
        parts.append(jax.device_get(run(system, model, latent, own)))
    return {name: round(float(np.mean([p[name] for p in parts])), 4) for name in parts[0]}


def save(tokenizer: str, folder: Path, system: Levels, steps: int) -> None:
    """Write a tokenizer that was trained further; what is not trained is described as before.

    Args:
        tokenizer: that it comes from.
        folder: made if need be.
        system: what it is now.
        steps: of the training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = json.loads((tokenizer_folder(tokenizer) / DESCRIPTION).read_text())
    write_description(
        folder,
        system.tokenizer.config,
        backbone=told["backbone"],
        language_model=told["language_model"],
        alignment=system.alignment.arguments,
        dtype=told.get("dtype", "float32"),
    )
    arrays = Partition(system, is_trainable)
    with ocp.StandardCheckpointer() as checkpointer:
        place = folder.resolve() / "checkpoints" / str(steps) / "state"
        checkpointer.save(place, {"params": arrays.trainable}, force=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure and write."""
    args = parser().parse_args(argv)
    tokenizer, names = load_tokenizer(args.tokenizer), seen_names()
    networks = Networks(tokenizer)
    if tokenizer.alignment is None or tokenizer.text is None:
        raise SystemExit(f"--tokenizer {args.tokenizer} has no language model")
    alignment = retaught(tokenizer.alignment, guides(args), keeps_head=False)
    system, model = Levels(tokenizer.model, alignment), tokenizer.text.language_model
    videos = load_videos(networks, args.cache, names, args.films, (0, 0))
    heldout = load_videos(networks, args.cache, classes(names), HELDOUT, (9, 4))
    system = train(args, system, model, videos)
    save(args.tokenizer, args.output, system, args.steps)
    found = heldout_nats(system, model, heldout, args.layers)
    settings = {k: v for k, v in vars(args).items() if not isinstance(v, Path)}
    print(json.dumps(found))
    if args.results:
        write_json(args.results, {"settings": settings, "nats": found})


if __name__ == "__main__":
    main()
