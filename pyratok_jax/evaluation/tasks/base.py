"""What several tasks share: features of a tokenizer, and clips compared with reconstructions."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL import Image

from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.models.features import (
    Extractor,
    TokenizerFeatures,
    baseline_features,
)
from pyratok_jax.evaluation.task import ContentT, ModelT, Partial, Picture, Task
from pyratok_jax.metrics.image import Perceptual

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import Tokenizer

# LPIPS backbones by the value of the setting `lpips`.
NETWORKS: dict[str, tuple[str, ...]] = {
    "none": (),
    "vgg": ("vgg",),
    "alex": ("alex",),
    "both": ("vgg", "alex"),
}


@dataclasses.dataclass
class FeatureTask(Task[Extractor, ContentT]):
    """A task on the code embeddings of a tokenizer, frozen."""

    @abc.abstractmethod
    def window(self) -> int:
        """Frames that are encoded together; longer clips are encoded in windows."""

    def wrap(self, tokenizer: "Tokenizer") -> Extractor:
        """Features of a tokenizer."""
        return TokenizerFeatures(tokenizer, self.window())

    def baseline(self, kind: str) -> Extractor:
        """Features of the ground truth, or random ones."""
        return baseline_features(kind)


@dataclasses.dataclass
class QualityTask(Task[ModelT, ContentT]):
    """A task that measures reconstructions; partial results hold pictures as `middle`."""

    pictured: ClassVar[int] = 8  # Clips.

    frames: int = 17
    side: int = 256
    captions: bool = True
    lpips: str = "vgg"

    def __post_init__(self) -> None:
        self._networks: dict[str, Perceptual] = {}

    def check(self) -> None:
        """Refuse unknown networks and impossible sizes."""
        if self.lpips not in NETWORKS:
            raise UserError(f"--set lpips={self.lpips}: expected one of {', '.join(NETWORKS)}")
        if self.frames < 1 or self.side < 0:
            raise UserError(f"--set frames={self.frames}, side={self.side}: too small")

    def prepare(self, model: ModelT) -> None:
        """Load the networks of LPIPS."""
        if NETWORKS[self.lpips]:
            from pyratok_jax.checkpoints.foreign.lpips import load_lpips

            self._networks = {name: load_lpips(name) for name in NETWORKS[self.lpips]}

    @abc.abstractmethod
    def caption(self, name: str, part: Partial) -> str:
        """What the picture of an item shows."""

    def pictures(self, partials: Mapping[str, Partial], folder: Path) -> list[Picture]:
        """The middle frames of the first clips beside their reconstructions."""
        found = []
        for number, (name, part) in enumerate(list(partials.items())[: self.pictured]):
            path = folder / f"clip_{number:02d}.png"
            Image.fromarray(np.asarray(part["middle"], np.uint8)).save(path)
            found.append(Picture(f"pictures/{path.name}", self.caption(name, part)))
        return found


def middle_frames(clips: Sequence[np.ndarray]) -> np.ndarray:
    """The middle frames of clips (t, h, w, 3) of one shape side by side, (h, n w, 3)."""
    return np.concatenate([clip[len(clip) // 2] for clip in clips], axis=1)
