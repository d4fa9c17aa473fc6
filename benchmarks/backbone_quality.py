"""How the demo's frozen backbone rebuilds what it never saw, beside a linear code. Prints JSON.

    python benchmarks/backbone_quality.py

Held-out clips are the middle 17 frames, centre square, 96x96 (bicubic). The linear codes have 16
and 48 principal components of 4x8x8 blocks (8x8 of the first frame), fitted to the demo's training
scenes; the backbone's latent has 48 channels.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from pyratok_jax.checkpoints.partition import build_module
from pyratok_jax.checkpoints.pretrained import DEMO_BACKBONE, load_backbone, read_weights
from pyratok_jax.data.sources.builtin import demo_clips, demo_records
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.files import iter_frames, probe
from pyratok_jax.data.world.films import world_film
from pyratok_jax.demo.backbone_training import principal_components
from pyratok_jax.metrics.image import frame_errors, lpips_frames, psnr_of, ssim_frames
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.linear import from_blocks, to_blocks
from pyratok_jax.models.wan_vae.model import WanVAE

FRAMES, SIDE = 17, 96
Video = UInt8[np.ndarray, "t h w 3"]
# Rows turn RGB into Cb and Cr: ITU-R BT.601, full range.
_CHROMA = np.array([[-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def middle_clip(record: ClipRecord, frames: int = FRAMES, side: int = SIDE) -> Video:
    """The middle frames of a record's span, centre square, resized."""
    from PIL import Image

    info = probe(record.media)
    first, end = round((record.start or 0.0) * info.fps), round((record.end or 0.0) * info.fps)
    first = first + (min(end, info.frames) - first - frames) // 2
    pictures = []
    for frame in iter_frames(str(record.media), first, first + frames):
        picture = Image.fromarray(frame)
        edge = min(picture.size)
        left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
        box = (left, top, left + edge, top + edge)
        small = picture.resize((side, side), Image.Resampling.BICUBIC, box)
        pictures.append(np.asarray(small))
    return np.stack(pictures)


def heldout_videos() -> dict[str, Video]:
    """The three held-out clips by name."""
    return {record.id: middle_clip(record) for record in demo_records("heldout")}


def rebuild(vae: WanVAE, video: UInt8[np.ndarray, "b t h w 3"]) -> UInt8[np.ndarray, "b t h w 3"]:
    """Videos as they come back from the mean of the posterior, rounded."""
    return to_pixels(_rebuild(vae, to_floats(video)))


@nnx.jit
def _rebuild(vae: WanVAE, x: jax.Array) -> jax.Array:
    return vae.decode(vae.encode(x).mean)


def to_floats(video: np.ndarray) -> np.ndarray:
    """Bytes as [-1, 1]."""
    return video.astype(np.float32) / 127.5 - 1


def to_pixels(video: Any) -> np.ndarray:
    """[-1, 1] as bytes."""
    return np.clip(np.rint((np.asarray(video) + 1) * 127.5), 0, 255).astype(np.uint8)


def psnr(a: Video, b: Video) -> float:
    """Mean over frames of the frames' PSNR in dB."""
    return float(np.mean(psnr_of(frame_errors(a, b))))


def chroma_slopes(before: Video, after: Video) -> tuple[float, float]:
    """Slopes of Cb and Cr after, regressed on those before."""
    x, y = (v.reshape(-1, 3).astype(np.float64) @ _CHROMA.T for v in (before, after))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    cb, cr = (x * y).sum(axis=0) / (x * x).sum(axis=0)
    return float(cb), float(cr)


def flat_colour_errors(vae: WanVAE, steps: int = 4) -> dict[str, float]:
    """Largest errors, of 255, in flat clips over a grid of the RGB cube.

    Those of a frame's mean colour, and those that 99 % of a clip's values keep. Clips are as large
    as the held-out ones, so that nothing is compiled again.
    """
    levels = np.linspace(0, 255, steps).round().astype(np.uint8)
    means, values = [], []
    for colour in np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3):
        video = np.broadcast_to(colour, (1, FRAMES, SIDE, SIDE, 3))
        errors = rebuild(vae, video)[0].astype(np.float64) - colour
        means.append(np.abs(errors.mean(axis=(1, 2))).max())
        values.append(np.percentile(np.abs(errors), 99))
    return {"mean of a frame": float(max(means)), "99 % of a clip": float(max(values))}


def world_videos(count: int = 16) -> list[Video]:
    """Held-out videos of the world."""
    return [world_film("world-heldout", i).draw(FRAMES, SIDE, SIDE) for i in range(count)]


def linear_code(clips: UInt8[np.ndarray, "b t h w 3"], components: int = 16):
    """The function that rebuilds a video from principal components of blocks of `clips`."""
    parts = {1: to_floats(clips[:, :1]), 4: to_floats(clips[:, 1:])}
    found = {t: principal_components([x], components, t, 8) for t, x in parts.items()}

    def back(video: np.ndarray, time: int) -> np.ndarray:
        code = found[time]
        blocks = np.asarray(to_blocks(to_floats(video)[None], time, 8)) - code.mean
        blocks = blocks @ code.vectors @ code.vectors.T + code.mean
        return to_pixels(from_blocks(blocks, time, 8))[0]

    return lambda video: np.concatenate([back(video[:1], 1), back(video[1:], 4)])


def measure(vae: WanVAE, *, lpips: bool = True) -> dict[str, Any]:
    """All figures of the model card."""
    network = None
    if lpips:
        from pyratok_jax.checkpoints.foreign.lpips import load_lpips

        network = load_lpips("vgg")
    seen = demo_clips(None, 750, FRAMES, 64, 1)[::4]
    codes = {n: linear_code(seen, n) for n in (16, vae.config.z_dim)}
    clips = {}
    for name, video in heldout_videos().items():
        after = rebuild(vae, video[None])[0]
        cb, cr = chroma_slopes(video, after)
        clips[name] = {
            "psnr": psnr(video, after),
            **{f"psnr_linear_{n}": psnr(video, code(video)) for n, code in codes.items()},
            "ssim": float(np.mean(ssim_frames(video, after))),
            "slope_cb": cb,
            "slope_cr": cr,
        }
        if network is not None:
            clips[name]["lpips_vgg"] = float(np.mean(lpips_frames(video, after, network)))
    world = [(video, rebuild(vae, video[None])[0]) for video in world_videos()]
    return {
        "clips": clips,
        "mean": {key: float(np.mean([c[key] for c in clips.values()])) for key in clips[name]},
        "flat_colour_errors": flat_colour_errors(vae),
        "world_psnr": float(np.mean([psnr(before, after) for before, after in world])),
        "parameters": sum(x.size for x in jax.tree.leaves(nnx.state(vae, nnx.Param))),
    }


def load(path: str | None) -> WanVAE:
    """The shipped VAE, or that of a weights file which training wrote."""
    if path is None:
        backbone = load_backbone(DEMO_BACKBONE)
        config, arrays = backbone.config, backbone.arrays
    else:
        sizes, arrays = read_weights(Path(path))
        config = WanVAEConfig.from_dict(sizes)
    return build_module(lambda: WanVAE(config, rngs=nnx.Rngs(0)), arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", help="a .safetensors of training; the shipped ones if absent")
    parser.add_argument("--no-lpips", action="store_true", help="leave LPIPS out")
    arguments = parser.parse_args()
    print(json.dumps(measure(load(arguments.weights), lpips=not arguments.no_lpips), indent=1))


if __name__ == "__main__":
    main()
