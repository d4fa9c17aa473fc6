"""The objective: every term, its weight, and their sum. A term of weight 0 is not computed."""

from typing import NamedTuple, TypeVar

import jax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from pyratok_jax.losses import codebook
from pyratok_jax.losses import pixel as reconstruction
from pyratok_jax.losses import text as text_terms
from pyratok_jax.losses.features import FeatureNetwork, LatentMap, feature_terms, gaussian_kl
from pyratok_jax.losses.pixel import ImageDistance
from pyratok_jax.losses.settings import LossSettings, LossWeights
from pyratok_jax.losses.text import CodeEmbedding
from pyratok_jax.models.pyratok.model import PyraTokOutput
from pyratok_jax.models.pyratok.quantizers.base import Quantizer
from pyratok_jax.models.text_statistics import Captions

Scalar = Float[Array, ""]
T = TypeVar("T")


class Posterior(NamedTuple):
    """Gaussian posterior of the frozen encoder."""

    mean: Float[Array, "b t h w z"]
    logvar: Float[Array, "b t h w z"]


def _given(value: T | None, term: str, what: str) -> T:
    if value is None:
        raise ValueError(f"the term {term} has a weight but no {what} was given")
    return value


class Terms:
    """Collects the values of the terms that have a weight."""

    def __init__(self, weights: dict[str, float]):
        self.weights = weights
        self.values: dict[str, Scalar] = {}

    def wants(self, name: str) -> bool:
        """Whether the term has a weight."""
        return self.weights[name] != 0

    def total(self) -> Scalar:
        """Weighted sum.

        Raises:
            ValueError: when no term has a weight.
        """
        weighted = [self.weights[name] * value for name, value in self.values.items()]
        if not weighted:
            raise ValueError("every loss weight is 0: there is nothing to train")
        return sum(weighted[1:], weighted[0])


def objective(
    weights: LossWeights,
    video: Float[Array, "b t h w 3"],
    rebuilt: Float[Array, "b t h w 3"],
    output: PyraTokOutput,
    *,
    settings: LossSettings = LossSettings(),
    quantizer: Quantizer | None = None,
    text: Captions | None = None,
    shown: Bool[Array, "b"] | None = None,
    embed: CodeEmbedding | None = None,
    temperature: Float[Array, ""] | float = 0.07,
    lpips: ImageDistance | None = None,
    autoregressive: Scalar | None = None,
    frozen: Posterior | None = None,
    dino: FeatureNetwork | None = None,
    projection: LatentMap | None = None,
    masked: Float[Array, "b t h w 3"] | None = None,
    key: PRNGKeyArray | None = None,
) -> tuple[Scalar, dict[str, Scalar]]:
    """The total to minimise, and every term by name, unweighted.

    Args:
        weights, settings: static; a term without a weight is not computed and needs no input.
        video, rebuilt: the clean target in [-1, 1], and what the codes decode to, not clamped.
        output: of the encoder's pass that gave the codes.
        quantizer: that of the tokenizer, for the codebook terms.
        text: the batch's captions in the text space; rows without words count nothing.
        shown: clips whose caption the levels saw, which alone count in the text term; None: all
            that have one.
        embed: codes to the text space.
        temperature: of the contrastive text-codebook term.
        lpips: distance of images in [-1, 1].
        autoregressive: that term, computed by its own module.
        frozen: posterior of the encoder without adapters, for the same input.
        dino, projection: frozen network on images in [-1, 1]; trained map from latents to its
            features (`models.dino.LatentProjection`), for drift_dinov3 alone.
        masked: the encoder's input, for drift_dinov3; None: the clean video.
        key: draws the frames that LPIPS and DINO look at; None spaces them evenly.

    Raises:
        ValueError: when a term has a weight but lacks its input, or no term has a weight.
    """
    terms = Terms(weights.effective())
    _reconstruction_terms(terms, video, rebuilt, settings, lpips, key)
    with jax.named_scope("codebook"):
        captioned = shown if shown is not None or text is None else text.present
        extra = _codebook_terms(terms, output, settings, quantizer, captioned)
        extra |= _text_codebook_terms(terms, output, settings, text, embed, temperature)
    if terms.wants("autoregressive"):
        terms.values["autoregressive"] = _given(autoregressive, "autoregressive", "value")
    _vae_drift(terms, output, settings, frozen)
    reference = masked if settings.dino_reference == "masked" else None
    arrays = (video, rebuilt, output.target)
    _dino_terms(terms, arrays, settings, dino, projection, reference, key)
    total = terms.total()
    return total, {"total": total, **terms.values, **extra}


def _vae_drift(
    terms: Terms, output: PyraTokOutput, settings: LossSettings, frozen: Posterior | None
) -> None:
    if terms.wants("drift_vae"):
        terms.values["drift_vae"] = gaussian_kl(
            output.mean,
            output.logvar,
            *_given(frozen, "drift_vae", "frozen posterior"),
            smallest_logvar=settings.smallest_logvar,
        )


