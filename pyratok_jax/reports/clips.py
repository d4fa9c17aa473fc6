"""One clip of a report: the videos that are shown beside each other."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pyratok_jax.reports.pictures import error_map


@dataclasses.dataclass(frozen=True)
class ReportClip:
    """A clip and what became of it; all videos are uint8 (t, h, w, 3) of one shape.

    Attributes:
        name: short, unique within the report.
        caption: the text it was encoded with; None or empty where there was none.
        fps: frames per second.
        original: the input.
        reconstruction: of the trained tokenizer.
        ceiling: of the frozen VAE without quantisation; None leaves it out.
        step0: of the same model before training; None leaves it out.
        token_maps: one video per level (`pictures.token_maps`), cropped like the others.
        levels: what to call each level; "level 1" and so on where empty.
    """

    name: str
    caption: str | None
    fps: float
    original: np.ndarray
    reconstruction: np.ndarray
    ceiling: np.ndarray | None = None
    step0: np.ndarray | None = None
    token_maps: Sequence[np.ndarray] = ()
    levels: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.levels and len(self.levels) != len(self.token_maps):
            raise ValueError(
                f"clip {self.name}: {len(self.levels)} names for {len(self.token_maps)} levels"
            )
        shape = self.original.shape
        for name, video in self.videos().items():
            if video.dtype != np.uint8 or video.shape != shape or len(shape) != 4:
                raise ValueError(
                    f"clip {self.name}: {name} is {video.dtype} {video.shape}; expected uint8 "
                    f"(t, h, w, 3), all of one shape, the original being {shape}"
                )

    def decoded(self) -> dict[str, np.ndarray]:
        """The versions of the clip whose quality is compared, by what they are called."""
        videos = {
            "reconstruction": self.reconstruction,
            "ceiling": self.ceiling,
            "step 0": self.step0,
        }
        return {name: video for name, video in videos.items() if video is not None}

    def level_videos(self) -> dict[str, np.ndarray]:
        """Token maps by the name of their level."""
        names = self.levels or [f"level {i + 1}" for i in range(len(self.token_maps))]
        return dict(zip(names, self.token_maps, strict=True))

    def videos(self) -> dict[str, np.ndarray]:
        """Everything that is shown, in reading order."""
        decoded = self.decoded()
        shown = {"input": self.original, "reconstruction": decoded.pop("reconstruction")}
        if self.original.shape == self.reconstruction.shape:
            shown["error"] = error_map(self.original, self.reconstruction)
        return shown | decoded | self.level_videos()
