"""How much language gets into the tokens: the levels trained on stored features of the world.

    python -m benchmarks.world_alignment --steps 300 --variant aligned
    python -m benchmarks.world_alignment --variant shuffled     # the control: must be at chance
    python -m benchmarks.world_alignment --variant off

Encoder, decoder and language model are run once, on all films and captions; a step then costs the
levels alone (with --autoregressive also some layers of the language model). Measured on held-out
films, encoded with the null caption: the right one of 12 names by the cosine of mean codes and "a
video of a NAME.", for pairs of colour and shape that training shows and for pairs that it does not;
retrieval of a film's caption among all held-out ones; nats per token of level 1 with own and
shuffled captions; the latent's error.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from pyratok_jax.checkpoints.modules import build_module
from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.checkpoints.pretrained import Language, load_backbone, load_language
from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.data.world.films import WorldFilm
from pyratok_jax.data.world.scenes import KINDS, Scene, draw_backdrop, draw_thing
from pyratok_jax.data.world.sentences import caption
from pyratok_jax.data.world.vocabulary import seen_names, unseen_names
from pyratok_jax.evaluation.world_set import classes
from pyratok_jax.losses import codebook
from pyratok_jax.losses.autoregressive import autoregressive_loss, caption_nats
from pyratok_jax.losses.text import code_features, contrastive, unit
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.models.language.text import TextEncoder
from pyratok_jax.models.pyratok.model import PyraTok, PyraTokConfig
from pyratok_jax.models.vae_families import build_vae
from pyratok_jax.models.video_vae import VideoVAE
from pyratok_jax.nn.text_attention import TextCondition
from pyratok_jax.tokenizer import to_model_range
from pyratok_jax.training.optimizer import make_optimizer
from pyratok_jax.training.system import is_trainable

FRAMES, SIDE, LENGTH = 9, 64, 24
GROUPS = ((r"alignment\.|attention\.|text_prior|null_text", 3.0),)
VARIANTS = ("aligned", "shuffled", "off")


class System(nnx.Module):
    """What trains: the levels and the alignment."""

    def __init__(self, tokenizer: PyraTok, alignment: Alignment):
        self.tokenizer, self.alignment = tokenizer, alignment


@dataclasses.dataclass
class Films:
    """Stored features of films; a pytree of arrays by film, and what they show."""

    latent: jax.Array
    stages: tuple[jax.Array, ...]
    ids: np.ndarray
    mask: np.ndarray
    text: jax.Array
    names: list[str]
    captions: list[str]

    def batch(self, rows: np.ndarray) -> dict[str, Any]:
        """The arrays of some films."""
        return {
            "latent": self.latent[rows],
            "stages": tuple(s[rows] for s in self.stages),
            "text": self.text[rows],
            "ids": jnp.asarray(self.ids[rows]),
            "mask": jnp.asarray(self.mask[rows]),
        }


def single(seed: int, name: str) -> WorldFilm:
    """A film of one thing."""
    rng = np.random.default_rng(seed)
    thing = draw_thing(rng, (name.split()[0], name.split()[1]))
    scene = Scene((thing,), (draw_backdrop(rng),), KINDS[0])
    return WorldFilm(scene, caption(scene, rng), ())


def store(
    films: list[WorldFilm], vae: VideoVAE, language: Language, embed: Callable[..., Any]
) -> Films:
    """Encode films and captions once."""

    @nnx.jit
    def features(vae: VideoVAE, video: jax.Array) -> Any:
        posterior = vae.posterior(to_model_range(video))
        return vae.normalize(posterior.mean), tuple(posterior.stages)

    videos = np.stack([film.draw(FRAMES, SIDE, SIDE) for film in films])
    parts = [features(vae, jnp.asarray(videos[i : i + 20])) for i in range(0, len(videos), 20)]
    latent, stages = jax.tree.map(lambda *a: jnp.concatenate(a), *parts)
    captions = [film.caption for film in films]
    ids, mask = CaptionTokenizer(language.tokenizer, LENGTH)(captions)
    text = jnp.concatenate(
        [embed(ids[i : i + 40], mask[i : i + 40]) for i in range(0, len(ids), 40)]
    )
    names = [film.scene.things[0].name for film in films]
    return Films(latent, stages, ids, mask, text, names, captions)


def make_loss(args: argparse.Namespace, partition: Partition, language: Language) -> Callable:
    """(trainable, frozen, batch, dropped, permutation, key) -> loss and metrics."""

    def loss(trainable: Any, frozen: Any, batch: Any, dropped: Any, order: Any, key: Any) -> Any:
        system = partition.merge(trainable, frozen)
        tokenizer, alignment = system.tokenizer, system.alignment
        text = TextCondition(batch["text"][order], batch["mask"][order])
        seen = text._replace(mask=text.mask & ~dropped[:, None])
        levels, latent = tokenizer.quantize(batch["stages"], batch["latent"], seen)
        error = jnp.mean((latent - batch["latent"]) ** 2)
        total = error + 0.05 * sum(
            jnp.mean((x.z - jax.lax.stop_gradient(x.q)) ** 2) for x in levels
        )
        total += 0.01 * sum(codebook.entropy(x.z, temperature=0.25)[0] for x in levels)
        total += tokenizer.text_statistics.tracking(text)
        found = {"error": error}
        if args.variant != "off":
            captions = tokenizer.captions(text)
            for number, level in enumerate(levels):
                features = code_features(level.q, number, alignment.text_embed, 256)
                value = contrastive(features, captions, alignment.temperature, pooling=args.pooling)
                total += args.weight * value
                found[f"contrastive/{number + 1}"] = value
        if args.autoregressive:
            value, metrics = autoregressive_loss(
                alignment, language.model, tuple(x.q for x in levels),
                (batch["ids"][order], batch["mask"][order]), args.budget, key, layers=args.layers,
            )  # fmt: skip
            total += args.autoregressive * value
            found["autoregressive/1"] = metrics["level_1"]
        return total, found

    return loss


def train(args: argparse.Namespace, system: System, films: Films, language: Language) -> System:
    """Descend on random batches of stored features."""
    partition = Partition(system, is_trainable)
    optimizer = make_optimizer(
        {"name": "adamw", "learning_rate": 3e-4, "warmup": min(20, args.steps // 4),
         "schedule": "cosine", "final_share": 0.02, "b1": 0.9, "b2": 0.99,
         "weight_decay": 0.0, "clip_norm": 1.0,
         "groups": GROUPS},
        args.steps,
    )  # fmt: skip
    loss = make_loss(args, partition, language)
    trainable, state = partition.trainable, optimizer.init(partition.trainable)

    @jax.jit
    def step(trainable: Any, state: Any, frozen: Any, *inputs: Any) -> Any:
        (_, found), grads = jax.value_and_grad(loss, has_aux=True)(trainable, frozen, *inputs)
        updates, state = optimizer.update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state, found

    rng, begin = np.random.default_rng(args.seed), time.time()
    for number in range(args.steps):
        rows = rng.choice(len(films.names), args.batch, replace=False)
        order = rng.permutation(args.batch) if args.variant == "shuffled" else np.arange(args.batch)
        dropped = jnp.asarray(rng.random(args.batch) < 0.3)
        key = jax.random.key(int(rng.integers(2**31)))
        inputs = (films.batch(rows), dropped, jnp.asarray(order), key)
        trainable, state, found = step(trainable, state, partition.frozen, *inputs)
        if number % 50 == 0 or number == args.steps - 1:
            shown = {k: round(float(v), 4) for k, v in found.items()}
            print(f"step {number} {time.time() - begin:.0f} s {shown}", flush=True)
    return partition.merge(trainable, partition.frozen)


def codes_of(system: System, films: Films, null: bool = True) -> Any:
    """Codes of all films without a caption, mean unit code features by level, latent error."""

    @nnx.jit
    def run(system: System, batch: Any) -> Any:
        levels, latent = system.tokenizer.quantize(batch["stages"], batch["latent"], None)
        pooled = [
            unit(jnp.mean(code_features(x.q, i, system.alignment.text_embed), axis=1))
            for i, x in enumerate(levels)
        ]
        return (
            tuple(x.q for x in levels),
            jnp.stack(pooled),
            jnp.mean((latent - batch["latent"]) ** 2),
        )

    return run(system, films.batch(np.arange(len(films.names))))


def zero_shot(system: System, films: Films, names: list[str], queries: Any) -> list[float]:
    """Top-1 in percent of each level and of their mean."""
    _, pooled, _ = codes_of(system, films)
    vectors = unit(system.tokenizer.captions(queries).pooled)
    scores = jnp.einsum("lbd,cd->lbc", pooled, vectors)
    scores = jnp.concatenate([scores, scores.mean(axis=0, keepdims=True)])
    right = np.array([names.index(name) for name in films.names])
    return [round(100 * float((s.argmax(axis=1) == right).mean()), 1) for s in np.asarray(scores)]


def measure(
    system: System, seen: Films, unseen: Films, language: Language, args: argparse.Namespace,
    embed_names: Callable[[list[str]], TextCondition],
) -> dict[str, Any]:  # fmt: skip
    """All measurements on held-out films."""
    found: dict[str, Any] = {}
    for kind, films in (("seen", seen), ("unseen", unseen)):
        names = sorted(set(films.names))
        found[f"zero-shot top-1 of {len(names)}, {kind}"] = zero_shot(
            system, films, names, embed_names(names)
        )
    codes, pooled, error = codes_of(system, seen)
    text = TextCondition(seen.text, jnp.asarray(seen.mask))
    scores = jnp.mean(pooled, axis=0) @ unit(system.tokenizer.captions(text).pooled).T
    best = np.asarray(scores.argmax(axis=1))
    right = [seen.captions[b] == seen.captions[i] for i, b in enumerate(best)]
    found[f"retrieval R@1 of {len(right)}"] = round(100 * float(np.mean(right)), 1)
    found["latent error"] = round(float(error), 4)
    if args.autoregressive:
        # Neighbours must differ: held-out films come class by class.
        rows = np.random.default_rng(0).permutation(len(seen.names))[:32]
        nats = nnx.jit(caption_nats, static_argnames=("layers", "token_budget"))(
            system.alignment, language.model, tuple(q[rows] for q in codes),
            jnp.asarray(seen.ids[rows]), jnp.asarray(seen.mask[rows]),
            token_budget=args.budget, layers=args.layers,
        )  # fmt: skip
        found["nats"] = {k: round(float(v), 3) for k, v in sorted(nats.items())}
        used = [len(np.unique(np.asarray(q > 0).reshape(-1, q.shape[-1]), axis=0)) for q in codes]
        found["codes in use"] = used
    return found


def main() -> None:
    """Run one variant and print its numbers."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument(
        "--variant", default="aligned", help="one or more, with commas: " + str(VARIANTS)
    )
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--films", type=int, default=400)
    p.add_argument("--test", type=int, default=6, help="held-out films of each class")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--weight", type=float, default=0.1)
    p.add_argument("--pooling", default="both")
    p.add_argument("--autoregressive", type=float, default=0.0)
    p.add_argument("--budget", type=int, default=48)
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--calibration", type=int, default=60)
    args = p.parse_args()
    language = load_language("builtin:smollm2")
    encoder = TextEncoder(language.model)
    run = nnx.jit(lambda m, i, k: m(i, k).embeddings.astype(jnp.float32))
    embed = lambda ids, mask: run(encoder, jnp.asarray(ids), jnp.asarray(mask))  # noqa: E731
    names = seen_names()
    made = [single(1000 * args.seed + i, names[i % len(names)]) for i in range(args.films)]
    backbone = load_backbone("builtin:demo-backbone")
    vae = build_module(lambda: build_vae(backbone.config, rngs=nnx.Rngs(0)), backbone.arrays)
    begin = time.time()
    films = store(made, vae, language, embed)
    tests = [
        store([single(10**6 + 100 * i + n, name) for i, name in enumerate(classes(kind))
               for n in range(args.test)], vae, language, embed)
        for kind in (names, unseen_names())
    ]  # fmt: skip
    print(f"features of {len(made)} films in {time.time() - begin:.0f} s", flush=True)
    config = PyraTokConfig(
        vae=backbone.config, grids="pyramid", width=64, heads=4, synthesis_width=32, lora_rank=0,
        text_width=language.model.config.width,
    )  # fmt: skip
    tokenizer = PyraTok(config, rngs=nnx.Rngs(args.seed), vae=vae)
    tokenizer.quantizer.fit(
        [np.asarray(films.latent[:64])],
        stages=[tuple(np.asarray(stage[:64]) for stage in films.stages)],
        steps=args.calibration,
    )
    alignment = Alignment(
        config.bits, 4, language.model.config.width, rngs=nnx.Rngs(args.seed + 1), text_hidden=256
    )
    start = System(tokenizer, alignment)

    def embed_names(names: list[str]) -> TextCondition:
        said = [f"A video of {'an' if n[0] in 'aeiou' else 'a'} {n}." for n in names]
        ids, mask = CaptionTokenizer(language.tokenizer, LENGTH)(said)
        return TextCondition(embed(ids, mask), jnp.asarray(mask))

    for variant in args.variant.split(","):
        args.variant = variant
        system = train(args, nnx.clone(start), films, language)
        found = measure(system, *tests, language, args, embed_names)
        row = {"variant": variant, "seed": args.seed, "steps": args.steps} | found
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
