"""The numbers of a token dataset, and pictures of some of its records."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont

from pyratok_jax.errors import printable, short
from pyratok_jax.io import Json, html
from pyratok_jax.metrics.code_usage import count_codes, counted_bits, usage
from pyratok_jax.reports.pictures import token_maps
from pyratok_jax.tokens.schema import DamagedRecordError, TokenRecord

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import TokenizerLike

_SIDE = 128
_TEXT = 28
_MOST_PAIRS = 2_000_000  # Tokens of a level that n-grams are counted over.
Summary = dict[str, Json]


class Inspection:
    """Gathers the numbers of a dataset, record by record."""

    def __init__(self) -> None:
        self.records = self.tokens = self.raw_bits = self.with_caption = 0
        self.videos = self.frames = self.pixels = self.bits = self.vocabulary = 0
        self.seconds = 0.0
        self.damaged: list[str] = []
        self.origins: dict[str, int] = {}
        self.pictured: list[TokenRecord] = []
        self._counts: np.ndarray | None = None
        self._grams: list[Grams] = []

    def add_all(
        self,
        items: Iterable[TokenRecord | DamagedRecordError],
        pictures: int,
        expected: int,
        problem_of: Callable[[TokenRecord], str | None] = lambda record: None,
    ) -> None:
        """Go through a dataset, and keep `pictures` of about `expected` records for the sheet.

        Args:
            items: records, and what stands for damaged ones.
            pictures: how many are shown at most.
            expected: number of records, for pictures that are evenly spread.
            problem_of: why a record cannot be shown, None where it can; such a record is named as
                damaged. It is asked about no others than those of the sheet, and may raise.
        """
        step = max(expected // max(pictures, 1), 1)
        for item in items:
            if isinstance(item, DamagedRecordError):
                self.damaged.append(f"{item.where}: {item.reason}")
                continue
            if self.records % step == 0 and len(self.pictured) < pictures:
                problem = problem_of(item)
                if problem is None:
                    self.pictured.append(item)
                else:
                    self.damaged.append(f"{short(item.id)}: {problem}; it is not shown")
            self._add(item)

    def _add(self, record: TokenRecord) -> None:
        if self._counts is None:
            self.bits, self.vocabulary = record.bits, record.vocabulary
            self._counts = np.zeros((record.levels, 2 ** counted_bits(record.bits)), np.int64)
            self._grams = [Grams() for _ in range(record.levels)]
        if (record.bits, record.levels) != (self.bits, len(self._counts)):
            self.damaged.append(
                f"{short(record.id)}: its levels differ from those of the first record"
            )
            return
        self.records += 1
        self.tokens += record.count
        self.raw_bits += record.count * record.bits
        key = f"checkpoint {record.checkpoint[:16] or '-'}, code {record.code[:16]}"
        self.origins[key] = self.origins.get(key, 0) + 1
        if record.block == 0:
            self.videos += 1
            self.frames += record.video_frames
            self.seconds += record.video_frames / record.fps
            self.pixels += record.video_frames * record.video_height * record.video_width
            self.with_caption += bool(record.caption)
        count_codes(record.tokens, self._counts, record.bits)
        for grams, level in zip(self._grams, record.tokens, strict=True):
            grams.add(level)

    def summary(self) -> dict[str, Json]:
        """All numbers, as plain JSON."""
        levels = []
        for row, grams in zip(() if self._counts is None else self._counts, self._grams,
                              strict=True):  # fmt: skip
            levels.append({**usage(row, self.vocabulary), **grams.entropies()})
        return {
            "videos": self.videos,
            "records": self.records,
            "frames": self.frames,
            "hours": self.seconds / 3600,
            "with_caption": self.with_caption,
            "tokens": self.tokens,
            "bits": self.bits,
            "vocabulary": self.vocabulary,
            "bpp_raw": self.raw_bits / max(self.pixels, 1),
            "origins": self.origins,
            "damaged": self.damaged,
            "levels": levels,
        }


class Grams:
    """How much the previous token tells about a token: along a row, and at the same place in time.

    Plain counts overestimate predictability where data are scarce: with few pairs most are seen
    once. So the number of distinct pairs is given with the entropy.
    """

    def __init__(self) -> None:
        self._pairs: dict[str, list[np.ndarray]] = {"row": [], "time": []}
        self._held = 0

    def add(self, level: np.ndarray) -> None:
        """One level (t, h, w) of a record."""
        if self._held > _MOST_PAIRS:
            return
        self._held += level.size
        ids = level.astype(np.uint64)
        self._pairs["row"].append((ids[:, :, :-1] << 32 | ids[:, :, 1:]).ravel())
        self._pairs["time"].append((ids[:-1] << 32 | ids[1:]).ravel())

    def entropies(self) -> dict[str, Json]:
        """Conditional entropy in bits per token for both neighbours, and how it was counted."""
        result: dict[str, Json] = {}
        for name, parts in self._pairs.items():
            pairs = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
            joint = _entropy(pairs)
            first = _entropy(pairs >> np.uint64(32))
            result[f"bigram_{name}"] = {
                "entropy": max(joint - first, 0.0),
                "pairs": len(pairs),
                "distinct": len(np.unique(pairs)),
            }
        return result


def _entropy(values: np.ndarray) -> float:
    if not len(values):
        return 0.0
    times = np.unique(values, return_counts=True)[1]
    p = times / times.sum()
    return float(-(p * np.log2(p)).sum())


def contact_sheet(records: Sequence[TokenRecord], tokenizer: "TokenizerLike | None") -> Image.Image:
    """A row per record: the decoded middle frame (with a tokenizer), then a map of each level."""
    columns = max((r.levels for r in records), default=0) + (tokenizer is not None)
    size = max(columns, 1) * _SIDE, max(len(records), 1) * (_SIDE + _TEXT)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for row, record in enumerate(records):
        pictures = _token_maps(record, tokenizer)
        if tokenizer is not None:
            pictures.insert(0, _thumbnail(record, tokenizer))
        top = row * (_SIDE + _TEXT)
        for column, picture in enumerate(pictures):
            sheet.paste(_fitted(picture), (column * _SIDE, top))
        text = f"{short(record.id, 60)}  {record.width}x{record.height}, {record.count} tokens"
        draw.text((2, top + _SIDE), printable(text), fill="black", font=font)
        caption = short(record.caption, 90) or "(no caption)"
        draw.text((2, top + _SIDE + 12), printable(caption), fill="gray", font=font)
    return sheet


def _token_maps(record: TokenRecord, tokenizer: "TokenizerLike | None") -> list[np.ndarray]:
    """The middle frame of each level's map; without a tokenizer the codes' bits are compared."""
    if tokenizer is None:
        places = np.arange(record.bits, dtype=np.uint32)
        codes = [(x[..., None].astype(np.uint32) >> places & 1) * 2.0 - 1.0 for x in record.tokens]
    else:
        ids = tuple(level[None].astype(np.uint32) for level in record.tokens)
        codes = [embedded[0] for embedded in tokenizer.code_embeddings(ids)]
    maps = token_maps(codes, record.padded_frames, record.padded_height, record.padded_width)
    return [m[record.frames // 2, : record.height, : record.width] for m in maps]


def _thumbnail(record: TokenRecord, tokenizer: "TokenizerLike") -> np.ndarray:
    # Where bits were flipped, only what was read is of one video.
    ids = tuple(level[None].astype(np.uint32) for level in record.read or record.tokens)
    frames = tokenizer.decode_padded(ids)[0]
    return frames[record.frames // 2, : record.height, : record.width]


def _fitted(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    scale = (_SIDE - 4) / max(image.size)
    size = tuple(max(round(side * scale), 1) for side in image.size)
    shrinks = scale < 1
    kind = Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
    return image.resize((size[0], size[1]), kind)


_STYLE = """
.bars { display: flex; align-items: end; height: 90px; gap: 2px; }
.bars div { background: var(--accent); flex: 1; min-height: 1px; }
"""


def html_page(source: str, summary: Summary, sheet: Image.Image) -> str:
    """A self-contained page with the numbers and the sheet."""
    numbers = {k: v for k, v in summary.items() if not isinstance(v, (dict, list))}
    parts = [_table(numbers), html.section("Made by", _table(summary["origins"]))]
    parts.append(html.section("Damaged", *map(html.paragraph, summary["damaged"][:100])))
    parts += [_level(n, level) for n, level in enumerate(summary["levels"], start=1)]
    parts.append(html.section("Samples", html.picture(sheet, "samples")))
    return html.document(source, parts, style=_STYLE)


def _table(values: Summary) -> Markup:
    return html.table((key.replace("_", " "), _text(value)) for key, value in values.items())


def _text(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _level(number: int, level: Summary) -> Markup:
    rows = {k: level[k] for k in ("tokens", "used", "utilisation", "entropy", "perplexity")}
    for name in ("row", "time"):
        pairs = level[f"bigram_{name}"]
        rows[f"entropy given the previous token ({name})"] = (
            f"{pairs['entropy']:.3f} ({pairs['distinct']} of {pairs['pairs']} pairs distinct)"
        )
    most = max(level["histogram"].values(), default=1) or 1
    bars = html.join(
        Markup("<div title='{} codes occur {} times' style='height:{:.1f}%'></div>").format(
            count, name, 100 * count / most
        )
        for name, count in level["histogram"].items()
    )
    names = ", ".join(f"{name}: {count}" for name, count in level["histogram"].items())
    return html.section(
        f"Level {number}", _table(rows), html.paragraph("Codes by how often they occur:"),
        Markup("<div class='bars'>{}</div>").format(bars), html.paragraph(names, faint=True),
    )  # fmt: skip
