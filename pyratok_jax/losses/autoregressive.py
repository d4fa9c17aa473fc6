"""The global alignment loss: the frozen language model reads text and codes and predicts codes.

L_AR = -sum_l log p(q(l) | q(<l), text), as the mean over all predicted codes. Gradients reach the
alignment module and, straight through, the codes as inputs and, with `targets="straight_through"`,
as targets: only those make codes predictable from the text.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pyratok_jax.models.alignment import Alignment, VisualSequence
from pyratok_jax.models.language.model import Cache, LanguageModel, TextEncoder
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.models.pyratok.regions import Grid, crop_levels, spread_tokens
from pyratok_jax.nn.partitioning import token_multiple

Text = (
    Cache
    | tuple[Int[Array, "b l"], Bool[Array, "b l"]]
    | tuple[Float[Array, "b l d"], Bool[Array, "b l"]]
)


class Prompts(NamedTuple):
    """Captions that codes are predicted from.

    Attributes:
        ids, mask: token ids, True at real tokens; a row without any has no caption.
        pooled: one vector per caption in the text space, zeros where there is none; read by
            alignments with `pooled_text`, None for others.
    """

    ids: Int[Array, "b l"]
    mask: Bool[Array, "b l"]
    pooled: Float[Array, "b d"] | None = None


def make_prompts(
    tokenizer: PyraTok, text: TextEncoder, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]
) -> Prompts:
    """Captions, and their pooled vectors by a pass of the language model."""
    read = text(ids, mask)
    read = read._replace(embeddings=read.embeddings.astype(jnp.float32))
    return Prompts(ids, mask, tokenizer.captions(read).told)


def autoregressive_loss(
    alignment: Alignment,
    language_model: LanguageModel,
    codes: tuple[Float[Array, "b _t _h _w bits"], ...],
    text: Text,
    token_budget: int | None = None,
    key: Array | None = None,
    *,
    layers: int | None = None,
    targets: str = "straight_through",
    region: str = "spread",
    pooled: Float[Array, "b d"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Cross-entropy of the codes under the language model, in nats per code.

    Pure and static in its shapes, so it can run inside a jitted, sharded step. The text is read
    without gradient; what it costs can be saved by handing over the cache of a pass that was made
    anyway (`TextEncoder.read`).

    Args:
        alignment: code embedding and head; trained.
        language_model: frozen; only its inputs are differentiated.
        codes: +-1 codes of all levels with straight-through gradient.
        text: token ids and mask, input embeddings and mask, or the cache of a pass over the text
            (of all layers, or of at least `layers`, without free slots); a row without any real
            token has no caption.
        token_budget: maximum number of visual tokens.
        key: random key of their places; None: the middle, or the first region.
        layers: run only the first layers of the language model; None runs all.
        targets: "straight_through" or "fixed", see `Alignment.sequence`.
        region: how a budget is spent: "spread" over the whole clip, or "crop", one region of it.
        pooled: the captions' vectors, see `Alignment.sequence`.

    Returns:
        the loss, and metrics: `bit_accuracy`, `chance` (the loss of a head that knows nothing),
        `tokens`, and `level_<l>`: nats per code of each level.

    Raises:
        ValueError: other targets or another region.
    """
    sequence, hidden, nats = _predict(
        alignment, language_model, codes, text, token_budget, key,
        layers=layers, targets=targets, region=region, pooled=pooled,
    )  # fmt: skip
    return jnp.mean(nats, where=sequence.predicts), _metrics(alignment, sequence, hidden, nats)


def _predict(
    alignment: Alignment,
    language_model: LanguageModel,
    codes: tuple[Float[Array, "b _t _h _w bits"], ...],
    text: Text,
    token_budget: int | None,
    key: Array | None,
    *,
    layers: int | None,
    targets: str,
    region: str,
    pooled: Float[Array, "b d"] | None,
) -> tuple[VisualSequence, Float[Array, "b n d"], Float[Array, "b n"]]:
    """The sequence, the states that predict its items, and -log p of each item."""
    chosen = None
    if region == "crop":
        codes = crop_levels(codes, token_budget, key)
    elif region == "spread":
        grids: tuple[Grid, ...] = tuple((q.shape[1], q.shape[2], q.shape[3]) for q in codes)
        chosen = spread_tokens(grids, token_budget, key)
    else:
        raise ValueError(f"region {region!r}: expected spread or crop")
    sequence = alignment.sequence(codes, chosen, targets=targets, caption=pooled)
    sequence = sequence.filled(token_multiple())
    with jax.named_scope("language_model"):
        hidden = _visual_states(language_model, sequence, text, layers)
    nats = alignment.cross_entropy(hidden, sequence.targets, sequence.separator)
    return sequence, hidden, nats


