"""Sizes and switches of a decoder-only language model; one description for all families."""

import dataclasses
from typing import Literal

from pyratok_jax.errors import check_fields
from pyratok_jax.io import Json

_MAX_SIZE, _MAX_LAYERS = 1 << 28, 1 << 10


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding of one kind of layer.

    Attributes:
        theta: base of the wavelengths.
        kind: "default", "linear" (positions divided by `factor`) or "llama3" (long wavelengths
            divided by `factor`, with a smooth transition).
        factor: how many times longer the context has become.
        low_freq_factor, high_freq_factor, original_length: of "llama3".
    """

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ("default", "linear", "llama3"):
            raise ValueError(f"rope kind {self.kind!r}: expected default, linear or llama3")


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """A language model. The defaults are the switches of the Llama family.

    Attributes:
        vocabulary: rows of the embedding.
        width: hidden size.
        layers: decoder layers.
        heads, kv_heads: query heads, and the key-value heads that groups of them share.
        head_dim: width of a head; heads * head_dim need not equal `width`.
        mlp_width: hidden size of the gated MLP.
        family: `llama`, `qwen2`, `qwen2_5_vl`, `qwen3` or `gemma3`, for messages.
        rope: of the full-attention layers.
        local_rope: of the sliding-window layers; None means `rope`.
        mrope_section: how many of the head_dim / 2 angles follow the time, row and column
            position (M-RoPE); empty for ordinary positions.
        tokens_per_second: how far M-RoPE's time position moves per second of video.
        norm_eps: of every RMS norm.
        tied: the output head is the embedding.
        qkv_bias: bias on the query, key and value projections.
        qk_norm: RMS norm of every query and key head before the rotation.
        norm_offset: norms multiply by 1 + weight, all in float32 (Gemma).
        post_norms: a norm also after attention and after the MLP (Gemma).
        activation: `silu` or `gelu_tanh`.
        scale_embedding: embeddings are multiplied by sqrt(width), rounded to their dtype.
        query_scale: scores are divided by sqrt of this; None means head_dim.
        window: keys that a token of a sliding layer sees, itself included.
        sliding: for every layer whether it has the window; empty when none has.
        max_length: longest context that the model was trained for.
        bos, pad: token ids, where the model has them.
        eos: token ids that end a generation.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    family: str = "llama"
    rope: RopeConfig = RopeConfig()
    local_rope: RopeConfig | None = None
    mrope_section: tuple[int, ...] = ()
    tokens_per_second: float = 1.0
    norm_eps: float = 1e-6
    tied: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    norm_offset: bool = False
    post_norms: bool = False
    activation: str = "silu"
    scale_embedding: bool = False
    query_scale: float | None = None
    window: int | None = None
    sliding: tuple[bool, ...] = ()
    max_length: int = 8192
    bos: int | None = None
    pad: int | None = None
    eos: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("mrope_section", "sliding", "eos"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in (
            "vocabulary", "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width",
            "max_length",
        ):  # fmt: skip
            if not 1 <= getattr(self, name) <= _MAX_SIZE:
                raise ValueError(f"{name} {getattr(self, name)} must be from 1 to {_MAX_SIZE}")
        if self.layers > _MAX_LAYERS:
            raise ValueError(f"layers {self.layers} must be at most {_MAX_LAYERS}")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads do not divide into {self.kv_heads} kv heads")
        if self.sliding and (len(self.sliding) != self.layers or not self.window):
            raise ValueError("sliding needs one entry per layer, and a window")
        if self.mrope_section and 2 * sum(self.mrope_section) != self.head_dim:
            raise ValueError(f"mrope_section {self.mrope_section} must sum to head_dim / 2")
        if self.activation not in ("silu", "gelu_tanh"):
            raise ValueError(f"activation {self.activation!r}: expected silu or gelu_tanh")

    def to_dict(self) -> dict[str, Json]:
        """Plain values for a JSON file; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Json]) -> "LanguageConfig":
        """The configuration written by `to_dict`.

        Raises:
            ValueError: for keys that are not fields.
        """
        check_fields(values, cls, "the language model's config")
        values = dict(values)
        for name in ("rope", "local_rope"):
            if values.get(name) is not None:
                values[name] = RopeConfig(**values[name])
        for name in ("mrope_section", "sliding", "eos"):
            values[name] = tuple(values.get(name) or ())
        return cls(**values)


def tiny(**changes: Json) -> LanguageConfig:
    """A very small Llama for tests."""
    sizes = {
        "vocabulary": 96, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8,
        "mlp_width": 48,
    }  # fmt: skip
    return LanguageConfig(**{**sizes, **changes})
