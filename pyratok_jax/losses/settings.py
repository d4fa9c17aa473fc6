"""Settings of the losses: weights of the terms, their forms, and those of a prior's loss."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

# Of the text-codebook term (`losses.text`).
FORMS = ("contrastive", "kl")
POOLINGS = ("mean", "words", "tokens", "peaks", "both")


def _factors(name: str, values: Iterable[float]) -> tuple[float, ...]:
    """Factors by level.

    Raises:
        ValueError: a negative or infinite one, or nothing but zeros.
    """
    factors = tuple(float(value) for value in values)
    if not all(0 <= factor < math.inf for factor in factors) or not sum(factors):
        raise ValueError(f"{name} {factors}: expected values from 0, not all 0")
    return factors


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the four groups and of the terms inside them; 0 leaves a term out.

    The groups' weights are the paper's. It states none inside the codebook group, where the terms
    have different units (squares, nats per token); see `docs/losses.md` for these.

    Attributes:
        reconstruction, codebook, autoregressive, drift: weights of the groups.
        l1, ssim, lpips: inside reconstruction.
        commitment, entropy, hierarchy, text, text_codebook: inside codebook, per level.
        drift_vae, drift_dinov3: inside drift.
        retention: DINOv3 features of the output's frames (stage 3), on its own.
    """

    reconstruction: float = 2.5
    codebook: float = 2.5
    autoregressive: float = 1.5
    drift: float = 0.6
    l1: float = 1.0
    ssim: float = 1.0
    lpips: float = 1.0
    commitment: float = 0.25
    entropy: float = 0.1
    hierarchy: float = 0.01
    text: float = 0.01
    text_codebook: float = 0.05
    drift_vae: float = 1.0
    drift_dinov3: float = 0.0
    retention: float = 0.0

    def paper(self) -> "LossWeights":
        """These weights with 1 for each term inside Eq. 2, as it is printed."""
        inside = ("commitment", "entropy", "hierarchy", "text", "text_codebook")
        return dataclasses.replace(self, **dict.fromkeys(inside, 1.0))

    def effective(self) -> dict[str, float]:
        """What each term's value is multiplied with in the total."""
        groups = {
            "reconstruction": ("l1", "ssim", "lpips"),
            "codebook": ("commitment", "entropy", "hierarchy", "text", "text_codebook"),
            "drift": ("drift_vae", "drift_dinov3"),
        }
        weights = {"autoregressive": self.autoregressive, "retention": self.retention}
        for group, terms in groups.items():
            weights |= {term: getattr(self, group) * getattr(self, term) for term in terms}
        return weights


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """What the terms need beside their weights.

    Attributes:
        temperature: tau of the soft assignments; at 0.25 a logit z_j is the logit of its bit.
        gamma: share of the batch entropy in the entropy term.
        vocabulary: number of valid codes; None means 2^bits.
        lpips_frames: frames per clip that LPIPS looks at; 0 for all.
        dino_frames: frames per clip that DINO looks at; 0 for all.
        hierarchy_stop_gradient: whether the previous level is held fixed (paper: no).
        text_form: of the text-codebook term: "contrastive", or "kl" as the paper writes it.
        text_pooling: of the contrastive form: see `text.similarity`.
        text_temperature: of the kl form.
        dino_reference: what DINO looks at in its drift: "masked" (paper) or "clean" frames.
        text_codebook_tokens: tokens per clip and level in the text-codebook term; 0 for all.
        text_levels: factors of the text-codebook term by level, the last for all further levels:
            one level may say what is shown, and the others rebuild.
        smallest_logvar: log-variances count as at least this in the drift from the VAE.
    """

    temperature: float = 0.25
    gamma: float = 1.0
    vocabulary: int | None = None
    lpips_frames: int = 0
    dino_frames: int = 0
    hierarchy_stop_gradient: bool = True
    text_form: str = "contrastive"
    text_pooling: str = "mean"
    text_temperature: float = 0.5
    dino_reference: str = "masked"
    text_codebook_tokens: int = 1024
    text_levels: tuple[float, ...] = (1.0,)
    smallest_logvar: float = -30.0

    def paper(self) -> "LossSettings":
        """These settings with the terms of Eq. 2 and the drift as the paper prints them.

        Text features stay standardised, without which the kl form has one-hot targets.
        """
        return dataclasses.replace(
            self, gamma=0.0, hierarchy_stop_gradient=False, text_form="kl",
            dino_reference="masked", text_levels=(1.0,),
        )  # fmt: skip

    def text_level(self, number: int) -> float:
        """Factor of the text-codebook term of a level, counted from 0."""
        return self.text_levels[min(number, len(self.text_levels) - 1)]

    def __post_init__(self) -> None:
        # A config's lists become tuples: the settings are part of a program's key.
        object.__setattr__(self, "text_levels", _factors("text_levels", self.text_levels))
        for name, value, known in (
            ("text_form", self.text_form, FORMS),
            ("text_pooling", self.text_pooling, POOLINGS),
            ("dino_reference", self.dino_reference, ("masked", "clean")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")


@dataclasses.dataclass(frozen=True)
class PriorObjective:
    """Settings of the loss.

    Attributes:
        flip: largest rate at which bits of what the model reads of finished tokens are flipped
            (the inputs of `raster`, the context of `blocks`), so that it learns to live with its
            own mistakes (`models.pyratok.flips` has the rates). 0 for tokens that were flipped
            when they were made, which also hold what corrects the flips.
        weight: "uniform" or "elbo", of the masked orders.
        tasks: share of the clips of which a part is given (`models.prior.tasks`), for `masked`.
        level_weights: of each level's tokens in the loss, the last for all further levels: the
            first levels decide what is shown, and hold few of the tokens. The figures in nats do
            not change.
    """

    flip: float = 0.0
    weight: Literal["uniform", "elbo"] = "uniform"
    tasks: float = 0.0
    level_weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "level_weights", _factors("level_weights", self.level_weights))
        if self.weight not in ("uniform", "elbo"):
            raise ValueError(f"weight {self.weight!r}: expected uniform or elbo")
        for name in ("flip", "tasks"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is not within 0 .. 1")
