"""What the task `generation` draws samples with: a prior, files of `generate`, and baselines."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from pyratok_jax.assets.fetch import sha256_of
from pyratok_jax.data.video.files import iter_span
from pyratok_jax.errors import UserError
from pyratok_jax.generator import Generator
from pyratok_jax.generator.drawing import codes_of
from pyratok_jax.io.documents import checked, parse_json, read_lines
from pyratok_jax.losses.prior import prior_loss
from pyratok_jax.models.prior.config import Sampling

Video = UInt8[np.ndarray, "t h w 3"]


class Wanted(NamedTuple):
    """A block of samples.

    Attributes:
        prompts: one for each.
        first: number of the first.
        seed: of all samples.
        real: the clips that they are compared with, of the wanted size.
    """

    prompts: Sequence[str]
    first: int
    seed: int
    real: Sequence[Video]


class Sample(NamedTuple):
    """One sample; `ids` (t, h, w) of every level, empty where it is not made of tokens."""

    video: Video
    ids: tuple[np.ndarray, ...] = ()


class Known(NamedTuple):
    """What a prior and its tokenizer make of a real clip.

    Attributes:
        rebuilt: decoded from its own tokens.
        ids: these.
        nats: terms of `losses.prior.prior_loss` under the clip's prompt; those in nats also without
            a prompt ("nats_none", "nats_level_1_none", ...) and under another one ("..._another").
    """

    rebuilt: Video
    ids: tuple[np.ndarray, ...]
    nats: dict[str, float]


class SampleModel(Protocol):
    """Draws samples.

    Attributes:
        checkpoint_hash: identifies the weights and how they are sampled from.
        generator_hash: `Generator.checkpoint_hash`, of the weights alone; "": no prior's.
        fps: frames per second of its samples; None where they take after the real clips.
        vocabulary: of its codes.
    """

    checkpoint_hash: str
    generator_hash: str
    fps: float | None
    vocabulary: int

    def draw(self, wanted: Wanted) -> list[Sample]:
        """The samples of a block, each of the size of its real clip."""
        ...

    def look(self, real: Video, prompt: str, number: int, another: str = "") -> Known | None:
        """What it makes of a real clip; None where it has no prior.

        Args:
            real: the clip.
            prompt: its own.
            number: of the clip.
            another: a prompt of another clip, which says something else; "": there is none.
        """
        ...


class PriorSamples:
    """A trained prior.

    Args:
        generator: of it.
        sampling: in place of the training's.
        candidates: draws of each sample, see `Request`.
    """

    def __init__(
        self, generator: Generator, sampling: Sampling | None = None, candidates: int = 1
    ) -> None:
        self._generator, self._sampling = generator, sampling or generator.sampling
        self._candidates, self.generator_hash = candidates, generator.checkpoint_hash
        named = repr(sorted(dataclasses.asdict(self._sampling).items()))
        if candidates > 1:
            named += f" of {candidates}"
        digest = hashlib.sha256(f"{generator.checkpoint_hash}|{named}".encode())
        self.checkpoint_hash = digest.hexdigest()
        self.fps: float | None = generator.fps
        self.vocabulary = generator.tokenizer.config.vocabulary_size
        self._loss = nnx.jit(_terms, static_argnames=("layout",))

    def draw(self, wanted: Wanted) -> list[Sample]:
        """See `SampleModel.draw`."""
        frames, height, width = wanted.real[0].shape[:3]
        clips = self._generator.generate(
            list(wanted.prompts), sampling=self._sampling, batch=len(wanted.prompts),
            frames=frames, height=height, width=width, seed=wanted.seed, first=wanted.first,
            candidates=self._candidates,
        )  # fmt: skip
        return [Sample(self._generator.decode(clip), clip.encoded.ids) for clip in clips]

    def look(self, real: Video, prompt: str, number: int, another: str = "") -> Known:
        """See `SampleModel.look`; masks and estimates of clip n are those of key n."""
        generator = self._generator
        # Under its caption if the prior's own data were: tokens are others without.
        caption = prompt if generator.captioned and prompt else None
        encoded = generator.tokenizer.encode(real, caption)
        codes = codes_of([level[None] for level in encoded.ids], generator.prior.config.bits)
        order = generator.prior.config.order
        quantizer = generator.tokenizer.model.quantizer if order == "blocks" else None
        found: dict[str, float] = {}
        kinds = {"": prompt, "_none": "", "_another": another}
        for kind, said in kinds.items():
            if kind and not (prompt and another):
                continue  # Nothing was said that could be taken away.
            terms = self._loss(
                generator.prior,
                quantizer,
                codes,
                generator.condition([said], "", False),
                jax.random.key(number),
                layout=generator.layout(encoded.padding),
            )
            wanted = {k: v for k, v in terms.items() if not kind or k.startswith("nats")}
            found |= {f"{name}{kind}": float(value) for name, value in wanted.items()}
        return Known(generator.tokenizer.decode(encoded), encoded.ids, found)


def _terms(prior: Any, quantizer: Any, codes: Any, condition: Any, key: Any, *, layout: Any) -> Any:
    synthesize = None if quantizer is None else quantizer.synthesize
    return prior_loss(prior, codes, condition, key, layout=layout, synthesize=synthesize)[1]


class BaselineSamples:
    """What tests the measures.

    `oracle` draws the very clips that it is compared with, so that every distance is 0; `frozen`
    the first frame of each for the whole clip; `random` uniform noise. None has tokens or nats.
    """

    generator_hash = ""
    fps: float | None = None
    vocabulary = 256

    def __init__(self, kind: str) -> None:
        self.kind, self.checkpoint_hash = kind, kind

    def draw(self, wanted: Wanted) -> list[Sample]:
        """See `SampleModel.draw`."""
        rng = np.random.default_rng((wanted.seed, wanted.first))
        if self.kind == "random":
            return [Sample(rng.integers(0, 256, x.shape, np.uint8)) for x in wanted.real]
        if self.kind == "frozen":
            return [Sample(np.repeat(x[:1], len(x), axis=0)) for x in wanted.real]
        return [Sample(x) for x in wanted.real]

    def look(self, real: Video, prompt: str, number: int, another: str = "") -> None:
        """Nothing: it has no prior."""
        return None


@dataclasses.dataclass(frozen=True)
class _Row:
    """What is read of a line of samples.jsonl."""

    file: str
    prompt: str
    fps: float = 0.0


class SampleFiles:
    """Videos that `generate`, or another method, has written: a folder with samples.jsonl.

    Each line of it names a `file` and its `prompt`; they must be the protocol's, in its order.

    Args:
        folder: of the files.
        name: of the method.

    Raises:
        UserError: no such list, or a file of it is missing.
    """

    generator_hash = ""
    vocabulary = 1

    def __init__(self, folder: str, name: str) -> None:
        self._folder, listing = Path(folder), Path(folder) / "samples.jsonl"
        if not listing.is_file():
            raise UserError(f'{listing} is missing; write a line {{"file": ..., "prompt": ...}} '
                            "for each sample, as generate does")  # fmt: skip
        advice = "write it as generate does"
        self._rows = [
            checked(parse_json(line, str(listing)), _Row, str(listing), advice)
            for line in read_lines(listing)
        ]
        missing = [row.file for row in self._rows if not (self._folder / row.file).is_file()]
        if missing:
            raise UserError(f"{listing}: {len(missing)} files are missing, first {missing[0]}")
        digest = hashlib.sha256(name.encode())
        for row in self._rows:
            digest.update(f"{row}{sha256_of(self._folder / row.file)}".encode())
        self.checkpoint_hash = digest.hexdigest()
        self.fps = next((row.fps for row in self._rows if row.fps), None)

    def draw(self, wanted: Wanted) -> list[Sample]:
        """See `SampleModel.draw`.

        Raises:
            UserError: too few files, other prompts, or another size.
        """
        rows = self._rows[wanted.first : wanted.first + len(wanted.prompts)]
        if len(rows) < len(wanted.prompts):
            raise UserError(f"{self._folder} has {len(self._rows)} samples, too few")
        found = []
        for row, prompt, real in zip(rows, wanted.prompts, wanted.real, strict=True):
            if prompt and row.prompt != prompt:
                raise UserError(
                    f"{row.file} is of the prompt {row.prompt!r}, the protocol's is {prompt!r}"
                )
            frames = [frame for _, frame in iter_span(str(self._folder / row.file))]
            size = frames[0].shape[:2] if frames else (0, 0)
            if len(frames) < len(real) or size != real.shape[1:3]:
                raise UserError(
                    f"{row.file} has {len(frames)} frames of {size}, the protocol's clips have "
                    f"{len(real)} of {real.shape[1:3]}"
                )
            found.append(Sample(np.stack(frames[: len(real)])))
        return found

    def look(self, real: Video, prompt: str, number: int, another: str = "") -> None:
        """Nothing: the prior is not here."""
        return None
