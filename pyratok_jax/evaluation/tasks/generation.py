"""How good the videos of a trained prior are: FVD by named protocols, and what it does not see."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from pyratok_jax.checkpoints.scorers import load_c3d, load_clip
from pyratok_jax.data.video.files import BrokenVideoError
from pyratok_jax.data.world.reader import LEAST_FRAMES, read_video
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.clips import resized
from pyratok_jax.evaluation.data.reference import (
    GENERATION_PROTOCOLS,
    Reference,
    real_rate,
    reference_clip,
    references,
)
from pyratok_jax.evaluation.models.generators import (
    BaselineSamples,
    PriorSamples,
    SampleFiles,
    SampleModel,
    Wanted,
)
from pyratok_jax.evaluation.sample_scores import (
    code_figures,
    distances,
    faithfulness,
    intervals,
    means_of,
    nearest,
    other_prompts,
    pitfalls,
    quality,
)
from pyratok_jax.evaluation.task import (
    Item,
    Metrics,
    Partial,
    Picture,
    Task,
    clip_facts,
    parse_numbers,
)
from pyratok_jax.io import Json
from pyratok_jax.metrics import fvd, inception_score, temporal, text_similarity

if TYPE_CHECKING:
    from pyratok_jax.models.prior.config import Sampling
    from pyratok_jax.tokenizer import Tokenizer

_CONDITIONS = ("captions", "classes", "none")
_TRAINED = -1.0  # of guidance and choice_temperature: as the training said
_SHOWN = 6  # Frames of a strip.


@dataclasses.dataclass(frozen=True)
class Block:
    """Samples `first`, `first` + 1, ... and the real clips that they are compared with.

    `others` are prompts of other clips, each unlike the clip's own; "" where all are alike.
    """

    first: int
    references: tuple[Reference, ...]
    others: tuple[str, ...]


@dataclasses.dataclass
class Generation(Task[SampleModel, Block]):
    """The task; an item is a block of `batch` samples."""

    name = "generation"
    description = (
        "Videos of a trained prior: FVD by named protocols (--protocol), nats per token, nearest "
        "real clip, entropy of codes, consistency over time beside motion; of world prompts, what "
        "the videos show."
    )
    data_help = "the real clips: any source; builtin:world-heldout gives its prompts"
    columns = (
        ("fvd", "FVD", 1), ("fvd_reconstruction", "rFVD", 1), ("nats", "nats/token", 3),
        ("inception_score", "IS", 2), ("clipsim", "CLIPSIM", 4),
        ("dynamic_degree", "dynamic", 2), ("faithful", "faithful", 3),
    )  # fmt: skip
    counted = "blocks"
    protocols: ClassVar = GENERATION_PROTOCOLS
    baselines: ClassVar = ("oracle", "frozen", "random")
    late_settings: ClassVar = frozenset({"deviate"})

    samples: int = 2048
    frames: int = 16
    interval: int = 1
    side: int = 128
    condition: str = "captions"
    covariance: str = "unbiased"
    through: int = 0
    things: int = 0
    repeats: int = 1
    seed: int = 0
    batch: int = 8
    fvd: bool = True
    c3d: str = ""
    clip: str = ""
    prior: bool = True
    candidates: int = 1
    guidance: float = _TRAINED
    choice_temperature: float = _TRAINED
    temperature: str = ""
    top_p: str = ""
    steps: str = ""
    claims: str = ""
    deviate: bool = False

    def __post_init__(self) -> None:
        self._features: Callable[[np.ndarray], np.ndarray | None] | None = None
        self._classes: inception_score.VideoClasses | None = None
        self._likeness: text_similarity.TextSimilarity | None = None
        self._rate: float | None = None  # Of the first real clip.

    def wrap(self, tokenizer: "Tokenizer") -> SampleModel:
        """Refused: a tokenizer draws nothing."""
        raise UserError("the task generation takes the --workdir of a trained prior")

    def load(self, checkpoint: str, **frozen: str) -> SampleModel:
        """A prior, with the sampling that the settings say."""
        from pyratok_jax.generator import load_generator

        if frozen:
            raise UserError(f"--{next(iter(frozen))} belongs to a tokenizer, not to a prior")
        generator = load_generator(checkpoint)
        return PriorSamples(generator, self._sampling(generator.sampling), self.candidates)

    def baseline(self, kind: str) -> SampleModel:
        """See `generators.BaselineSamples`."""
        return BaselineSamples(kind)

    def external(
        self, folder: str, rate: float | None, name: str, clips: Sequence[str]
    ) -> SampleModel:
        """Videos that were written before, see `generators.SampleFiles`."""
        if rate is not None:
            raise UserError("--rate says nothing about generated videos; leave it out")
        return SampleFiles(folder, name)

    def checkpoint_facts(self, model: SampleModel) -> dict[str, Json]:
        """Which prior was measured, however it was sampled from: `publish` compares it."""
        return {"generator": model.generator_hash} if model.generator_hash else {}

    def check(self) -> None:
        """Refuse impossible settings."""
        if self.condition not in _CONDITIONS:
            raise UserError(f"--set condition={self.condition}: expected {', '.join(_CONDITIONS)}")
        if self.covariance not in ("biased", "unbiased"):
            raise UserError(f"--set covariance={self.covariance}: expected biased or unbiased")
        for name in ("samples", "frames", "interval", "side", "repeats", "batch", "candidates"):
            if getattr(self, name) < 1:
                raise UserError(f"--set {name}={getattr(self, name)}: expected at least 1")
        for name in ("guidance", "choice_temperature"):
            value = getattr(self, name)
            if value != _TRAINED and not 0 <= value < math.inf:
                raise UserError(
                    f"--set {name}={value}: expected a finite number from 0, or {_TRAINED:g} for "
                    "that of the training"
                )
        if self.things not in range(4):
            raise UserError(f"--set things={self.things}: expected 1 to 3, 0 for any number")
        if self.through < 0:
            raise UserError(f"--set through={self.through}: expected a side in pixels, 0 for none")
        if self.claims:
            self._check_claim()

    def _check_claim(self) -> None:
        """Refuse settings that are not those of the protocol whose name the results would have."""
        known = GENERATION_PROTOCOLS.get(self.claims)
        if known is None:
            raise UserError(
                f"--set claims={self.claims}: expected one of {', '.join(GENERATION_PROTOCOLS)}"
            )
        wanted = {**known, "interval": 1, "fvd": True}
        for name, value in wanted.items():
            if getattr(self, name) != value:
                self._not_the_protocol(f"it has {name}={value}, not {getattr(self, name)}")

    def _not_the_protocol(self, why: str) -> None:
        """Refuse, unless `deviate` says that the results will be named otherwise."""
        if self.claims and not self.deviate:
            raise UserError(
                f"this is not the protocol {self.claims}: {why}; --set deviate=true measures all "
                f'the same and calls the results "not {self.claims}"'
            )

    def row_columns(self) -> Sequence[tuple[str, str, int]]:
        """The columns; where the run deviates, its distance is not that of the published rows."""
        if not (self.claims and self.deviate):
            return self.columns
        return [(key, f"FVD (not {self.claims})" if key == "fvd" else title, digits)
                for key, title, digits in self.columns]  # fmt: skip

    def protocol(self) -> dict[str, Any]:
        """Settings, and the conventions of every metric."""
        return self.settings() | {
            "metrics": {
                "fvd": fvd.PROTOCOL + f"; covariances {self.covariance}"
                + (f"; frames resized to {self.through} before" if self.through else ""),
                "inception_score": inception_score.PROTOCOL if self.c3d
                else "not measured: --set c3d=DIR of weights_conversion.c3d",
                "clipsim": text_similarity.PROTOCOL if self.clip
                else "not measured: --set clip=DIR of weights_conversion.clip",
                **temporal.PROTOCOL,
                "TC": "the column of published tables is defined nowhere; not computed",
            },
        }  # fmt: skip

    def items(self) -> list[Item[Block]]:
        """Blocks of samples, `repeats` times over the real clips."""
        found = references(
            self.data, samples=self.samples, frames=self.frames, interval=self.interval,
            side=self.side, seed=self.seed, condition=self.condition, things=self.things,
        )  # fmt: skip
        different = len({one.record.id for one in found})
        if different < self.samples:
            self._not_the_protocol(
                f"it compares {self.samples} clips, and {self.data} has {different} that are long "
                "enough"
            )
        with contextlib.suppress(BrokenVideoError):  # Its samples will say so.
            self._rate = real_rate(found[0].record)
        others = other_prompts([one.prompt for one in found]) * self.repeats
        found *= self.repeats
        return [
            Item(
                f"samples/{start:06d}",
                Block(
                    start,
                    tuple(found[start : start + self.batch]),
                    tuple(others[start : start + self.batch]),
                ),
            )
            for start in range(0, len(found), self.batch)
        ]

    def prepare(self, model: SampleModel) -> None:
        """Load the network of the Frechet distance.

        Raises:
            UserError: no weights, or samples at other times than the protocol's real clips.
        """
        holds, found_rates = intervals([[self._rate, model.fps]], self.interval)
        if not holds:
            self._not_the_protocol(f"frames are not as far apart in time: {found_rates}")
        if self._measures_fvd():
            self._features = fvd.load_features()
        if self.c3d:
            self._classes = inception_score.VideoClasses(load_c3d(self.c3d))
        if self.clip:
            self._likeness = text_similarity.TextSimilarity(load_clip(self.clip))

    def evaluate_item(self, model: SampleModel, item: Item[Block]) -> Partial:
        """Draw a block, and all that is measured of each sample and of its real clip."""
        block = item.content
        real = [self._real(one, block.first + n) for n, one in enumerate(block.references)]
        prompts = [one.prompt for one in block.references]
        made = model.draw(Wanted(prompts, block.first, self.seed, real))
        part: Partial = {
            "clip": clip_facts(real[0], None),
            "prompts": prompts,
            "records": [one.record.id for one in block.references],
            "rates": [real_rate(block.references[0].record), model.fps],
            "vocabulary": model.vocabulary,
            "strip": np.concatenate([_strip(real[0]), _strip(made[0].video)]),
        }
        part |= {"range": [_range(real), _range([one.video for one in made])]}
        for name, clips in (("real", real), ("made", [one.video for one in made])):
            if self.frames >= 3:
                rows = [temporal.temporal_measures(clip) for clip in clips]
                part[f"time_{name}"] = np.array(
                    [[row[m] for m in temporal.MEASURES] for row in rows]
                )
            part |= self._featured(f"fvd_{name}", clips) | self._scored(name, clips, prompts)
        part |= _codes("made", [one.ids for one in made])
        if self.prior:
            part |= self._looks(model, block, real)
        part |= self._faithful("world", block, [one.video for one in made])
        return part

    def aggregate(self, partials: Mapping[str, Partial]) -> Metrics:
        """Metrics over all samples."""
        parts = list(partials.values())
        biased = self.covariance == "biased"
        metrics: Metrics = {"samples": sum(len(part["prompts"]) for part in parts)}
        metrics |= distances(parts, self.samples, biased) | nearest(parts, self.samples)
        metrics |= means_of(parts, temporal.MEASURES)
        metrics |= code_figures(parts) | faithfulness(parts, self.samples) | quality(parts)
        metrics["checks"] = pitfalls(
            parts, metrics, samples=self.samples, repeats=self.repeats, interval=self.interval,
            measured=self._measures_fvd(),
        )  # fmt: skip
        failed = [f"{row['check']} ({row['found']})" for row in metrics["checks"]
                  if row["holds"] == "NO"]  # fmt: skip
        if failed:
            self._not_the_protocol("; ".join(failed))
        return metrics

    def tables(self, metrics: Metrics) -> dict[str, list[dict[str, Any]]]:
        """The checks, faithfulness, and measures over time."""
        found: dict[str, list[dict[str, Any]]] = {"Checks of the protocol": metrics["checks"]}
        if "faithfulness" in metrics:
            found["Faithfulness to world prompts"] = metrics["faithfulness"]
        if "over_time" in metrics:
            found["Consistency over time, and motion"] = metrics["over_time"]
        if "levels" in metrics:
            found["Codes by level"] = metrics["levels"]
        if "prompts_worth" in metrics:
            found["Nats per token of real clips, by prompt"] = metrics["prompts_worth"]
        return found

    def pictures(self, partials: Mapping[str, Partial], folder: Path) -> list[Picture]:
        """The first sample of the first blocks below its real clip."""
        found = []
        for number, part in enumerate(list(partials.values())[:8]):
            path = folder / f"sample_{number:02d}.png"
            Image.fromarray(np.asarray(part["strip"], np.uint8)).save(path)
            prompt = part["prompts"][0] or "no prompt"
            found.append(Picture(f"pictures/{path.name}", f"{prompt}: real above, drawn below"))
        return found

    def _measures_fvd(self) -> bool:
        return self.fvd and self.frames >= fvd.FRAMES

    def _sampling(self, default: "Sampling") -> "Sampling":
        changes: dict[str, Any] = {}
        for name in ("guidance", "choice_temperature"):
            if (value := getattr(self, name)) != _TRAINED:
                changes[name] = value
        for name, whole in (("temperature", False), ("top_p", False), ("steps", True)):
            if text := getattr(self, name):
                said = "numbers with commas between"
                changes[name] = tuple(parse_numbers(text, name, said, low=0, whole=whole))
        try:
            return dataclasses.replace(default, **changes)
        except ValueError as error:
            raise UserError(f"--set: {error}") from error

    def _real(self, reference: Reference, number: int) -> np.ndarray:
        return reference_clip(
            reference.record, number % self.samples, frames=self.frames, interval=self.interval,
            side=self.side, seed=self.seed,
        )  # fmt: skip

    def _featured(self, name: str, clips: Sequence[np.ndarray]) -> Partial:
        if self._features is None:
            return {}
        through = self.through
        if through:
            clips = [np.stack([resized(frame, through) for frame in clip]) for clip in clips]
        found = [self._features(clip) for clip in clips]
        return {name: np.stack([one for one in found if one is not None])}

    def _scored(self, name: str, clips: Sequence[np.ndarray], prompts: list[str]) -> Partial:
        """Logits of C3D and likeness to the prompts, where weights of them were given."""
        part: Partial = {}
        if self._classes is not None:
            found = [self._classes(clip) for clip in clips]
            rows = [one for one in found if one is not None]
            part |= {f"classes_{name}": np.stack(rows)} if rows else {}
        if self._likeness is not None:
            pairs = [(c, p) for c, p in zip(clips, prompts, strict=True) if p]
            part[f"clipsim_{name}"] = np.array([self._likeness(*pair) for pair in pairs])
        return part

    def _faithful(self, name: str, block: Block, clips: Sequence[np.ndarray]) -> Partial:
        """What clips show, beside what their world prompts ask for."""
        if block.references[0].world is None or self.frames < LEAST_FRAMES:
            return {}
        pairs = zip(block.references, clips, strict=True)
        return {name: [_world(one, clip) for one, clip in pairs]}

    def _looks(self, model: SampleModel, block: Block, real: list[np.ndarray]) -> Partial:
        """Nats, codes and reconstructions of the real clips, once however many repeats there are.

        A block at the end of the first repeat may begin the second.
        """
        count = min(max(self.samples - block.first, 0), len(real))
        block = Block(block.first, block.references[:count], block.others[:count])
        known = [
            model.look(clip, one.prompt, block.first + n, another)
            for n, (clip, one, another) in enumerate(
                zip(real[:count], block.references, block.others, strict=True)
            )
        ]
        seen = [one for one in known if one is not None]
        if not seen:
            return {}
        names = list(seen[0].nats)
        return {
            "terms": names,
            "nats": np.array([[one.nats[name] for name in names] for one in seen]),
            **self._featured("fvd_rebuilt", [one.rebuilt for one in seen]),
            **self._faithful("world_rebuilt", block, [one.rebuilt for one in seen]),
            **_codes("real", [one.ids for one in seen]),
        }


def _range(clips: Sequence[np.ndarray]) -> list[int]:
    return [int(min(clip.min() for clip in clips)), int(max(clip.max() for clip in clips))]


def _strip(clip: np.ndarray) -> np.ndarray:
    numbers = np.unique(np.linspace(0, len(clip) - 1, _SHOWN).round().astype(int))
    return np.concatenate(list(clip[numbers]), axis=1)


def _codes(name: str, ids: Sequence[tuple[np.ndarray, ...]]) -> Partial:
    levels = zip(*ids, strict=True)
    return {
        f"ids_{name}_{number}": np.concatenate([x.reshape(-1) for x in level])
        for number, level in enumerate(levels)
    }


def _world(reference: Reference, video: np.ndarray) -> dict[str, Any]:
    """What a world prompt asks for and what its sample shows, JSON-able."""
    assert reference.world is not None
    return {
        "kind": reference.world.kind,
        "asked": [dataclasses.astuple(thing) for thing in reference.world.things],
        "seen": [dataclasses.astuple(thing) for thing in read_video(video)],
    }
