"""What a tokenizer's tokens say of held-out videos of the world, for the report of a training.

Three measurements, none of which shows the levels a caption: which of twelve things a video shows,
by the cosine of its first level's tokens with names; how well the language model predicts the
tokens when it reads the video's own caption, and that of another video; and where in a frame each
phrase is found.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from markupsafe import Markup
from PIL import Image

from pyratok_jax.data.world.drawing import draw_film
from pyratok_jax.data.world.scenes import Scene
from pyratok_jax.data.world.sentences import caption
from pyratok_jax.data.world.vocabulary import seen_names, unseen_names
from pyratok_jax.evaluation.models.features import (
    Features,
    TokenizerFeatures,
    normalized,
    pooled_similarity,
)
from pyratok_jax.evaluation.vision.drawing import drawn_matrix, heat_maps, titled
from pyratok_jax.evaluation.vision.masks import similarity_maps, to_pixels
from pyratok_jax.evaluation.world_set import classes, single
from pyratok_jax.io import html
from pyratok_jax.losses.autoregressive import Prompts, clip_nats, make_prompts
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.models.language.model import LanguageModel
from pyratok_jax.models.pyratok.lfq import ids_to_bits
from pyratok_jax.tokenizer import Tokenizer

FRAMES, SIDE = 9, 64
TEMPLATE = "a video of {}."
READ = 12  # videos whose captions the language model reads
_SEED = 78  # apart from those of training and of the other held-out sets
_SCALE = 2  # of the picture, in screen pixels per pixel
_WHITE = (255, 255, 255)


@dataclasses.dataclass(frozen=True)
class LanguageFindings:
    """What was found.

    Attributes:
        videos: how many were named.
        top1: right names in percent; `chance`: of a guess.
        nats: mean nats per token by caption and level, "own/level_1", "shuffled/level_1" ...; empty
            where the head that predicts tokens was not trained.
        nats_of_chance: of a head that knows nothing.
        phrases: what the columns of the picture are compared with; the last one is not shown.
        picture: a frame, and for each level (rows) and phrase (columns) the similarity of its
            tokens.
        names: the things that are told apart.
        alike: mean similarity of the videos of each thing that is shown (rows) with each name
            (columns), by the first level.
        moving: frames of a thing that moves (columns), below them the similarity of each level's
            tokens (rows) with its name.
    """

    videos: int
    top1: float
    chance: float
    nats: Mapping[str, float]
    nats_of_chance: float
    phrases: tuple[str, ...]
    picture: UInt8[np.ndarray, "h w 3"]
    names: tuple[str, ...]
    alike: Float[np.ndarray, "r n"]
    moving: UInt8[np.ndarray, "h w 3"]

    def summary(self) -> dict[str, object]:
        """All but the pictures, for a JSON file."""
        kept = dataclasses.asdict(self)
        for name in ("picture", "moving"):
            del kept[name]
        return kept | {"alike": np.round(self.alike, 4).tolist()}


def check_language(
    tokenizer: Tokenizer, videos: int, *, read: bool = True, layers: int | None = None
) -> LanguageFindings | None:
    """Measure all three.

    Args:
        tokenizer: with a language model and a code embedding; None comes back for another.
        videos: how many are named.
        read: whether the training taught the head that predicts tokens.
        layers: of the language model in that prediction; None: all.
    """
    if tokenizer.text is None or tokenizer.alignment is None or not videos:
        return None
    rng = np.random.default_rng(_SEED)
    names = classes(seen_names())
    shown = [names[i % len(names)] for i in range(videos)]
    scenes = [single(rng, name) for name in shown]
    extractor = TokenizerFeatures(tokenizer, FRAMES)
    queries = _queries(extractor, names)
    found = [
        pooled_similarity(extractor.video(_pixels(scene)), queries, "peaks", levels=[0])
        for scene in scenes
    ]
    right = [int(np.argmax(x)) == names.index(name) for x, name in zip(found, shown, strict=True)]
    nats = _nats(tokenizer, scenes[:READ], layers, rng) if read else {}
    phrases, picture = _picture(extractor, rng)
    of = np.array([names.index(name) for name in shown])
    alike = [np.mean([x for x, k in zip(found, of, strict=True) if k == n], axis=0)
             for n in range(len(names)) if n in of]  # fmt: skip
    return LanguageFindings(
        videos=videos,
        top1=round(100 * float(np.mean(right)), 1),
        chance=round(100 / len(names), 1),
        nats={name: round(value, 3) for name, value in nats.items()},
        nats_of_chance=round(tokenizer.config.bits * float(np.log(2.0)), 3),
        phrases=phrases,
        picture=picture,
        names=tuple(names),
        alike=np.stack(alike).astype(np.float64),
        moving=_moving(extractor, rng),
    )


def language_section(found: LanguageFindings) -> Markup:
    """The findings for a page."""
    named = f"which of {round(100 / found.chance)} things is shown, {found.videos} held-out videos"
    rows: list[Sequence[object]] = [(named, f"{found.top1} %", f"{found.chance} %")]
    levels = sorted(name.partition("/")[2] for name in found.nats if name.startswith("own/"))
    for level in levels:
        own, other = (found.nats[f"{kind}/{level}"] for kind in ("own", "shuffled"))
        what = f"nats per token of {level.replace('_', ' ')}: own caption, another video's"
        rows.append((what, f"{own:.2f}, {other:.2f}", f"{found.nats_of_chance:.2f}"))
    text = (
        "Tokens of videos of the world, made without a caption. In the picture a pair of colour "
        "and shape that no training video shows, and where each level's tokens are like a phrase "
        f"(bright: most alike within the frame); {found.phrases[-1]} is not to be seen."
    )
    pictures = [
        (text, found.picture, "similarity of tokens with phrases"),
        (
            "A thing that moves, and where in each frame each level's tokens are like its name.",
            found.moving,
            "similarity of tokens with a name over frames",
        ),
    ]
    parts = [html.table(rows, ("", "measured", "chance"))]
    for about, picture, alt in pictures:
        parts.append(html.paragraph(about, faint=True))
        parts.append(Markup("<p>{}</p>").format(html.picture(Image.fromarray(picture), alt)))
    about = (
        "Mean similarity of the first level's tokens of the videos of each thing (rows) with each "
        "name (columns), bright: most alike in the row. Right names are on the diagonal."
    )
    matrix = drawn_matrix(found.alike, found.names[: len(found.alike)], found.names)
    parts.append(html.paragraph(about, faint=True))
    parts.append(Markup("<p>{}</p>").format(html.picture(matrix, "similarity of things and names")))
    return html.join(parts)


def _pixels(scene: Scene) -> UInt8[np.ndarray, "t h w 3"]:
    return draw_film(scene, FRAMES, SIDE, SIDE).frames


def _named(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _queries(extractor: TokenizerFeatures, names: Sequence[str]) -> Float[np.ndarray, "n d"]:
    return normalized(extractor.texts([TEMPLATE.format(_named(name)) for name in names]))


def _nats(
    tokenizer: Tokenizer, scenes: Sequence[Scene], layers: int | None, rng: np.random.Generator
) -> dict[str, float]:
    """Nats per token of videos that show different things, under their own and wrong captions."""
    assert tokenizer.text is not None and tokenizer.alignment is not None
    assert tokenizer.captions is not None
    ids = tokenizer.encode_padded(np.stack([_pixels(scene) for scene in scenes]))
    codes = tuple(ids_to_bits(jnp.asarray(level), tokenizer.config.bits) for level in ids)
    words, mask = map(jnp.asarray, tokenizer.captions([caption(x, rng) for x in scenes]))
    prompts = nnx.jit(make_prompts)(tokenizer.model, tokenizer.text, words, mask)

    @nnx.jit
    def measure(
        alignment: Alignment, model: LanguageModel, codes: tuple[Array, ...], own: Prompts
    ) -> dict[str, Array]:
        other = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), own)
        return clip_nats(alignment, model, codes, own, other, 96, layers=layers)

    found = measure(tokenizer.alignment, tokenizer.text.language_model, codes, prompts)
    return {name: float(np.mean(value)) for name, value in jax.device_get(found).items()}


def _picture(
    extractor: TokenizerFeatures, rng: np.random.Generator
) -> tuple[tuple[str, ...], UInt8[np.ndarray, "h w 3"]]:
    """A thing whose pair of colour and shape training never shows, and each phrase's heat."""
    names = classes(unseen_names())
    name = names[len(names) // 2]
    colour, shape = name.split()
    wrong = next(x for x in seen_names() if colour not in x and shape not in x)
    phrases = (_named(name), colour, _named(shape), _named(wrong))
    clip = _pixels(single(rng, name, "still"))
    features: Features = extractor.video(clip)
    queries = normalized(extractor.texts([TEMPLATE.format(phrase) for phrase in phrases]))
    middle = slice(len(clip) // 2, len(clip) // 2 + 1)
    rows = []
    for number, level in enumerate(features.levels, start=1):
        maps = to_pixels(similarity_maps(level, queries), level, (SIDE, SIDE))[middle]
        panels = [titled(_large(clip[middle]), {f"level {number}": _WHITE})]
        for column, phrase in enumerate(phrases):
            heat = heat_maps(clip[middle], maps[..., column])
            panels.append(titled(_large(heat), {phrase: _WHITE}))
        rows.append(np.concatenate([panel[0] for panel in panels], axis=1))
    return phrases, np.concatenate(rows, axis=0)


def _moving(extractor: TokenizerFeatures, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Frames of a thing that moves to the right, and each level's heat for its name."""
    name = classes(seen_names())[0]
    clip = _pixels(single(rng, name, "right"))
    features: Features = extractor.video(clip)
    queries = normalized(extractor.texts([TEMPLATE.format(_named(name))]))
    kept = np.arange(0, len(clip), 2)
    rows = [titled(_large(clip[kept]), {_named(name): _WHITE})]
    for number, level in enumerate(features.levels, start=1):
        heat = to_pixels(similarity_maps(level, queries), level, (SIDE, SIDE))[kept, ..., 0]
        rows.append(titled(_large(heat_maps(clip[kept], heat)), {f"level {number}": _WHITE}))
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


def _large(frames: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t h2 w2 3"]:
    size = (_SCALE * frames.shape[2], _SCALE * frames.shape[1])
    return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])
