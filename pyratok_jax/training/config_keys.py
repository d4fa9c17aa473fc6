"""Every key of a training config: which values it takes, and what it means.

`config_check` refuses other values before anything is loaded; `train --help` prints the meanings.
"""

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Protocol

from ml_collections import ConfigDict

from pyratok_jax.io import Json
from pyratok_jax.losses.settings import FORMS, POOLINGS
from pyratok_jax.models.prior.config import Schedule
from pyratok_jax.models.pyratok.config import MAX_BITS, SURROGATES
from pyratok_jax.models.pyratok.quantizers.registry import QUANTIZERS
from pyratok_jax.models.settings import HEADS, TARGETS
from pyratok_jax.nn.settings import POLICIES

OPTIMIZERS = ("adamw", "muon", "gram_muon")
SCHEDULES = ("cosine", "constant", "trapezoid")
_FLOATS = ("float32", "bfloat16", "float16")
# Whole numbers without another limit: those of JAX have 32 bits.
MOST = 2**31 - 1


class Values(Protocol):
    """The values that a key takes."""

    @property
    def expected(self) -> str:
        """As a message says it: "a whole number from 1"."""

    def holds(self, value: object) -> bool:
        """Whether a value is one of them."""


@dataclasses.dataclass(frozen=True)
class Number:
    """Finite numbers within [low, high]; `above` leaves `low` itself out."""

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False

    @property
    def expected(self) -> str:
        """See `Values`."""
        kind = "a whole number" if self.whole else "a number"
        if self.low == -math.inf:
            return kind
        start = f"above {self.low:g}" if self.above else f"from {self.low:g}"
        return f"{kind} {start}" + (f" to {self.high:g}" if self.high < MOST else "")

    def holds(self, value: object) -> bool:
        """See `Values`."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        inside = self.low < value if self.above else self.low <= value
        return math.isfinite(value) and inside and value <= self.high


@dataclasses.dataclass(frozen=True)
class Share:
    """How many devices an axis of the mesh has; -1: all that others leave."""

    expected: str = "-1 or a whole number from 1"

    def holds(self, value: object) -> bool:
        """See `Values`."""
        return Number(-1, MOST, whole=True).holds(value) and value != 0


@dataclasses.dataclass(frozen=True)
class Choice:
    """Some texts or numbers by name."""

    values: tuple[str | float, ...]

    @property
    def expected(self) -> str:
        """See `Values`."""
        return "one of " + ", ".join(str(value) or "''" for value in self.values)

    def holds(self, value: object) -> bool:
        """See `Values`."""
        return value in self.values


@dataclasses.dataclass(frozen=True)
class Text:
    """Any text; `named` refuses the empty one."""

    named: bool = False

    @property
    def expected(self) -> str:
        """See `Values`."""
        return "a text that is not empty" if self.named else "a text"

    def holds(self, value: object) -> bool:
        """See `Values`."""
        return isinstance(value, str) and bool(value or not self.named)


@dataclasses.dataclass(frozen=True)
class Flag:
    """true or false."""

    expected: str = "true or false"

    def holds(self, value: object) -> bool:
        """See `Values`."""
        return isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Several:
    """A tuple of values of one kind."""

    one: Values
    least: int = 0

    @property
    def expected(self) -> str:
        """See `Values`."""
        return f"a tuple, each {self.one.expected}" + (", not empty" if self.least else "")

    def holds(self, value: object) -> bool:
        """See `Values`."""
        if not isinstance(value, tuple | list) or len(value) < self.least:
            return False
        return all(self.one.holds(x) for x in value)


@dataclasses.dataclass(frozen=True)
class Checked:
    """Values that a function of `config_check` looks at: tuples of tuples, names of presets."""

    expected: str

    def holds(self, value: object) -> bool:
        """See `Values`."""
        return True


def _whole(low: int, high: float = MOST) -> Number:
    return Number(low, high, whole=True)


_SHARE, _POSITIVE, _FROM_0 = Number(0, 1), Number(0, above=True), Number(0)
_BUCKETS = "FRAMESxHEIGHTxWIDTH[*CLIPS][@WEIGHT]"
Keys = dict[str, tuple[Values, str]]
# Keys of which there are many alike, by what their names start with.
ALIKE: Keys = {"loss.weights.": (_FROM_0, "weight of the term; 0 leaves it out")}

COMMON: Keys = {
    "task": (Text(named=True), "what is trained"),
    "steps": (_whole(0), "steps of the training"),
    "batch_size": (_whole(1), "clips of a step, over all hosts"),
    "accumulate": (_whole(1), "microbatches that a batch is cut into"),
    "seed": (_whole(0), "of weights, data order and noise"),
    "optimizer.name": (Choice(OPTIMIZERS), "update rule"),
    "optimizer.learning_rate": (_FROM_0, "peak learning rate"),
    "optimizer.warmup": (_whole(0), "steps of linear warm-up"),
    "optimizer.schedule": (Choice(SCHEDULES), "learning rate after the warm-up"),
    "optimizer.final_share": (_SHARE, "last learning rate over the peak"),
    "optimizer.decay_share": (_SHARE, "share of the steps that trapezoid decays over"),
    "optimizer.b1": (Number(0, 0.9999999), "decay of the first moment"),
    "optimizer.b2": (Number(0, 0.9999999), "decay of the second moment"),
    "optimizer.weight_decay": (_FROM_0, "of kernels"),
    "optimizer.clip_norm": (_FROM_0, "largest global gradient norm; 0: any"),
    "optimizer.adam_share": (_FROM_0, "rate of Muon's Adam over the learning rate"),
    "optimizer.groups": (Checked("pairs (pattern, factor)"), "learning rates by array name"),
    "ema_decay": (Number(0, 0.9999999), "decay of averaged weights; 0: none are kept"),
    "dtype": (Choice(_FLOATS), "of activations; parameters are float32"),
    "remat": (Text(named=True), "rematerialisation policy"),
    "fused_attention": (Flag(), "long attention by a kernel on TPUs"),
    "multi_host": (Flag(), "join the other hosts of the slice first"),
    "host_timeout": (_POSITIVE, "seconds without a heartbeat until a host is lost"),
    "step_timeout": (_FROM_0, "seconds that a step may take; 0: any time"),
    "profile_steps": (Text(), "FIRST:LAST, steps to trace"),
    "mesh.data": (Share(), "data-parallel devices; -1: all others"),
    "mesh.fsdp": (Share(), "devices that parameters are sharded over"),
    "mesh.spatial": (Share(), "devices that share the height of a frame"),
    "mesh.tensor": (Share(), "devices that share the channels"),
    "mesh.slices": (_whole(1), "slices joined over the data-center network"),
    "checkpoint.every": (_whole(0), "steps between checkpoints; 0: at the end alone"),
    "checkpoint.keep": (_whole(0), "newest checkpoints that are kept; 0: all"),
    "checkpoint.keep_every": (_whole(0), "steps whose checkpoints are kept for good; 0: none"),
    "log_every": (_whole(1), "steps between logged losses"),
    "evaluators": (Checked("entries with name and every"), "measurements during the training"),
    "max_bad_steps": (_whole(1), "consecutive steps without finite loss that end the run"),
    "collapse.threshold": (_SHARE, "share of distinct codes below which a level collapses"),
    "collapse.patience": (_whole(0), "logged values below it until it is said; 0: never"),
    "init_from": (Text(), "tokenizer (or prior) to start from: a folder, hf://..., builtin:world"),
    "init_levels": (_whole(0), "levels taken from it, the others are calibrated; 0: all"),
    "resume_with_changes": (Flag(), "resume with another loss, optimizer or data"),
}

DATA: Keys = {
    "data.sources": (Several(Text(named=True), least=1), "what to train on"),
    "data.weights": (Several(_FROM_0), "how often each source is drawn; (): by its clips"),
    "data.heldout": (Several(Text(named=True)), "sources of the held-out clips"),
    "data.buckets": (Checked(_BUCKETS), f"clip shapes, {_BUCKETS}"),
    "data.fps": (_FROM_0, "frames per second to sample at; 0: each video's own"),
    "data.crop": (Choice(("random", "center")), "where clips are cropped"),
    "data.zoom": (Number(1, 16), "largest random enlargement before cropping; 1: none"),
    "data.mirror": (Flag(), "mirror half of the clips"),
    "data.caption_dropout": (_SHARE, "share of clips that lose their caption"),
    "data.any_bucket": (Flag(), "use every clip for every bucket"),
    "data.workers": (_whole(0), "reading processes; 0: threads alone"),
    "data.threads": (_whole(1), "reading threads in each"),
    "data.prefetch": (_whole(1), "batches read ahead"),
    "data.cache_decoded": (Flag(), "keep decoded clips in memory"),
    "data.decode_time_limit": (_FROM_0, "seconds until a decoder is ended; 0: none"),
    "data.retries": (_whole(0), "of reads of remote files"),
    "data.retry_delay": (_FROM_0, "seconds before the first of them"),
    "data.max_broken_share": (_SHARE, "share of unreadable clips that ends the run"),
}

TOKENIZER: Keys = {
    "remat": (Choice(POLICIES), "what the backward pass through the VAE keeps"),
    "model.backbone": (Text(named=True), "folder of the frozen VAE, or builtin:demo-backbone"),
    "model.vae": (Text(), "published sizes, for reports made without the weights"),
    "model.head": (Choice(HEADS), "how codes are predicted from the language model"),
    "model.text_hidden": (_whole(0), "hidden units of the map into the text space; 0: none"),
    "model.text_neighbours": (Flag(), "these units read the codes around each one too"),
    "model.pooled_text": (Flag(), "add the pooled caption to the inputs that predict codes"),
    "model.grid_places": (Flag(), "add the place of the next code to them"),
    "model.tokenizer.grids": (Checked("a preset or pairs (frames, pixels)"), "strides by level"),
    "model.tokenizer.stages": (Checked("a tuple of stages"), "encoder stage of each level"),
    "model.tokenizer.inputs": (Checked("a preset or a tuple"), "what each level sees"),
    "model.tokenizer.bits": (_whole(1, MAX_BITS), "bits per token"),
    "model.tokenizer.vocabulary": (Checked("a whole number"), "valid codes; None: 2^bits"),
    "model.tokenizer.surrogate": (Choice(tuple(SURROGATES)), "whose gradient signs have"),
    "model.tokenizer.width": (_whole(1), "channels of a level's block"),
    "model.tokenizer.heads": (_whole(1), "attention heads of it"),
    "model.tokenizer.text_guidance": (Flag(), "let levels read the caption"),
    "model.tokenizer.standardised_text": (Flag(), "standardise text features"),
    "model.tokenizer.synthesis_width": (_whole(1), "channels of the smoothing convolution"),
    "model.tokenizer.lora_rank": (_whole(0), "rank of the encoder's adapters; 0: none"),
    "model.tokenizer.lora_alpha": (Number(), "their scale: alpha / rank"),
    "model.tokenizer.quantizer": (Choice(tuple(QUANTIZERS)), "kind of quantiser"),
    "model.tokenizer.code_width": (_whole(1), "components of a vector code"),
    "language.spec": (Text(named=True), "folder of the language model, or builtin:NAME"),
    "language.size": (Text(), "published sizes, as model.vae"),
    "language.length": (_whole(1), "tokens per caption"),
    "language.stored": (Text(), "folder of embed_captions; empty: embed while training"),
    "language.layers": (_whole(0), "layers of the autoregressive loss; 0: all"),
    "language.remat": (Choice(("none", "dots", "layers")), "what its backward pass keeps"),
    "language.bits": (Choice((0, 4, 8)), "bits of its kernels in memory; 0: as stored"),
    "vision.spec": (Text(named=True), "folder of the DINO network, or builtin:demo-vision"),
    "vision.size": (Text(), "published sizes, as model.vae"),
    "vision.projection": (_whole(1), "hidden width of the projection from latents"),
    "vision.largest_side": (_whole(0), "largest side of the images that it sees; 0: any"),
    "loss.preset": (Choice(("", "paper")), "weights inside Eq. 2"),
    "loss.formulas": (Choice(("", "paper")), "the terms as printed"),
    "loss.token_budget": (_whole(0), "tokens of the autoregressive loss; 0: all"),
    "loss.hidden_captions": (_SHARE, "captions that losses read and levels do not"),
    "loss.targets": (Choice(TARGETS), "of the autoregressive loss"),
    "loss.region": (Choice(("spread", "crop")), "how its budget is spent"),
    "loss.settings.temperature": (_POSITIVE, "tau of soft assignments"),
    "loss.settings.gamma": (_FROM_0, "share of the batch entropy"),
    "loss.settings.lpips_frames": (_whole(0), "frames per clip that LPIPS sees; 0: all"),
    "loss.settings.dino_frames": (_whole(0), "frames per clip that DINO sees; 0: all"),
    "loss.settings.hierarchy_stop_gradient": (Flag(), "hold the previous level fixed"),
    "loss.settings.text_form": (Choice(tuple(FORMS)), "of the text-codebook term"),
    "loss.settings.text_pooling": (Choice(tuple(POOLINGS)), "of its contrastive form"),
    "loss.settings.text_temperature": (_POSITIVE, "of its kl form"),
    "loss.settings.dino_reference": (Choice(("masked", "clean")), "what DINO's drift looks at"),
    "loss.settings.text_codebook_tokens": (_whole(0), "tokens per clip and level; 0: all"),
    "loss.settings.text_levels": (Several(_FROM_0), "its factors by level, the last for the rest"),
    "loss.settings.smallest_logvar": (Number(), "log-variances count as at least this"),
    "masking.frame_ratio": (_SHARE, "share of frames that are hidden"),
    "masking.spatial_ratio": (_SHARE, "share of patches that are hidden at the start"),
    "masking.patch": (_whole(1), "side of a hidden patch in pixels"),
    "masking.shuffle_ratio": (_SHARE, "share of frames that are permuted"),
    "masking.start": (_SHARE, "progress over the recipe at the first step"),
    "masking.end": (_SHARE, "progress over the recipe at the last step"),
    "calibration.batches": (_whole(0), "batches that levels are fitted to; 0: random start"),
    "calibration.steps": (_whole(0), "steps of each linear map"),
    "calibration.refine_steps": (_whole(0), "steps of all levels together"),
    "calibration.learning_rate": (_POSITIVE, "of these"),
    "calibration.buckets": (Checked(_BUCKETS), "clip shapes; (): those of the training"),
    "report.clips": (_whole(1), "held-out clips, at most"),
    "report.buckets": (Checked(_BUCKETS), "their shapes"),
    "report.lpips": (Flag(), "measure LPIPS"),
    "report.world": (_whole(0), "held-out videos of the world to name; 0: none"),
    "report.tasks": (_whole(0), "the same for each zero-shot task of an ablation; 0: none"),
}

GENERATOR: Keys = {
    "remat": (Choice(("none", "layers")), "recompute layers in the backward pass"),
    "model.layers": (_whole(1), "layers of the transformer"),
    "model.factors": (Several(_whole(1)), "bits of each sub-token, for factorised heads"),
    "model.head_layers": (_whole(0), "residual layers of the head"),
    "model.window": (_whole(0), "latent frames that blocks looks back; 0: all"),
    "model.theta": (_POSITIVE, "longest wavelength of the rotary embedding, over 2 pi"),
    "sampling.steps": (Several(_whole(1), least=1), "parallel steps of each level"),
    "sampling.temperature": (Several(Number(0, 1000), least=1), "of each level's logits"),
    "sampling.top_p": (Several(Number(0, 1, above=True), least=1), "nucleus of each level"),
    "sampling.guidance_schedule": (
        Choice(typing.get_args(Schedule)),
        "how guidance grows while a level is drawn",
    ),
    "tokenizer": (Text(named=True), "working folder of the tokenizer that made the tokens"),
    "tokens.path": (Text(named=True), "--output of export_tokens"),
    "tokens.threads": (_whole(1), "reading threads"),
    "tokens.workers": (_whole(0), "reading processes"),
    "tokens.ahead": (_whole(1), "batches read ahead"),
    "conditioning.kind": (Choice(("text", "classes", "none")), "what samples are asked for by"),
    "conditioning.drop": (_SHARE, "share of captions that are left out"),
    "conditioning.length": (_whole(0), "tokens per caption; 0: as the tokenizer"),
    "conditioning.language": (Text(), "another language model; empty: the tokenizer's"),
    "conditioning.stored": (
        Text(),
        "folder of embed_captions --tokens; empty: embed while training",
    ),
    "conditioning.classes": (Several(Text(named=True)), "captions that name classes"),
}


def keys_of(task: str) -> Keys:
    """The keys that a task's configs have; of tasks of the demo those that all have."""
    parts = {"tokenizer": (DATA, TOKENIZER), "projector": (DATA,), "generator": (GENERATOR,)}
    keys = dict(COMMON)
    for part in parts.get(task, ()):
        keys |= part
    return keys


def flattened(values: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    """(dotted key, value) of everything in a config, without its sections."""
    for name, value in values.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def known_values(task: str, key: str) -> tuple[Values, str] | None:
    """The values of a key and its meaning; None for one that the task itself looks at."""
    alike = (entry for start, entry in ALIKE.items() if key.startswith(start))
    return keys_of(task).get(key) or next(alike, None)
