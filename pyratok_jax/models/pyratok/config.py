"""Sizes of the tokenizer: its VAE, the grids of its levels, and its quantiser."""

import dataclasses
import json
import math

from pyratok_jax.errors import check_fields
from pyratok_jax.io import Json
from pyratok_jax.models.pyratok.inputs import (
    DEFAULT_INPUTS,
    UNNAMED_INPUTS,
    InputsByLevel,
    level_inputs,
)
from pyratok_jax.models.pyratok.quantizers.registry import quantizer_kind
from pyratok_jax.models.vae_config import VideoVAEConfig
from pyratok_jax.models.vae_families import UNNAMED, config_from_dict, config_to_dict
from pyratok_jax.nn.settings import Stride, check_grids

MAX_BITS = 32  # of a token id
# Surrogate of the sign in the backward pass; the codes themselves are the same.
SURROGATES = ("identity", "tanh")
_MAX_SIZE = 1 << 16


@dataclasses.dataclass(frozen=True)
class PyraTokConfig:
    """Sizes of the tokenizer; the defaults are the paper's, but for `inputs` and `surrogate`.

    Attributes:
        vae: the backbone.
        grids: strides (time, space) in pixels of each level, or a name in `nn.settings.PRESETS`;
            empty takes `vae.default_grids`.
        stages: which encoder stage, from 1, feeds each level; None takes the last ones. The number
            after the last one is the normalised latent itself.
        inputs: what each level sees, or a name of `inputs.INPUT_PRESETS`; descriptions that do not
            name it have the residual in every level's logits. Only LaPQ has a choice.
        bits: bits per token.
        vocabulary: number of valid codes; None means 2^bits.
        surrogate: whose gradient the signs of LaPQ have in training: "identity" or "tanh"
            (`lfq.quantize`); tokens do not depend on it.
        width: channels inside a LaPQ block.
        heads: attention heads of a LaPQ block.
        text_width: width of the text embeddings.
        text_guidance: False leaves the text out of every level (ablation).
        standardised_text: text features in units of their spread over captions
            (`models.text_statistics`); False in descriptions that do not name it.
        synthesis_width: hidden channels of each level's smoothing convolution.
        lora_rank: rank of the adapters in the encoder; 0 leaves them out.
        lora_alpha: their scale, as in update = alpha / rank * A B.
        quantizer: a name of `quantizers.registry`: "lapq", or for comparison a quantiser of the
            final latent alone; then all grids are equal, and stages and width have no meaning.
        code_width: components of a vector, for quantisers with codebooks of vectors.
    """

    vae: VideoVAEConfig
    grids: tuple[Stride, ...] = ()
    stages: tuple[int, ...] | None = None
    inputs: str | InputsByLevel = DEFAULT_INPUTS
    bits: int = 16
    vocabulary: int | None = None
    surrogate: str = "tanh"
    width: int = 512
    heads: int = 8
    text_width: int = 2048
    text_guidance: bool = True
    standardised_text: bool = True
    synthesis_width: int = 128
    lora_rank: int = 16
    lora_alpha: float = 32.0
    quantizer: str = "lapq"
    code_width: int = 16

    def __post_init__(self) -> None:
        for name in ("bits", "width", "heads", "text_width", "synthesis_width", "code_width"):
            if not 1 <= getattr(self, name) <= _MAX_SIZE:
                raise ValueError(f"{name} {getattr(self, name)} must be from 1 to {_MAX_SIZE}")
        if not 0 <= self.lora_rank <= _MAX_SIZE:
            raise ValueError(f"lora_rank {self.lora_rank} must be from 0 to {_MAX_SIZE}")
        if not math.isfinite(self.lora_alpha):
            raise ValueError(f"lora_alpha {self.lora_alpha} is not finite")
        if self.vocabulary is not None and not 1 <= self.vocabulary <= 2**self.bits:
            raise ValueError(
                f"vocabulary {self.vocabulary} must be from 1 to {2**self.bits}, the codes of "
                f"{self.bits} bits"
            )
        if self.surrogate not in SURROGATES:
            known = ", ".join(SURROGATES)
            raise ValueError(f"surrogate {self.surrogate!r} is not one of {known}")
        grids = self.vae.preset_grids(self.grids) if isinstance(self.grids, str) else self.grids
        grids = grids or self.vae.default_grids
        object.__setattr__(self, "grids", tuple((int(dt), int(ds)) for dt, ds in grids))
        check_grids(self.grids, self.vae.temporal_factor, self.vae.spatial_factor)
        last = len(self.vae.stage_strides)
        stages = self.stages or tuple(range(last - len(self.grids) + 1, last + 1))
        kind = quantizer_kind(self.quantizer)
        if not kind.quantizer.reads_stages:
            stages = (last,) * len(self.grids)
        object.__setattr__(self, "stages", tuple(stages))
        if len(stages) != len(self.grids):
            raise ValueError(f"{len(self.grids)} grids need as many stages, not {stages}")
        if not all(1 <= stage <= last + 1 for stage in stages):
            raise ValueError(f"stages {stages} must be within 1..{last}, or {last + 1}: the latent")
        object.__setattr__(self, "inputs", level_inputs(self.inputs, len(self.grids)))
        kind.config(self)  # It refuses sizes that the quantiser cannot have.

    @property
    def level_stages(self) -> tuple[int, ...]:
        """`stages` with its default filled in."""
        assert self.stages is not None
        return self.stages

    @property
    def inputs_by_level(self) -> InputsByLevel:
        """`inputs` with a preset's name resolved."""
        assert not isinstance(self.inputs, str)
        return self.inputs

    @property
    def latent_stride(self) -> Stride:
        """Strides of the latent grid in pixels."""
        return self.vae.temporal_factor, self.vae.spatial_factor

    @property
    def vocabulary_size(self) -> int:
        """Number K of valid token ids, which are 0 .. K - 1."""
        return self.vocabulary or 2**self.bits

    @property
    def bits_per_token(self) -> int:
        """What a token counts in every rate: the raw rate of the stored code.

        A token is stored as a word of `bits` bits, also where K < 2^bits. log2(K) would be the rate
        of an ideal entropy coder for equally likely ids; entropy-coded sizes are reported apart.
        """
        return self.bits

    @property
    def spatial_multiple(self) -> int:
        """Sides of a video must be multiples of this (pad by edge replication)."""
        return max(ds for _, ds in self.grids)

    def to_dict(self) -> dict[str, Json]:
        """Plain values for a JSON file; `from_dict` reads them back."""
        values = dataclasses.asdict(self)
        values["vae"] = config_to_dict(self.vae)
        return values

    def fingerprint(self) -> str:
        """What the hash of a checkpoint covers: `to_dict` as JSON.

        The VAE's family and the inputs are left out where they are those of files that name none,
        so that tokens made by such a checkpoint still belong to it; the surrogate is left out
        since tokens do not depend on it.
        """
        values = self.to_dict()
        del values["surrogate"]
        if self.inputs == level_inputs(UNNAMED_INPUTS, len(self.grids)):
            del values["inputs"]
        if self.vae.family == UNNAMED:
            values["vae"] = self.vae.to_dict()
        return json.dumps(values)

    @classmethod
    def from_dict(cls, values: dict[str, Json]) -> "PyraTokConfig":
        """The configuration written by `to_dict`.

        Raises:
            ValueError: for keys that are not fields.
        """
        check_fields(values, cls, "the tokenizer's configuration")
        unnamed: dict[str, Json] = {
            "standardised_text": False, "inputs": UNNAMED_INPUTS, "surrogate": "identity",
        }  # fmt: skip
        values = unnamed | values
        values = dict(values, vae=config_from_dict(values["vae"]))
        # JSON knows no tuples.
        if isinstance(values.get("grids"), list):
            values["grids"] = tuple((int(dt), int(ds)) for dt, ds in values["grids"])
        if not isinstance(values["inputs"], str):
            values["inputs"] = level_inputs(values["inputs"], len(values["inputs"]))
        if isinstance(values.get("stages"), list):
            values["stages"] = tuple(values["stages"])
        return cls(**values)
