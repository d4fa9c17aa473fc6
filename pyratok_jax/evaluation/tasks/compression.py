"""Rate-distortion of tokenizers against x264, x265 and AV1 on the same frames."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.files import probe
from pyratok_jax.evaluation.data.clips import (
    RawVideo,
    central_clip,
    clip_items,
    raw_videos,
    read_raw,
)
from pyratok_jax.evaluation.models import codecs
from pyratok_jax.evaluation.models.reconstructors import (
    BaselineReconstructor,
    Reconstructor,
    TokenizerReconstructor,
)
from pyratok_jax.evaluation.task import (
    BrokenItemError,
    Item,
    Metrics,
    Partial,
    RatePoints,
    clip_facts,
    parse_numbers,
)
from pyratok_jax.evaluation.tasks.base import QualityTask, middle_frames
from pyratok_jax.io import Json
from pyratok_jax.metrics import rate as rd
from pyratok_jax.metrics.image import PROTOCOL, Perceptual, quality

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import Tokenizer

Content = ClipRecord | RawVideo

_SAMPLING = "consecutive frames from the middle, short side resized, square crop; side=0: whole"
_CODEC_PROTOCOL = (
    "8-bit RGB to 4:2:0 and back by BT.709, one thread, one key frame per clip; rate is the bytes "
    "of all packets without SEI messages and container; CRFs on the scale 0 .. 51, AV1's "
    "stretched to 0 .. 63"
)
_MATCH_PROTOCOL = "per clip and codec the CRF whose size is closest to the tokens', by bisection"
_BD_PROTOCOL = "Bjontegaard, log rate over PSNR by PCHIP, on curves of total bits and mean PSNR"


class Several(NamedTuple):
    """The tokenizers that a run compares, by name."""

    models: dict[str, Reconstructor]
    checkpoint_hash: str


@dataclasses.dataclass
class Compression(QualityTask[Several, Content]):
    """Rate-distortion of one or more checkpoints (repeat --checkpoint), with raw and with
    entropy-coded tokens, against x264, x265 and AV1 on the same frames: table, curves, BD-rate,
    and each codec at the tokens' own rate.
    """

    name = "compression"
    data_help = (
        "folder of raw videos NAME_WxH_FPS.yuv (MCL-JCV, UVG) or of videos, manifest, shards, or "
        "builtin:demo-heldout"
    )
    columns = (
        ("psnr", "PSNR", 2),
        ("ssim", "SSIM", 3),
        ("lpips", "LPIPS", 3),
        ("bpp_coded", "bpp coded", 4),
    )
    several = True
    pictured = 6

    codecs: str = "auto"
    crfs: str = "15,20,25,30,35,40,45,51"

    def wrap(self, tokenizer: "Tokenizer") -> Several:
        """The tokenizer with its padding rules, as one of several."""
        return Several({"": TokenizerReconstructor(tokenizer)}, tokenizer.checkpoint_hash)

    def baseline(self, kind: str) -> Several:
        """`oracle`: the clip itself; `random`: noise."""
        return Several({"": BaselineReconstructor(kind)}, kind)

    def join(self, models: Mapping[str, Several]) -> Several:
        """Several checkpoints as one model."""
        every = {name: one for name, m in models.items() for one in m.models.values()}
        return Several(every, "+".join(m.checkpoint_hash for m in models.values()))

    def crf_list(self) -> list[float]:
        """The CRFs on the scale of x264.

        Raises:
            UserError: not a list of numbers from 1 to 51.
        """
        expected = "numbers from 1 to 51, as 20,30,40"
        values = parse_numbers(self.crfs, "crfs", expected, low=1, high=51, whole=False)
        return sorted(set(values))

    def check(self) -> None:
        """Refuse unknown networks and codecs, and impossible sizes."""
        super().check()
        codecs.choose(self.codecs)
        self.crf_list()

    def protocol(self) -> dict[str, Json]:
        """Settings, the codecs as they are called, and the conventions of every number."""
        chosen = codecs.choose(self.codecs)
        return self.settings() | {
            "sampling": _SAMPLING,
            "encoders": {name: codecs.describe(codec) for name, codec in chosen.items()},
            "rate of codecs": _CODEC_PROTOCOL,
            "matched": _MATCH_PROTOCOL,
            "bd_rate": _BD_PROTOCOL,
            "metrics": PROTOCOL,
        }

    def items(self) -> Sequence[Item[Content]]:
        """One item per clip."""
        folder = Path(self.data)
        raw = raw_videos(folder) if folder.is_dir() else []
        if raw:
            return [Item(str(video.path.relative_to(folder)), video) for video in raw]
        return clip_items(self.data)

    def _clip(self, content: Content) -> tuple[np.ndarray, float, str | None]:
        """Frames, frames per second and caption."""
        if isinstance(content, RawVideo):
            return read_raw(content, self.frames, self.side), content.fps, None
        if content.still:
            raise BrokenItemError("a still image; video codecs are measured on videos")
        video = central_clip(content, self.frames, self.side)
        fps = content.fps or (30.0 if content.stored is not None else probe(content.media).fps)
        return video, fps, content.caption

    def evaluate_item(self, model: Several, item: Item[Content]) -> Partial:
        """All measurements of one clip."""
        video, fps, caption = self._clip(item.content)
        measured, shown = [], {"input": video}
        for name, reconstructor in model.models.items():
            entry, rebuilt = self._tokens(name, reconstructor, video, caption)
            measured.append(entry)
            shown[name] = rebuilt
        first = measured[0]["bits"][rd.RAW]
        converted = quality([video], [codecs.converted(video)])
        measured.append({"key": [rd.CONVERSION], "bits": {}, "quality": converted})
        tokens = [entry for entry in measured if entry["key"][0] == rd.TOKENS]
        for name, codec in codecs.choose(self.codecs).items():
            run = _Run(codec, video, fps, self._networks)
            for crf in self.crf_list():
                scaled = round(crf * codec.worst / 51 / codec.step) * codec.step
                measured.append(run.measure([rd.CODEC, name, f"{crf:g}"], run.code(scaled))[0])
            for target in tokens:
                for kind, bits in target["bits"].items():
                    best = codecs.match_rate(run.code, codec, bits)
                    key = [rd.MATCHED, name, target["key"][1], kind]
                    entry, decoded = run.measure(key, best)
                    measured.append(entry)
                    shown.setdefault(f"{name} at that rate", decoded)
        return {
            "measured": measured,
            "clip": clip_facts(video, float(first)),
            "names": list(shown),
            "middle": middle_frames(list(shown.values())),
        }

    def _tokens(
        self, name: str, reconstructor: Reconstructor, video: np.ndarray, caption: str | None
    ) -> tuple[dict[str, Json], np.ndarray]:
        rebuilt = reconstructor.reconstruct(video, caption if self.captions else None)
        bits = {rd.RAW: float(rebuilt.bits * sum(x.size for x in rebuilt.ids))}
        coded = _coded_bits(rebuilt.ids, rebuilt.bits)
        if coded is not None:
            bits[rd.CODED] = float(coded)
        found = quality([video], [rebuilt.video], self._networks)
        return {"key": [rd.TOKENS, name], "bits": bits, "quality": found}, rebuilt.video

    def aggregate(self, partials: Mapping[str, Partial]) -> Metrics:
        """Rows over all clips, comparisons of the curves; the headline is the first checkpoint."""
        parts = list(partials.values())
        sizes = [p["clip"]["frames"] * p["clip"]["height"] * p["clip"]["width"] for p in parts]
        rows = rd.merge([part["measured"] for part in parts], sizes)
        series = rd.curves(rows)
        first = next(row for row in rows if row["key"][0] == rd.TOKENS)
        headline = {key: first.get(key) for key in ("psnr", "psnr_video", "ssim", "lpips")}
        return headline | {
            "bpp_raw": first["bpp"][rd.RAW],
            "bpp_coded": first["bpp"].get(rd.CODED),
            "clips": len(parts),
            **rd.compare(series),
            "rows": rows,
        }

    def tables(self, metrics: Metrics) -> dict[str, list[dict[str, Json]]]:
        """Tokens with each codec at their rate, all points of the codecs, and BD-rates."""
        rows = metrics["rows"]
        return {
            "At equal rate": _equal_rate(rows),
            "Curves of the codecs": [
                _row(f"{row['key'][1]}, CRF {row['crf']:g}", row)
                for row in rows
                if row["key"][0] == rd.CODEC
            ],
            "BD-rate in percent (negative: fewer bits at equal PSNR)": [
                {"name": name} | _percentages("against", values)
                for name, values in metrics["bd_rate"].items()
            ],
            "Percent more bits than the codec takes for the tokens' PSNR": [
                {"name": name} | _percentages("than", values)
                for name, values in metrics["rate_at_equal_psnr"].items()
            ],
        }

    def rate_distortion(self, metrics: Metrics) -> Mapping[str, RatePoints]:
        """PSNR over bits per pixel, for the chart."""
        return rd.curves(metrics["rows"])

    def caption(self, name: str, part: Partial) -> str:
        """What coded the frames, in their order."""
        return f"{name}: {', '.join(part['names'])}"


class _Run:
    """One codec on one clip; what was encoded once is kept."""

    def __init__(
        self, codec: codecs.Codec, video: np.ndarray, fps: float, networks: dict[str, Perceptual]
    ) -> None:
        self._codec, self._video, self._fps, self._networks = codec, video, fps, networks
        self._known: dict[float, codecs.CodedVideo] = {}

    def code(self, crf: float) -> codecs.CodedVideo:
        """The clip at a CRF of the codec's own scale."""
        crf = round(crf, 3)
        if crf not in self._known:
            self._known[crf] = codecs.encode(self._codec, self._video, self._fps, crf)
        return self._known[crf]

    def measure(
        self, key: Sequence[str], coded: codecs.CodedVideo
    ) -> tuple[dict[str, Json], np.ndarray]:
        """The measurement of an encoding, and what it decodes to."""
        decoded = codecs.decode(self._codec, coded, self._video.shape)
        found = quality([self._video], [decoded], self._networks)
        bits = {rd.RAW: float(coded.bits)}
        return {"key": list(key), "bits": bits, "crf": coded.crf, "quality": found}, decoded


