"""What a caption tells the levels of patches that the encoder does not see.

    python -m benchmarks.world.hidden --output runs/hidden.json

A trained tokenizer takes some more steps on stored features (`alignment.py`). In half of the videos
three quarters of the patches are hidden from the encoder (others in every frame, or the same with
`--how tubes`), the levels are to rebuild the clean latent all the same, and see the caption. Then
what a caption is worth on held-out videos: the PSNR inside things with the video's own caption,
none, and another's.

| variant | captions, of the levels and of the text term |
|---|---|
| aligned | each video's own |
| shuffled | another video's, always the same: the control, in which own and another's are alike |
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from benchmarks.world.alignment import Batch, Levels, Trainer, finished, make_settings
from benchmarks.world.alignment import parser as settings_parser
from benchmarks.world.features import HIDINGS, LENGTH, Networks, load_scenes, load_videos
from benchmarks.world.measures import heldout_videos, hidden_psnr, measure
from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.data.world.vocabulary import seen_names
from pyratok_jax.io.atomic import write_json
from pyratok_jax.models.language.model import TextEncoder
from pyratok_jax.models.pyratok.quantizers.final_latent import square_root
from pyratok_jax.tokenizer import Tokenizer, load_tokenizer
from pyratok_jax.training.init.calibration import metric_of


def parser() -> argparse.ArgumentParser:
    """The command line; the settings of `alignment.py` hold for what it does not have."""
    p = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--tokenizer", default="builtin:world", help="that the trainings start from")
    p.add_argument("--variants", default="aligned,shuffled")
    p.add_argument("--seeds", default="0,1,2")
    p.add_argument("--cache", type=Path, default=Path("runs/world_features"), help="folder")
    p.add_argument("--output", type=Path, help="JSON file of all measurements")
    p.add_argument("--how", choices=HIDINGS, default="frames", help="patches are hidden")
    p.add_argument("--share", type=float, default=0.5, help="of the videos, with hidden patches")
    p.add_argument("--films", type=int, default=2040, help="training videos")
    p.add_argument("--steps", type=int, default=400)
    p.add_argument("--learning-rate", type=float, default=1e-3, help="of the levels")
    p.add_argument("--test", type=int, default=144, help="held-out videos of 12 classes")
    return p


class HiddenTrainer(Trainer):
    """A trainer some of whose videos have hidden patches."""

    latents: Float[np.ndarray, "n t h w z"]
    share: float

    def batch(
        self,
        rows: Int[np.ndarray, " b"],
        captions: Int[np.ndarray, " b"],
        vectors: Float[Array, "n d"],
        weight: float,
        rng: np.random.Generator,
    ) -> Batch:
        """As `Trainer.batch`; videos with hidden patches show their captions."""
        batch = super().batch(rows, captions, vectors, weight, rng)
        chosen = jnp.asarray(rng.random(len(rows)) < self.share)
        videos = jnp.where(
            chosen[:, None, None, None, None],
            jnp.asarray(self.latents[rows], jnp.float32),
            batch.latent[: len(rows)],
        )
        seen = jnp.concatenate([videos, batch.latent[len(rows) :]])
        return batch._replace(seen=seen, hidden=batch.hidden & ~chosen)


def main(argv: Sequence[str] | None = None) -> None:
    """Run all variants of all seeds and print, and write, their numbers."""
    args = parser().parse_args(argv)
    shipped, names = load_tokenizer(args.tokenizer), seen_names()
    networks = Networks(shipped)
    assert shipped.alignment is not None, "it was trained without a text term"
    start = Levels(shipped.model, shipped.alignment)
    videos = load_videos(networks, args.cache, names, args.films, (0, 0))
    scenes = load_scenes(networks, args.cache)
    chosen = ["--steps", str(args.steps), "--learning-rate", str(args.learning_rate)]
    settings = make_settings(settings_parser().parse_args(chosen))
    settings = dataclasses.replace(settings, weight=settings.final_weight)
    root = square_root(metric_of(start.tokenizer, np.asarray(scenes[:64], np.float32), 0))
    trainer = HiddenTrainer(settings, start, root, videos, scenes)
    through = load_videos(networks, args.cache, names, args.films, (0, 0), hidden=args.how)
    trainer.latents, trainer.share = through.latent, args.share
    tests = heldout_videos(networks, args.cache, args.test)
    asked = {
        "films": args.films,
        "share": args.share,
        "how": args.how,
        **dataclasses.asdict(settings),
    }
    rows = finished(args.output, asked)
    done = {(row["variant"], row["seed"]) for row in rows}
    for seed in map(int, args.seeds.split(",")):
        for variant in args.variants.split(","):
            if (variant, seed) in done:
                continue
            print(f"{variant}, seed {seed}", flush=True)
            system = trainer.train(start, variant, seed)
            found = measure(system.tokenizer, system.alignment, networks, tests, args.cache)
            tokenizer = Tokenizer(
                system.tokenizer,
                text=TextEncoder(networks.language.model),
                captions=CaptionTokenizer(networks.language.tokenizer, LENGTH),
                alignment=system.alignment,
            )
            rows.append(
                {"variant": variant, "seed": seed} | hidden_psnr(tokenizer, args.how) | found
            )
            print(json.dumps(rows[-1]), flush=True)
            if args.output:
                write_json(args.output, {"settings": asked, "runs": rows})


if __name__ == "__main__":
    main()
