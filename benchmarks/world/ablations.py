"""The paper's ablations on the world: what each part is worth for pictures and for words.

    python -m benchmarks.world.ablations --output benchmarks/results/world_ablations.json

Every row is a training of `alignment.py` on stored features with one thing changed, the same for
all else: videos, seeds, steps, the text term's total weight and, as nearly as whole numbers of bits
allow, the rate (.13 bits per pixel at 9x64x64), but for codebooks of published sizes. Measured on
held-out videos, encoded with the null caption: PSNR of what the codes decode to against what the
encoder's own latents decode to, PSNR of real scenes, names of seen and unseen pairs, and retrieval.
With `--output` the same command goes on after the last finished training; `--save` writes each
trained tokenizer, a folder that every command reads. The encoder and the
language model are frozen and not in the step: drift and the autoregressive loss cannot be taken out
here.
"""

import argparse
import dataclasses
import itertools
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.world.alignment import (
    Settings,
    Trainer,
    build,
    finished,
    make_settings,
    parser,
    save,
)
from benchmarks.world.features import FRAMES, SIDE, Networks, load_scenes, load_videos
from benchmarks.world.measures import heldout_videos, measure
from pyratok_jax.assets.programs import keep_programs
from pyratok_jax.data.world.vocabulary import seen_names
from pyratok_jax.io.atomic import write_json

# All levels read the latent, whose grid no first level may be finer than: not (1, 32) as published.
PYRAMID = ((4, 32), (4, 16), (4, 16), (4, 8))
LATENT = (4, 8)  # its stride; quantisers of the final latent have no other


def _grids(*grids: tuple[int, int], bits: int) -> dict[str, Any]:
    return {"grids": grids, "stages": (5,) * len(grids), "bits": bits}


