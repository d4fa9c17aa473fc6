"""The pictures of the README: a held-out clip and what its tokens hold, films from text, masks.

    python -m benchmarks.world.pictures --checkpoint runs/demo --samples samples --output docs
    python -m benchmarks.world.pictures --segmented 0,8,14,24 --output docs

`overview.png`: a frame of a held-out real scene, the same decoded from its tokens, the tokens of
each level in colours. `generated.webp`: films of an output folder of `generate` with their prompts.
`world_masks.webp`: held-out videos of the world, and the mask of each phrase by `builtin:world`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

import pyratok_jax as pt
from pyratok_jax.data.config import data_config
from pyratok_jax.data.heldout import heldout_clips
from pyratok_jax.data.video.files import iter_frames
from pyratok_jax.data.world.films import world_film
from pyratok_jax.data.world.vocabulary import COLOURS, SEEN_SHAPES
from pyratok_jax.evaluation.user_clip import ClipQuestions, UserClip
from pyratok_jax.evaluation.vision.drawing import PALETTE, overlay_masks, tiled, titled
from pyratok_jax.evaluation.vision.masks import FieldSettings
from pyratok_jax.models.pyratok.lfq import ids_to_bits
from pyratok_jax.reports.pictures import token_maps
from pyratok_jax.tokenizer import Tokenizer

WHITE = (255, 255, 255)


def larger(frames: UInt8[np.ndarray, "t h w 3"], times: int) -> UInt8[np.ndarray, "t H W 3"]:
    """Every pixel as a square of `times` pixels."""
    return frames.repeat(times, axis=1).repeat(times, axis=2)


def overview(checkpoint: str, scene: int, frame: int) -> Image.Image:
    """One frame of a held-out scene: input, decoded, and the tokens of each level."""
    tokenizer = pt.load_tokenizer(checkpoint)
    data = data_config(heldout=("builtin:demo-heldout",))
    clip = heldout_clips(data, ("17x96x96",), scene + 1)[scene]
    tokens = tokenizer.encode(clip.video, clip.caption)
    rebuilt = tokenizer.decode(tokens)
    codes = [np.asarray(ids_to_bits(jnp.asarray(ids), tokenizer.config.bits)) for ids in tokens.ids]
    maps = token_maps(codes, *clip.video.shape[:3])
    columns = {"input": clip.video, "from the tokens": rebuilt}
    columns |= {f"level {n}": one for n, one in enumerate(maps, start=1)}
    panels = [titled(larger(np.asarray(one[frame : frame + 1]), 2), {name: WHITE})
              for name, one in columns.items()]  # fmt: skip
    return Image.fromarray(tiled(panels, len(panels))[0])


def save_film(path: Path, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
    """Frames as a picture that moves."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=150, loop=0, quality=80, method=6)


def films(samples: Path, columns: int) -> UInt8[np.ndarray, "t h w 3"]:
    """The films of a folder of `generate`, tiled."""
    rows = [json.loads(line) for line in (samples / "samples.jsonl").read_text().splitlines()]
    panels = []
    for row in rows:
        frames = np.stack(list(iter_frames(samples / row["file"])))
        panels.append(titled(larger(frames, 2), {row["prompt"][:24]: WHITE}))
    return np.asarray(tiled(panels, columns))


def segmented(tokenizer: Tokenizer, film: int) -> UInt8[np.ndarray, "t H W 3"]:
    """A held-out video above itself with a mask for the name of each of its things."""
    drawn = world_film("world-heldout", film)
    video = drawn.draw(17, 64, 64)
    things = dict.fromkeys(thing.name for thing in drawn.scene.things)
    others = [f"{colour} {shape}" for colour, shape in zip(COLOURS, SEEN_SHAPES, strict=True)]
    asked = ClipQuestions(tokenizer, UserClip(video, 10.0, False), 9)
    # Contrast is with names of every colour and shape; masks are of this video's.
    phrases = [*things, *(name for name in others if name not in things)]
    found = asked.segment(phrases, FieldSettings(), contrast=True)
    colours = {name: PALETTE[n % len(PALETTE)] for n, name in enumerate(things)}
    masked = overlay_masks(video, found.masks[: len(things)])
    return np.concatenate([larger(video, 3), titled(larger(masked, 3), colours)], axis=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="of the demo, for overview.png")
    parser.add_argument("--scene", type=int, default=0, help="held-out scene of the overview")
    parser.add_argument("--frame", type=int, default=8, help="its frame")
    parser.add_argument("--samples", type=Path, help="folder of generate, for generated.webp")
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--segmented", help="numbers of held-out films, for world_masks.webp")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    if arguments.checkpoint:
        picture = overview(arguments.checkpoint, arguments.scene, arguments.frame)
        picture.save(arguments.output / "overview.png")
    if arguments.segmented:
        tokenizer = pt.load_tokenizer("builtin:world")
        numbers = map(int, arguments.segmented.split(","))
        panels = [segmented(tokenizer, number) for number in numbers]
        tallest = max(panel.shape[1] for panel in panels)
        filled = [
            np.pad(panel, ((0, 0), (0, tallest - panel.shape[1]), (0, 0), (0, 0)))
            for panel in panels
        ]
        save_film(arguments.output / "world_masks.webp", tiled(filled, len(filled)))
    if arguments.samples:
        save_film(arguments.output / "generated.webp", films(arguments.samples, arguments.columns))


if __name__ == "__main__":
    main()
