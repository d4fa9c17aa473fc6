"""What each level of the pyramid sees: the arguments of Q_l in Eq. 1, and the latent residual.

The paper has q(l) = Q_l(q(l-1), F(l), e_t). A fourth input, which the paper does not have, is the
residual: the final latent less the synthesis of all earlier levels. Where it enters the logits
directly, it decides nearly all bits alone, since the decoder reads nothing but the latent; the
other inputs then hardly matter. So it is stated for each level whether and how it enters.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from pyratok_jax.errors import check_fields
from pyratok_jax.io import Json

Residual = Literal["none", "trunk", "bypass"]


@dataclasses.dataclass(frozen=True)
class LevelInputs:
    """Inputs of one level.

    Attributes:
        feature: F(l), the output of the encoder stage.
        previous: q(l-1); without meaning at the first level.
        text: e_t, the caption.
        residual: "none"; "trunk": added to the feature before attention and MLP; "bypass": also
            added to the logits by a linear map.
        residual_dropout: share of the clips of a training batch that the residual is left out of;
            nothing is left out where tokens are made.

    Raises:
        ValueError: neither feature nor residual, or values out of range.
    """

    feature: bool = True
    previous: bool = True
    text: bool = True
    residual: Residual = "none"
    residual_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.feature and self.residual == "none":
            raise ValueError("inputs: a level needs the feature, the residual or both")
        if not 0.0 <= self.residual_dropout <= 1.0:
            raise ValueError(f"inputs: residual_dropout {self.residual_dropout} is not in [0, 1]")


InputsByLevel = tuple[LevelInputs, ...]
# Of descriptions that do not name their inputs: the residual in every level's logits, where it
# decides nearly alone.
UNNAMED_INPUTS = "residual-everywhere"
# Those of the shipped tokenizer: each input moves what is measured (`docs/proof.md`).
DEFAULT_INPUTS = "latent-first"
# Name -> inputs of the coarse and of the fine half of the levels, or of the first level, those
# between and the last one.
INPUT_PRESETS: dict[str, InputsByLevel] = {
    "paper": (LevelInputs(), LevelInputs()),
    UNNAMED_INPUTS: (LevelInputs(residual="bypass"), LevelInputs(residual="bypass")),
    "residual-fine": (LevelInputs(), LevelInputs(residual="trunk")),
    "residual-dropped": (
        LevelInputs(residual="trunk", residual_dropout=0.5),
        LevelInputs(residual="trunk"),
    ),
    # The first level names what is shown, undisturbed by what is left of the latent; the next ones
    # code that alone.
    DEFAULT_INPUTS: (
        LevelInputs(),
        LevelInputs(feature=False, residual="bypass"),
        LevelInputs(residual="bypass"),
    ),
}


def level_inputs(
    inputs: str | Sequence[LevelInputs | Mapping[str, Json]], levels: int
) -> InputsByLevel:
    """Inputs of every level, coarse to fine, of a preset's name or of a sequence.

    With an odd number of levels, the middle one belongs to the fine half.

    Raises:
        ValueError: an unknown name or key, another number of levels, impossible inputs.
    """
    if isinstance(inputs, str):
        if inputs not in INPUT_PRESETS:
            raise ValueError(f"inputs {inputs!r} is not one of {', '.join(INPUT_PRESETS)}")
        preset = INPUT_PRESETS[inputs]
        if len(preset) == 3:
            first, between, last = preset
            return (first, *(between,) * (levels - 2), last)[:levels]
        coarse, fine = preset
        return (coarse,) * (levels // 2) + (fine,) * (levels - levels // 2)
    if len(inputs) != levels:
        raise ValueError(f"{levels} levels need as many inputs, not {len(inputs)}")
    return tuple(_of_level(given) for given in inputs)


def _of_level(given: LevelInputs | Mapping[str, Json]) -> LevelInputs:
    if isinstance(given, LevelInputs):
        return given
    check_fields(given, LevelInputs, "a level's inputs")
    kinds = get_args(Residual)
    if given.get("residual", kinds[0]) not in kinds:
        raise ValueError(f"inputs: residual {given['residual']!r} is not one of {', '.join(kinds)}")
    return LevelInputs(**given)