def _dino_terms(
    terms: Terms,
    arrays: tuple[Array, Array, Array],
    settings: LossSettings,
    dino: FeatureNetwork | None,
    projection: LatentMap | None,
    reference: Array | None,
    key: PRNGKeyArray | None,
) -> None:
    drifts, retains = terms.wants("drift_dinov3"), terms.wants("retention")
    if drifts or retains:
        terms.values |= feature_terms(
            *arrays,
            _given(dino, "drift_dinov3 or retention", "DINO network"),
            _given(projection, "drift_dinov3", "projection") if drifts else None,
            frames=settings.dino_frames,
            key=key,
            with_retention=retains,
            reference=reference if drifts else None,
        )


def _reconstruction_terms(
    terms: Terms,
    video: Array,
    rebuilt: Array,
    settings: LossSettings,
    lpips: ImageDistance | None,
    key: PRNGKeyArray | None,
) -> None:
    if terms.wants("l1"):
        terms.values["l1"] = reconstruction.l1(video, rebuilt)
    if terms.wants("ssim"):
        with jax.named_scope("ssim"):
            terms.values["ssim"] = reconstruction.ssim_loss(video, rebuilt)
    if terms.wants("lpips"):
        distance = _given(lpips, "lpips", "LPIPS network")
        with jax.named_scope("lpips"):
            terms.values["lpips"] = reconstruction.lpips_loss(
                video, rebuilt, distance, frames=settings.lpips_frames, key=key
            )


def _codebook_terms(
    terms: Terms,
    output: PyraTokOutput,
    settings: LossSettings,
    quantizer: Quantizer | None,
    captioned: Bool[Array, "b"] | None,
) -> dict[str, Scalar]:
    """Each term summed over the levels; returns the entropies of every level, for the log."""
    tau = settings.temperature
    sums: dict[str, list[Scalar]] = {}
    extra: dict[str, Scalar] = {}
    _check_bit_terms(terms, quantizer)
    for number, level in enumerate(output.levels):
        if terms.wants("commitment"):
            value = _given(quantizer, "commitment", "quantiser").commitment(level)
            sums.setdefault("commitment", []).append(value)
        if terms.wants("entropy"):
            value, parts = codebook.entropy(
                level.z, temperature=tau, gamma=settings.gamma, vocabulary=settings.vocabulary
            )
            sums.setdefault("entropy", []).append(value)
            extra |= {f"{name}/level_{number + 1}": part for name, part in parts.items()}
        if number and terms.wants("hierarchy"):
            previous = output.levels[number - 1].z
            value = codebook.hierarchy(
                level.z, previous, temperature=tau, stop_gradient=settings.hierarchy_stop_gradient
            )
            sums.setdefault("hierarchy", []).append(value)
        if terms.wants("text"):
            rows = _given(captioned, "text", "captions")
            value = codebook.text_alignment(level.z, level.text_logits, rows, temperature=tau)
            sums.setdefault("text", []).append(value)
    terms.values |= {name: sum(values[1:], values[0]) for name, values in sums.items()}
    return extra


def _text_codebook_terms(
    terms: Terms,
    output: PyraTokOutput,
    settings: LossSettings,
    text: Captions | None,
    embed: CodeEmbedding | None,
    temperature: Float[Array, ""] | float,
) -> dict[str, Scalar]:
    """Term 5 summed over the levels by their factors; returns the share of captions each finds."""
    if not terms.wants("text_codebook"):
        return {}
    captions = _given(text, "text_codebook", "captions")
    to_text = _given(embed, "text_codebook", "code embedding")
    values, extra = [], {}
    for number, level in enumerate(output.levels):
        features = text_terms.code_features(level.q, number, to_text, settings.text_codebook_tokens)
        if settings.text_form == "kl":
            value = text_terms.feature_kl(features, captions, settings.text_temperature)
        else:
            value = text_terms.contrastive(
                features, captions, temperature, pooling=settings.text_pooling
            )
            extra[f"retrieved/level_{number + 1}"] = text_terms.retrieved(features, captions)
        values.append(settings.text_level(number) * value)
    terms.values["text_codebook"] = sum(values[1:], values[0])
    return extra


def _check_bit_terms(terms: Terms, quantizer: Quantizer | None) -> None:
    """Refuse terms over bit distributions where codes are vectors, which have none."""
    of_bits = [name for name in ("entropy", "hierarchy", "text") if terms.wants(name)]
    if quantizer is not None and not quantizer.has_bit_logits and of_bits:
        raise ValueError(f"codebooks of vectors have no {', '.join(of_bits)} term: set it to 0")
