"""Sizes of a DINO vision transformer."""

import dataclasses
from typing import Any

_MAX_SIZE = 1 << 16


@dataclasses.dataclass(frozen=True)
class DinoConfig:
    """One class for both generations; the defaults are DINOv3 ViT-B/16.

    Attributes:
        width, layers, heads, hidden: of the transformer; `hidden` is inside the MLP.
        patch: side of a patch in pixels.
        registers: register tokens after the class token.
        gated: MLP of the form down(silu(gate) * up) in place of down(gelu(up)).
        key_bias: whether the key projection has a bias (DINOv2).
        epsilon: of the layer norms.
        rope_theta: base of the rotary positions of patches; None for learned positions.
        positions: side of the grid of learned positions, resized bicubically to other grids.
        antialias: how that resizing is done (DINOv2 with registers: True).
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    patch: int = 16
    registers: int = 4
    gated: bool = False
    key_bias: bool = False
    epsilon: float = 1e-5
    rope_theta: float | None = 100.0
    positions: int = 0
    antialias: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "hidden"):
            if not 1 <= getattr(self, name) <= _MAX_SIZE:
                raise ValueError(f"{name} {getattr(self, name)} must be from 1 to {_MAX_SIZE}")
        if self.width % self.heads or self.width // self.heads % 4:
            raise ValueError(
                f"width {self.width} must give each of {self.heads} heads a multiple of 4"
            )
        if self.rope_theta is None and not self.positions:
            raise ValueError("without rotary positions the grid of learned ones needs a side")

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `DinoConfig(**values)` reads them back."""
        return dataclasses.asdict(self)