def _visual_states(
    language_model: LanguageModel, sequence: VisualSequence, text: Text, layers: int | None
) -> Float[Array, "b n d"]:
    """Final states of the visual tokens, which attend to the text's keys and values."""
    if isinstance(text, Cache):
        cache = text
    else:
        cache = language_model.read(text[0], text[1], layers=layers)[1]
    cache = jax.lax.stop_gradient(cache)
    b, n, _ = sequence.inputs.shape
    positions = None
    if language_model.config.mrope_section:
        positions = jnp.asarray(sequence.positions)[:, None] + cache.position[None, :, None]
    return language_model(sequence.inputs, None, positions, cache=cache, layers=layers).hidden


def _metrics(
    alignment: Alignment,
    sequence: VisualSequence,
    hidden: Float[Array, "b n d"],
    nats: Float[Array, "b n"],
) -> dict[str, Array]:
    hidden, nats = jax.lax.stop_gradient((hidden, nats))
    is_code = sequence.predicts
    right = alignment.predicted_bits(hidden) == sequence.targets
    metrics = {
        "bit_accuracy": jnp.mean(right.astype(jnp.float32), where=is_code[:, None]),
        "chance": jnp.float32(alignment.bits * jnp.log(2.0)),
        "tokens": jnp.float32(is_code.sum()),
    }
    for level in range(alignment.levels):
        chosen = is_code & (sequence.level == level)
        if chosen.any():
            metrics[f"level_{level + 1}"] = jnp.mean(nats, where=chosen)
    return metrics


def caption_nats(
    alignment: Alignment,
    language_model: LanguageModel,
    codes: tuple[Float[Array, "b _t _h _w bits"], ...],
    own: Prompts,
    token_budget: int | None = None,
    *,
    layers: int | None = None,
) -> dict[str, Array]:
    """How much language is in the tokens: `clip_nats` as means over the clips.

    The shuffled captions are those of the next clip of the batch, so that neighbours should differ.
    """
    other: Prompts = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), own)
    found = clip_nats(alignment, language_model, codes, own, other, token_budget, layers=layers)
    return {name: jnp.mean(value) for name, value in found.items()}


def clip_nats(
    alignment: Alignment,
    language_model: LanguageModel,
    codes: tuple[Float[Array, "b _t _h _w bits"], ...],
    own: Prompts,
    other: Prompts,
    token_budget: int | None = None,
    *,
    layers: int | None = None,
) -> dict[str, Float[Array, "b"]]:
    """Nats per code of each clip and level under three captions.

    Args:
        alignment, language_model, codes, token_budget, layers: see `autoregressive_loss`.
        own: each clip's caption.
        other: another clip's caption, which should say something else.

    Returns:
        `<caption>/level_<l>` for the captions own, none and shuffled (`other`), and
        `gain/level_<l>`: shuffled less own, which is above 0 as far as captions say what the tokens
        are.
    """
    silent = None if own.pooled is None else jnp.zeros_like(own.pooled)
    none = Prompts(own.ids, jnp.zeros_like(own.mask), silent)
    found: dict[str, Array] = {}
    for name, prompts in {"own": own, "none": none, "shuffled": other}.items():
        sequence, _, nats = _predict(
            alignment, language_model, codes, (prompts.ids, prompts.mask), token_budget, None,
            layers=layers, targets="fixed", region="spread", pooled=prompts.pooled,
        )  # fmt: skip
        for level in range(alignment.levels):
            chosen = sequence.predicts & (sequence.level == level)
            if chosen.any():
                found[f"{name}/level_{level + 1}"] = jnp.mean(nats, axis=1, where=chosen)
    levels = {name.partition("/")[2] for name in found}
    return found | {f"gain/{k}": found[f"shuffled/{k}"] - found[f"own/{k}"] for k in levels}
