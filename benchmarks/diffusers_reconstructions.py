"""What a VAE of diffusers makes of the clips that `evaluate --task reconstruction` takes.

    python benchmarks/diffusers_reconstructions.py --weights FOLDER --data DATA --output DIR

FOLDER is a diffusers folder of a VAE (config.json and weights). Each clip is padded by repeating
its last frame and its edges up to what the VAE takes, encoded to the posterior's mean, decoded,
cropped, clamped, rounded to 8 bits, and written as DIR/ID.npy, which
`evaluate --reconstructions DIR` scores.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyratok_jax.data.padding import ClipSizes
from pyratok_jax.errors import UserError, run_cli
from pyratok_jax.evaluation.data.clips import central_clip, clip_items, tokenbench_clip
from weights_conversion.vae.converting import CONVERTERS

# Classes that no converter knows by another name: frames of a step, pixels of a latent position.
WAN = ("AutoencoderKLWan", "AutoencoderKLQwenImage")
# diffusers decodes 4n frames of an even number n of latents: only 8k + 1 frames return whole.
STEPS = {"AutoencoderKLCogVideoX": 8}


class Wan:
    """Wan's classes by the interface of `weights_conversion.vae` converters."""

    @staticmethod
    def encode(model: Any, video: torch.Tensor) -> torch.Tensor:
        """Mean and log-variance side by side, of a video (b, 3, t, h, w) in [-1, 1]."""
        return model.encode(video).latent_dist.parameters

    @staticmethod
    def decode(model: Any, z: torch.Tensor) -> torch.Tensor:
        """Video of latents."""
        return model.decode(z).sample


def load(folder: Path, device: str) -> tuple[Any, Any, ClipSizes]:
    """A VAE in float32, how to call it, and the sizes that it takes.

    Raises:
        UserError: no such folder, or a class that is not known here.
    """
    import diffusers

    try:
        name = json.loads((folder / "config.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--weights {folder}: no config.json with a _class_name") from error
    known = {cls: each for each in CONVERTERS.values() for cls in each.class_names}
    if name not in known and name not in WAN:
        raise UserError(f"--weights {folder}: {name} is not one of {', '.join((*WAN, *known))}")
    cls = name if name in WAN else known[name].class_names[0]
    model = getattr(diffusers, cls).from_pretrained(folder, torch_dtype=torch.float32)
    model = model.eval().to(device)
    if name in WAN:
        return model, Wan, ClipSizes(4, model.config.get("scale_factor_spatial") or 8)
    converter = known[name]
    config = converter.from_diffusers(dict(model.config))
    step = STEPS.get(name, config.frame_step)
    return model, converter, ClipSizes(step, config.spatial_factor)


@torch.no_grad()
def reconstruct(model: Any, calls: Any, sizes: ClipSizes, video: np.ndarray) -> np.ndarray:
    """A clip uint8 (t, h, w, 3) encoded and decoded."""
    padded, padding = sizes.pad(video)
    pixels = torch.from_numpy(padded).to(model.device).float().permute(3, 0, 1, 2)[None]
    mean = calls.encode(model, pixels / 127.5 - 1).chunk(2, dim=1)[0]
    decoded = calls.decode(model, mean)[0].permute(1, 2, 3, 0).clamp(-1, 1)
    return padding.crop(((decoded + 1) * 127.5).round().to(torch.uint8).cpu().numpy())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--weights", required=True, type=Path, help="diffusers folder of a VAE")
    p.add_argument("--data", required=True, help="as for evaluate")
    p.add_argument("--output", required=True, type=Path, help="folder for the arrays")
    p.add_argument("--frames", type=int, default=17)
    p.add_argument("--side", type=int, default=256)
    p.add_argument("--protocol", choices=["tokenbench"], help="as for evaluate")
    p.add_argument("--window", type=int, default=0, help="frames encoded together; 0: all")
    p.add_argument("--limit", type=int, default=0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Reconstruct every clip that has no file yet."""
    options = parser().parse_args(arguments)
    model, calls, sizes = load(options.weights, options.device)
    window = options.window or (17 if options.protocol else 0)
    if window:
        window = ClipSizes(sizes.temporal_factor, 1).padding(window, 1, 1).padded_frames
    items = clip_items(options.data)
    for item in items[: options.limit or None]:
        file = options.output / f"{item.id.lstrip('/')}.npy"
        if file.exists():
            continue
        record = item.content
        video = (
            tokenbench_clip(record)
            if options.protocol
            else central_clip(record, options.frames, options.side)
        )
        step = window or len(video)
        parts = [
            reconstruct(model, calls, sizes, video[start : start + step])
            for start in range(0, len(video), step)
        ]
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part")
        with partial.open("wb") as stream:
            np.save(stream, np.concatenate(parts))
        partial.replace(file)
        print(f"written: {file}")
    return 0


if __name__ == "__main__":
    run_cli(main)
