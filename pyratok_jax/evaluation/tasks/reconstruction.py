"""How well clips are reconstructed from their tokens, at what rate, and the use of the codes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.clips import (
    central_clip,
    clip_items,
    refuse_leakage,
    tokenbench_clip,
)
from pyratok_jax.evaluation.models.reconstructors import (
    BaselineReconstructor,
    ReconstructionFiles,
    Reconstructor,
    TokenizerReconstructor,
)
from pyratok_jax.evaluation.task import Item, Metrics, Partial, clip_facts
from pyratok_jax.evaluation.tasks.base import QualityTask, middle_frames
from pyratok_jax.io import Json
from pyratok_jax.metrics import fvd
from pyratok_jax.metrics.code_usage import CodeUsage
from pyratok_jax.metrics.image import PROTOCOL, mean_quality, quality, tokenbench_psnr

_SAMPLING = {
    "central": "consecutive frames from the middle, short side resized, square crop",
    "tokenbench": "as TokenBench: 10 s or 300 frames from the first on, whole frames, a short side "
    "of at most 1080 pixels",
}
_QUALITY = ("psnr_tokenbench", "psnr", "psnr_video", "ssim", "ssim_uniform", "lpips", "lpips_alex")

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import Tokenizer


@dataclasses.dataclass
class Reconstruction(QualityTask[Reconstructor, ClipRecord]):
    """Reconstruction of video sets and images (WebVid, OpenVid-1M test, COCO, any folder): PSNR,
    SSIM, LPIPS, rFVD, code utilisation per level, bits per pixel.
    """

    name = "reconstruction"
    data_help = "folder of videos or images, manifest, shards, or builtin:demo-heldout"
    columns = (("psnr", "PSNR", 2), ("ssim", "SSIM", 3), ("lpips", "LPIPS", 3), ("rfvd", "rFVD", 1))

    # Settings of NVIDIA's TokenBench. Its FVD has another network and crop, so it has none here.
    protocols: ClassVar = {
        "tokenbench": {
            "sampling": "tokenbench", "window": 17, "captions": False, "lpips": "vgg", "fvd": False,
        }
    }  # fmt: skip

    fvd: bool = True
    train: str = ""
    sampling: str = "central"
    window: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._features: Callable[[np.ndarray], np.ndarray | None] | None = None

    def wrap(self, tokenizer: "Tokenizer") -> Reconstructor:
        """The tokenizer with its padding rules."""
        return TokenizerReconstructor(tokenizer, self.window)

    def external(
        self, folder: str, rate: float | None, name: str, clips: Sequence[str]
    ) -> Reconstructor:
        """Files that another tokenizer has written."""
        return ReconstructionFiles(folder, rate, name, clips)

    def row_columns(self) -> Sequence[tuple[str, str, int]]:
        """By TokenBench's protocol, the figures that its leaderboard has, and the true PSNR."""
        if self.sampling != "tokenbench":
            return self.columns
        return (
            ("psnr_tokenbench", "PSNR", 2), ("ssim_uniform", "SSIM", 3), ("lpips", "LPIPS", 3),
            ("psnr_video", "PSNR without wrap-around", 2),
        )  # fmt: skip

    def baseline(self, kind: str) -> Reconstructor:
        """`oracle`: the clip itself; `random`: noise."""
        return BaselineReconstructor(kind)

    def check(self) -> None:
        """Refuse unknown networks, impossible sizes, and clips that were trained on."""
        super().check()
        if self.sampling not in _SAMPLING:
            raise UserError(
                f"--set sampling={self.sampling}: expected one of {', '.join(_SAMPLING)}"
            )
        if self.window < 0:
            raise UserError(f"--set window={self.window}: expected a number of frames, 0 for all")
        if self.train:
            refuse_leakage(self.data, self.train)

    def protocol(self) -> dict[str, Json]:
        """Settings, and the conventions of every metric."""
        return self.settings() | {
            "sampling": _SAMPLING[self.sampling],
            "metrics": PROTOCOL | ({"rfvd": fvd.PROTOCOL} if self._measures_fvd() else {}),
        }

    def items(self) -> list[Item[ClipRecord]]:
        """One item per clip."""
        return clip_items(self.data)

    def _measures_fvd(self) -> bool:
        return self.fvd and (self.frames >= fvd.FRAMES or self.sampling == "tokenbench")

    def prepare(self, model: Reconstructor) -> None:
        """Load the networks of LPIPS and of the Frechet distance."""
        super().prepare(model)
        if self._measures_fvd():
            self._features = fvd.load_features()

    def evaluate_item(self, model: Reconstructor, item: Item[ClipRecord]) -> Partial:
        """Quality and token ids of one clip."""
        tokenbench = self.sampling == "tokenbench"
        record = item.content
        video = (
            tokenbench_clip(record) if tokenbench else central_clip(record, self.frames, self.side)
        )
        rebuilt = model.reconstruct(video, record.caption if self.captions else None, item.id)
        features = {}
        if self._features is not None and len(video) >= fvd.FRAMES:
            pair = {"fvd_input": video, "fvd_rebuilt": rebuilt.video}
            features = {key: self._features(clip) for key, clip in pair.items()}
        found = quality([video], [rebuilt.video], self._networks)
        if tokenbench:
            found["psnr_tokenbench"] = tokenbench_psnr(video, rebuilt.video)
        return {
            "quality": found,
            "levels": len(rebuilt.ids),
            "vocabulary": model.vocabulary,
            "clip": clip_facts(video, rebuilt.clip_bits),
            "middle": middle_frames([video, rebuilt.video]),
            **features,
            **{f"ids_{level}": x.reshape(-1) for level, x in enumerate(rebuilt.ids)},
        }

    def aggregate(self, partials: Mapping[str, Partial]) -> Metrics:
        """Means over clips, each with equal weight, and the codes used over all of them."""
        parts = list(partials.values())
        means = mean_quality([part["quality"] for part in parts])
        usage = CodeUsage(parts[0]["levels"], parts[0]["vocabulary"])
        for part in parts:
            usage.add([part[f"ids_{level}"] for level in range(part["levels"])])
        videos = [part for part in parts if "fvd_input" in part]
        return {key: means.get(key) for key in _QUALITY if key in means} | {
            "rfvd": _distance(videos),
            "rfvd_videos": len(videos),
            "clips": len(parts),
            "levels": usage.summary(),
        }

    def caption(self, name: str, part: Partial) -> str:
        """Name and PSNR."""
        return f"{name}: input, reconstruction ({part['quality']['psnr']:.2f} dB)"


def _distance(parts: Sequence[Partial]) -> float | None:
    """Frechet distance of the reconstructions from their inputs; None below two videos."""
    if len(parts) < 2:
        return None
    inputs, rebuilt = (np.stack([p[key] for p in parts]) for key in ("fvd_input", "fvd_rebuilt"))
    return fvd.frechet_distance(inputs, rebuilt)