def _latent(quantizer: str, levels: int, bits: int) -> dict[str, Any]:
    return {"quantizer": quantizer} | _grids(*[LATENT] * levels, bits=bits)


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A row.

    Attributes:
        group: table it belongs to.
        changes: of the full settings.
        variant: of `alignment.VARIANTS`.
        own_rate: its codebook has the published size, and so a rate of its own; else the rate is
            the full method's.
    """

    group: str
    changes: Mapping[str, Any]
    variant: str = "aligned"
    own_rate: bool = False


_NO_BIT_TERMS = {"entropy": 0.0, "text": 0.0}
ROWS: Mapping[str, Ablation] = {
    "full": Ablation("components", {}),
    "control: captions of other videos": Ablation("components", {}, "shuffled"),
    "no text guidance": Ablation(
        "components", {"text_guidance": False, "text": 0.0, "weight": 0.0}, "off"
    ),
    "no pyramid: four equal grids of 6 bits": Ablation("components", _grids(*[LATENT] * 4, bits=6)),
    "no LaPQ: one LFQ of 25 bits": Ablation("components", _latent("lfq", 1, 25) | _NO_BIT_TERMS),
    "no text-codebook alignment": Ablation("codebook terms", {"weight": 0.0}, "off"),
    "no text-conditioned alignment": Ablation("codebook terms", {"text": 0.0}),
    "no commitment": Ablation("codebook terms", {"commitment": 0.0}),
    "no entropy": Ablation("codebook terms", {"entropy": 0.0}),
    "2 blocks of 20 bits": Ablation("blocks", _grids((4, 16), LATENT, bits=20) | {"entropy": 0.0}),
    "3 blocks of 17 bits": Ablation("blocks", _grids((4, 16), (4, 16), LATENT, bits=17)),
    "residual LFQ, 2 x 12 bits": Ablation("quantisers", _latent("residual", 2, 12) | {"text": 0.0}),
    "RVQ, 3 x 256 vectors": Ablation("quantisers", _latent("rvq", 3, 8) | _NO_BIT_TERMS),
    "VQ 4096, vectors of 256": Ablation(
        "quantisers",
        _latent("vq", 1, 12) | {"code_width": 256} | _NO_BIT_TERMS,
        own_rate=True,
    ),
    "GVQ 2 x 4096, vectors of 256": Ablation(
        "quantisers",
        _latent("gvq", 2, 12) | {"code_width": 256} | _NO_BIT_TERMS,
        own_rate=True,
    ),
    "RVQ 2 x 8000, vectors of 512": Ablation(
        "quantisers",
        _latent("rvq", 2, 13) | {"vocabulary": 8000, "code_width": 512} | _NO_BIT_TERMS,
        own_rate=True,
    ),
    "RVQ 2 x 32800, vectors of 16": Ablation(
        "quantisers",
        _latent("rvq", 2, 16) | {"vocabulary": 32800} | _NO_BIT_TERMS,
        own_rate=True,
    ),
    "LFQ 2^16": Ablation("quantisers", _latent("lfq", 1, 16) | {"text": 0.0}, own_rate=True),
    "LaPQ 8000, 512 channels in a level": Ablation(
        "quantisers", {"bits": 13, "vocabulary": 8000, "width": 512}, own_rate=True
    ),
    "codebook of 2^12": Ablation("codebook sizes", {"bits": 12}, own_rate=True),
    "no residual (Eq. 1 as printed)": Ablation("inputs", {"inputs": "paper"}),
}


def slug(name: str) -> str:
    """A row's name as that of a folder: `no_lapq_one_lfq_of_25_bits`."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def bits_per_pixel(settings: Settings) -> float:
    """Rate of a video of the world."""
    tokens = sum(
        ((FRAMES - 1) // time + 1) * (SIDE // space) ** 2 for time, space in settings.grids
    )
    return tokens * settings.bits / (FRAMES * SIDE * SIDE)


def changed(base: Settings, changes: Mapping[str, Any]) -> Settings:
    """The settings of a row; its levels share the text term's total factor evenly."""
    made = dataclasses.replace(base, **changes)
    share = len(PYRAMID) / len(made.grids)
    return dataclasses.replace(made, levels=(share,) * len(made.grids))


def base_settings(args: argparse.Namespace) -> Settings:
    """The full method at the ablations' size."""
    made = dataclasses.replace(make_settings(args), **_grids(*PYRAMID, bits=16))
    return changed(made, {})


class Row:
    """Trainings of one row, whose step is compiled once."""

    def __init__(self, settings: Settings, variant: str, inputs: "Inputs") -> None:
        self.settings, self.variant, self.inputs = settings, variant, inputs
        self._trainer: Trainer | None = None

    def run(self, seed: int, folder: Path | None = None) -> dict[str, Any]:
        """Train, write the tokenizer to `folder`, if there is one, and measure."""
        settings, inputs, began = self.settings, self.inputs, time.time()
        start, root = build(settings, inputs.networks, inputs.videos, inputs.scenes, seed)
        self._trainer = self._trainer or Trainer(
            settings, start, root, inputs.videos, inputs.scenes
        )
        system = self._trainer.train(start, self.variant, seed)
        seconds = round(time.time() - began)
        if folder is not None:
            save(folder, system, inputs.networks, settings.steps)
        found = measure(
            system.tokenizer, system.alignment, inputs.networks, inputs.tests, inputs.cache
        )
        return {"bpp": round(bits_per_pixel(settings), 4), "seconds": seconds} | found


class Inputs:
    """What all trainings read."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.networks, self.cache = Networks(), args.cache
        self.videos = load_videos(self.networks, args.cache, seen_names(), args.films, (0, 0))
        self.tests = heldout_videos(self.networks, args.cache, args.test)
        self.scenes = load_scenes(self.networks, args.cache)


def summary(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A Markdown table: means, and the sample's standard deviations over the seeds."""
    lines = [
        "| what | bpp | PSNR of codes, dB | real scenes, dB | names seen, % | unseen, % | R@1, % "
        "| seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ROWS:
        rows = [row for row in runs if row["row"] == name]
        if not rows:
            continue
        cells = [name, f"{rows[0]['bpp']:.3f}"]
        for value, digits in (
            (lambda row: row["psnr of codes"], 2),
            (lambda row: row["psnr of held-out scenes"], 2),
            (lambda row: row["top-1 of 12, seen"][-1], 1),
            (lambda row: row["top-1 of 12, unseen"][-1], 1),
            (lambda row: row["retrieval R@1 of 100"], 1),
        ):
            values = np.array([value(row) for row in rows])
            spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.{digits}f}{spread}")
        lines.append("| " + " | ".join([*cells, str(len(rows))]) + " |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Train and measure every row with every seed; print the table."""
    p = parser()
    p.description = __doc__.splitlines()[0]
    p.add_argument("--rows", default="; ".join(ROWS), help="separated by semicolons")
    p.set_defaults(
        films=2040, steps=300, batch=16, scenes=6, negatives=48, levels=(1.0,), grids=PYRAMID,
        entropy=0.02, text=0.005, reconstruction=2.0, final_weight=1.0, learning_rate=5e-3,
        seeds="0,1,2", output=Path("runs/world_ablations.json"),
    )  # fmt: skip
    args = p.parse_args(argv)
    base = base_settings(args)
    facts = dataclasses.asdict(base) | {"films": args.films}
    runs = finished(args.output, facts)
    keep_programs(args.cache / "programs")
    inputs = Inputs(args)
    names = [part.strip() for part in args.rows.split(";")]
    rows = {
        name: Row(changed(base, ROWS[name].changes), ROWS[name].variant, inputs) for name in names
    }
    # Seeds in the outer loop, so that an early look compares all rows.
    for seed, name in itertools.product(map(int, args.seeds.split(",")), names):
        if any((row["row"], row["seed"]) == (name, seed) for row in runs):
            continue
        print(f"{name}, seed {seed}", flush=True)
        folder = args.save / f"{slug(name)}-{seed}" if args.save else None
        found = rows[name].run(seed, folder)
        runs.append({"row": name, "group": ROWS[name].group, "seed": seed} | found)
        print(json.dumps(runs[-1]), flush=True)
        write_json(args.output, {"settings": facts, "runs": runs})
    print("\n".join(summary(runs)))


if __name__ == "__main__":
    main()
