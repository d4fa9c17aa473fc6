"""What stored features of the world hold, by closed-form probes: bounds for `alignment.py`.

    python -m benchmarks.world.probes

Ridge regressions from the frozen encoder's features to colour, shape and motion, trained on the
training videos and tested on held-out ones, whose pairs of colour and shape are seen or unseen in
training; and how well captions themselves find the class prompts ("text to text").
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from benchmarks.world.features import Networks, Videos, load_videos
from benchmarks.world.measures import queries
from pyratok_jax.data.world.vocabulary import (
    COLOURS,
    MOTIONS,
    SEEN_SHAPES,
    seen_names,
    unseen_names,
)
from pyratok_jax.evaluation.world_set import classes

PROJECTIONS = 200
RIDGE = 300.0
Features = Callable[[Videos], Float[np.ndarray, "n d"]]


def moments(videos: Videos) -> Float[np.ndarray, "n d"]:
    """Mean, deviation and extremes over positions of the stages' and the latent's channels."""
    found = []
    for stage in (*videos.stages, videos.latent):
        x = stage.astype(np.float32).reshape(len(videos), -1, stage.shape[-1])
        found += [x.mean(axis=1), x.std(axis=1), x.max(axis=1), x.min(axis=1)]
    return np.concatenate(found, axis=1)


def peaks(videos: Videos) -> Float[np.ndarray, "n d"]:
    """Greatest value over positions, and mean, of random projections of the latent."""
    rng = np.random.default_rng(0)
    channels = videos.latent.shape[-1]
    directions = rng.normal(size=(channels, PROJECTIONS)).astype(np.float32)
    x = videos.latent.astype(np.float32).reshape(len(videos), -1, channels) @ directions
    return np.concatenate([x.max(axis=1), x.mean(axis=1)], axis=1)


def probe(
    train: Float[np.ndarray, "n d"], test: Float[np.ndarray, "m d"],
    labels: Sequence[str], truth: Sequence[str], names: Sequence[str],
) -> float:  # fmt: skip
    """Right labels in percent of a ridge regression to one-hot labels."""
    mean, spread = train.mean(axis=0), train.std(axis=0) + 1e-6
    x, y = (train - mean) / spread, (test - mean) / spread
    target = np.eye(len(names))[[names.index(label) for label in labels]] - 1 / len(names)
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ target)
    best = (y @ weights).argmax(axis=1)
    return round(100 * float(np.mean([names[b] == t for b, t in zip(best, truth, strict=True)])), 1)


def pooled(words: np.ndarray, mask: np.ndarray) -> Float[np.ndarray, "n d"]:
    """Mean state of each text's words."""
    total = np.where(mask[..., None], words.astype(np.float32), 0.0).sum(axis=1)
    return total / mask.sum(axis=1, keepdims=True)


def text_to_text(networks: Networks, folder: Path, train: Videos, test: Videos) -> float:
    """Percent of held-out captions whose nearest class prompt is right, features standardised."""
    names = sorted(set(test.names))
    prompts = queries(networks, folder, names)
    known = pooled(train.words, train.mask)
    mean, variance = known.mean(axis=0), known.var(axis=0)
    spread = np.sqrt(np.maximum(variance, 0.1 * np.median(variance)))
    a = (pooled(test.words, test.mask) - mean) / spread
    b = (pooled(np.asarray(prompts.embeddings), np.asarray(prompts.mask)) - mean) / spread
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    best = (a @ b.T).argmax(axis=1)
    right = [names[i] == name for i, name in zip(best, test.names, strict=True)]
    return round(100 * float(np.mean(right)), 1)


def main() -> None:
    """Print every probe's percentages on videos of seen and of unseen pairs."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--cache", type=Path, default=Path("runs/world_features"))
    p.add_argument("--films", type=int, default=1530)
    args = p.parse_args()
    networks = Networks()
    train = load_videos(networks, args.cache, seen_names(), args.films, (0, 0))
    tests = {
        "seen": load_videos(networks, args.cache, classes(seen_names()), 144, (9, 1)),
        "unseen": load_videos(networks, args.cache, classes(unseen_names()), 144, (9, 2)),
    }
    found = {kind: text_to_text(networks, args.cache, train, v) for kind, v in tests.items()}
    print(json.dumps({"text to text, top-1 of 12": found}), flush=True)
    labels: dict[str, tuple[Callable[[Videos], list[str]], list[str]]] = {
        "colour": (lambda v: [name.split()[0] for name in v.names], list(COLOURS)),
        "shape": (lambda v: [name.split()[1] for name in v.names], list(SEEN_SHAPES)),
        "motion": (lambda v: v.motions, list(MOTIONS)),
    }
    features: dict[str, Features] = {"moments": moments, "peaks of the latent": peaks}
    for kind, extract in features.items():
        x = extract(train)
        for label, (of, names) in labels.items():
            found = {
                split: probe(x, extract(videos), of(train), of(videos), names)
                for split, videos in tests.items()
            }
            print(json.dumps({f"{label} from {kind}": found, "chance": 100 / len(names)}))


if __name__ == "__main__":
    main()
