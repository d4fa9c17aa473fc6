"""What each loss is worth for what it measures: the shipped tokenizer trained on without it.

    python -m benchmarks.world.terms --output runs/terms.json --workdir runs/terms

Every training starts from `builtin:world` and has all losses of `configs/world.py:continued`, on
videos of the world alone, less what an ablation of `training/ablations/table.py` takes away. All
are measured alike on held-out videos of the world and on the demo's held-out real scenes, which no
training here sees: PSNR, SSIM and LPIPS of what the token ids decode to, how far the features of
the frozen vision network are from the videos' (the retention term's distance), how far the bits of
a level are from those of the level before (the hierarchy term's divergence), and names.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from benchmarks.world.drift import heldout, names_right, parser, take_away
from benchmarks.world.features import Networks
from pyratok_jax.checkpoints.foreign.lpips import load_lpips
from pyratok_jax.checkpoints.pretrained import load_vision
from pyratok_jax.losses.codebook import hierarchy
from pyratok_jax.losses.features import retention
from pyratok_jax.losses.settings import LossSettings
from pyratok_jax.metrics.image import quality
from pyratok_jax.models.dino import Dino
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.tokenizer import Tokenizer, to_model_range

ROWS = "full,no_ssim,no_lpips,no_retention,no_hierarchy"
DECODED = 16  # videos whose pixels are measured


@nnx.jit
def _feature_distance(vision: Dino, video: Array, rebuilt: Array) -> Float[Array, ""]:
    """The retention term of two uint8 videos (t, h, w, 3), over all frames."""
    return retention(vision(to_model_range(video)), vision(to_model_range(rebuilt)))


@nnx.jit
def _divergence(model: PyraTok, video: Array) -> Float[Array, ""]:
    """The hierarchy term of videos, summed over levels, in nats per token."""
    levels = model.encode(to_model_range(video)).levels
    pairs = zip(levels[1:], levels, strict=False)
    tau = LossSettings().temperature
    values = [hierarchy(level.z, before.z, temperature=tau) for level, before in pairs]
    return sum(values[1:], values[0])


class Measures:
    """The networks of the measures, loaded once."""

    def __init__(self) -> None:
        self.lpips = {"vgg": load_lpips("vgg")}
        self.vision = load_vision("builtin:demo-vision")

    def __call__(
        self, tokenizer: Tokenizer, parts: Sequence[UInt8[np.ndarray, "b t h w 3"]]
    ) -> dict[str, float]:
        """Means over the videos of all parts."""
        rows: list[dict[str, float]] = []
        for video in parts:
            rebuilt = tokenizer.decode(tokenizer.encode(video))
            nats = float(_divergence(tokenizer.model, jnp.asarray(video)))
            for true, found in zip(video, rebuilt, strict=True):
                measured = quality([true], [found], lpips=self.lpips)
                apart = float(_feature_distance(self.vision, jnp.asarray(true), jnp.asarray(found)))
                kept = {name: float(measured[name] or 0.0) for name in ("psnr", "ssim", "lpips")}
                rows.append(kept | {"features apart": apart, "hierarchy": nats})
        return {name: round(float(np.mean([row[name] for row in rows])), 5) for name in rows[0]}


def main(argv: Sequence[str] | None = None) -> None:
    """Run all variants of all seeds."""
    args = parser(__doc__.splitlines()[0], ROWS, 60, "runs/terms").parse_args(argv)
    networks, measures, shown = Networks(), Measures(), heldout(DECODED)

    def measure(tokenizer: Tokenizer) -> dict[str, Any]:
        return {
            "films": measures(tokenizer, shown.films),
            "real scenes": measures(tokenizer, shown.scenes),
            "names": names_right(tokenizer, networks, args.cache, shown.videos, shown.names),
        }

    take_away(args, "continued", DECODED, measure)


if __name__ == "__main__":
    main()
