"""How well clips are rebuilt from their tokens, at what rate, and how the codes are used."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.framework import Item, Partial, Picture, Task
from pyratok_jax.evaluation.models.reconstructors import (
    Rebuilder,
    StandIn,
    TokenizerRebuilder,
    central_clip,
    clip_items,
    refuse_leakage,
)
from pyratok_jax.metrics import fvd
from pyratok_jax.metrics.image import PROTOCOL, CodeUsage, Perceptual, mean_quality, quality

_QUALITY = ("psnr", "psnr_video", "ssim", "ssim_uniform", "lpips", "lpips_alex")
NETWORKS = {"none": (), "vgg": ("vgg",), "alex": ("alex",), "both": ("vgg", "alex")}


@dataclasses.dataclass
class Reconstruction(Task):
    """The task; see `description`."""

    name = "reconstruction"
    description = (
        "Reconstruction of video sets and images (WebVid, OpenVid-1M test, COCO, any folder): "
        "PSNR, SSIM, LPIPS, rFVD, code utilisation per level, bits per pixel."
    )
    data_help = "folder of videos or images, manifest, shards, or builtin:demo-heldout"
    columns = (("psnr", "PSNR", 2), ("ssim", "SSIM", 3), ("lpips", "LPIPS", 3), ("rfvd", "rFVD", 1))

    frames: int = 17
    side: int = 256
    captions: bool = True
    lpips: str = "vgg"
    fvd: bool = True
    train: str = ""

    def __post_init__(self) -> None:
        self._networks: dict[str, Perceptual] = {}
        self._features: Callable[[np.ndarray], np.ndarray | None] | None = None
        self._vocabulary = 0

    def wrap(self, tokenizer: Any) -> Rebuilder:
        """The tokenizer with its padding rules."""
        return TokenizerRebuilder(tokenizer)

    def stand_in(self, kind: str) -> Rebuilder:
        """`oracle`: the clip itself; `random`: noise."""
        return StandIn(kind)

    def check(self) -> None:
        """Refuse unknown networks, impossible sizes, and clips that were trained on."""
        if self.lpips not in NETWORKS:
            raise UserError(f"--set lpips={self.lpips}: expected one of {', '.join(NETWORKS)}")
        if self.frames < 1 or self.side < 0:
            raise UserError(f"--set frames={self.frames}, side={self.side}: too small")
        if self.train:
            refuse_leakage(self.data, self.train)

    def protocol(self) -> dict[str, Any]:
        """Settings, and the conventions of every metric."""
        return self.settings() | {
            "sampling": "consecutive frames from the middle, short side resized, square crop",
            "metrics": PROTOCOL | ({"rfvd": fvd.PROTOCOL} if self._measures_fvd() else {}),
        }

    def items(self) -> list[Item]:
        """One item per clip."""
        return clip_items(self.data)

    def _measures_fvd(self) -> bool:
        return self.fvd and self.frames >= fvd.FRAMES

    def prepare(self, model: Rebuilder) -> None:
        """Load the networks of LPIPS and of the Frechet distance."""
        if self._measures_fvd():
            self._features = fvd.load_features()
        self._vocabulary = model.vocabulary
        if NETWORKS[self.lpips]:
            from pyratok_jax.checkpoints.foreign.lpips import load_lpips

            self._networks = {name: load_lpips(name) for name in NETWORKS[self.lpips]}

    def evaluate_item(self, model: Rebuilder, item: Item) -> Partial:
        """Quality and token ids of one clip."""
        video = central_clip(item.content, self.frames, self.side)
        rebuilt = model.rebuild(video, item.content.caption if self.captions else None)
        t, h, w = video.shape[:3]
        tokens = sum(x.size for x in rebuilt.ids)
        features = {}
        if self._features is not None and t >= fvd.FRAMES:
            pair = {"fvd_input": video, "fvd_rebuilt": rebuilt.video}
            features = {key: self._features(clip) for key, clip in pair.items()}
        middle = np.concatenate([video[t // 2], rebuilt.video[t // 2]], axis=1)
        return {
            "quality": quality([video], [rebuilt.video], self._networks),
            "levels": len(rebuilt.ids),
            "vocabulary": model.vocabulary,
            "clip": {"frames": t, "height": h, "width": w, "bits": float(tokens * rebuilt.bits)},
            "middle": middle,
            **features,
            **{f"ids_{level}": x.reshape(-1) for level, x in enumerate(rebuilt.ids)},
        }

    def aggregate(self, partials: Mapping[str, Partial]) -> dict[str, Any]:
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

    def pictures(self, partials: Mapping[str, Partial], folder: Path) -> list[Picture]:
        """The middle frame of the first clips beside its reconstruction."""
        found = []
        for number, (name, part) in enumerate(list(partials.items())[:8]):
            path = folder / f"clip_{number:02d}.png"
            Image.fromarray(np.asarray(part["middle"], np.uint8)).save(path)
            psnr = part["quality"]["psnr"]
            found.append(
                Picture(f"pictures/{path.name}", f"{name}: input, reconstruction ({psnr:.2f} dB)")
            )
        return found


def _distance(parts: Sequence[Partial]) -> float | None:
    """Frechet distance of the reconstructions from their inputs; None below two videos."""
    if len(parts) < 2:
        return None
    inputs, rebuilt = (np.stack([p[key] for p in parts]) for key in ("fvd_input", "fvd_rebuilt"))
    return fvd.frechet_distance(inputs, rebuilt)
