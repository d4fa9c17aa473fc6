"""How the codes of each level are used, at several resolutions of the same clips."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.evaluation.data.clips import central_clip, clip_items
from pyratok_jax.evaluation.models.reconstructors import (
    BaselineReconstructor,
    Reconstructor,
    TokenizerReconstructor,
)
from pyratok_jax.evaluation.task import Item, Metrics, Partial, Picture, Task, parse_numbers
from pyratok_jax.metrics.code_usage import CodeUsage

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import Tokenizer

_SHOWN, _CLIPS = 64, 10  # tokens of a clip and clips in the pictures


@dataclasses.dataclass
class Codebook(Task[Reconstructor, ClipRecord]):
    """Codebook utilisation, perplexity and dead codes of every level against resolution, on one
    set of clips (the same middle frames, resized); pictures of the codes' embeddings.
    """

    name = "codebook"
    data_help = "folder of videos, manifest, shards, or builtin:demo-heldout"
    columns = (("utilisation", "utilisation %", 2),)

    frames: int = 17
    sides: str = "96,144,240"

    def wrap(self, tokenizer: "Tokenizer") -> Reconstructor:
        """The tokenizer with its padding rules."""
        return TokenizerReconstructor(tokenizer)

    def baseline(self, kind: str) -> Reconstructor:
        """`oracle`: every pixel its own code; `random`: noise."""
        return BaselineReconstructor(kind)

    def side_list(self) -> list[int]:
        """The resolutions, short sides in pixels.

        Raises:
            UserError: not a list of whole numbers.
        """
        return parse_numbers(self.sides, "sides", "whole numbers such as 240,480,720", low=8)

    def check(self) -> None:
        """Read the resolutions."""
        self.side_list()

    def items(self) -> list[Item[ClipRecord]]:
        """One item per clip."""
        return clip_items(self.data)

    def evaluate_item(self, model: Reconstructor, item: Item[ClipRecord]) -> Partial:
        """Token ids of one clip at every resolution."""
        partial: Partial = {"vocabulary": model.vocabulary}
        for side in self.side_list():
            video = central_clip(item.content, self.frames, side)
            ids = model.reconstruct(video, item.content.caption).ids
            partial["levels"] = len(ids)
            partial |= {f"ids_{side}_{level}": x.reshape(-1) for level, x in enumerate(ids)}
        for level, values in enumerate(model.embed(ids)):
            partial["caption"] = item.content.caption or item.id
            vectors = values.reshape(-1, values.shape[-1])
            chosen = np.linspace(0, len(vectors) - 1, min(len(vectors), _SHOWN)).round()
            partial[f"vectors_{level}"] = vectors[chosen.astype(int)]
        return partial

    def pictures(self, partials: Mapping[str, Partial], folder: Path) -> list[Picture]:
        """Embedded tokens of the first clips on the two main axes of each level."""
        from pyratok_jax.evaluation.vision.drawing import draw_scatter

        parts = [p for p in partials.values() if "caption" in p][:_CLIPS]
        if not parts:
            return []
        panels = {
            f"level {level + 1}": main_axes([part[f"vectors_{level}"] for part in parts])
            for level in range(parts[0]["levels"])
        }
        side = self.side_list()[-1]
        about = f"token embeddings of each level on their first two principal axes, side {side}"
        names = [part["caption"] for part in parts]
        return [draw_scatter(folder / "embeddings.png", panels, names, about)]

    def aggregate(self, partials: Mapping[str, Partial]) -> Metrics:
        """Usage per resolution and level; the headline is over all of them together."""
        parts = list(partials.values())
        levels, vocabulary = parts[0]["levels"], parts[0]["vocabulary"]
        everything, by_side = CodeUsage(1, vocabulary), {}
        for side in self.side_list():
            usage = CodeUsage(levels, vocabulary)
            for part in parts:
                ids = [part[f"ids_{side}_{level}"] for level in range(levels)]
                usage.add(ids)
                for level in ids:
                    everything.add([level])
            by_side[str(side)] = usage.summary()
        total = everything.summary()[0]
        return {
            "utilisation": 100 * total["utilisation"],
            "perplexity": total["perplexity"],
            "dead": total["dead"],
            "clips": len(parts),
            "by_side": by_side,
        }


def main_axes(groups: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Groups of vectors (n, d) on the first two principal axes of them all: (n, 2) each."""
    everything = np.concatenate(groups).astype(np.float64)
    centre = everything.mean(axis=0)
    _, _, axes = np.linalg.svd(everything - centre, full_matrices=False)
    plane = np.zeros((everything.shape[1], 2))
    plane[:, : len(axes[:2])] = axes[:2].T
    return [(group - centre) @ plane for group in groups]