def _coded_bits(ids: Sequence[np.ndarray], bits: int) -> int | None:
    """Bits of all levels after entropy coding; None without the coder (extra `compress`)."""
    try:
        from pyratok_jax.tokens.coding import pack

        return 8 * sum(len(pack(level, bits)) for level in ids)
    except ImportError:
        return None


def _equal_rate(rows: Sequence[Mapping[str, Json]]) -> list[dict[str, Json]]:
    table = []
    for row in rows:
        if row["key"][0] != rd.TOKENS:
            continue
        for kind in row["bpp"]:
            name = row["key"][1]
            table.append(_row(f"{name}, {kind} tokens", row, kind) | {"role": "model"})
            for other in rows:
                if other["key"][0] == rd.MATCHED and other["key"][2:] == [name, kind]:
                    table.append(_row(f"{other['key'][1]}, CRF {other['crf']:.1f}", other))
    for row in rows:
        if row["key"][0] == rd.CONVERSION:
            table.append(_row("4:2:0 without coding (the codecs' ceiling)", row))
    return table


def _percentages(word: str, values: Mapping[str, float | None]) -> dict[str, str | None]:
    """Columns in the order of the codecs, whole percentages."""
    names = [name for name in codecs.NAMES if name in values]
    found = {name: values[name] for name in names}
    return {f"{word} {n}": None if v is None else f"{v:+.0f} %" for n, v in found.items()}


def _row(name: str, row: Mapping[str, Json], kind: str = rd.RAW) -> dict[str, Json]:
    shown = ("psnr", "psnr_video", "ssim", "lpips", "lpips_alex")
    return {"name": name, "bpp": row["bpp"].get(kind)} | {key: row.get(key) for key in shown}
