"""Ask a trained tokenizer about a clip: `python -m pyratok_jax.ask --help`."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyratok_jax.assets.programs import keep_programs
from pyratok_jax.errors import UserError, run_cli
from pyratok_jax.io import Json
from pyratok_jax.io.atomic import write_json, write_npz
from pyratok_jax.io.cli import add_frozen, command_parser, frozen_options, say
from pyratok_jax.io.mirror import OutputFolder, output_folder
from pyratok_jax.io.remote import any_path, check_writable

if TYPE_CHECKING:
    from pyratok_jax.evaluation.user_clip import ClipQuestions

MODES = ("segment", "find", "question", "attention")
_WHITE = (255, 255, 255)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_parser(
        "pyratok_jax.ask",
        "Ask a trained tokenizer about a clip of your own: where a phrase is (--segment), when a "
        "sentence is true (--find), what a question's answer is (--question with --choices, or "
        "with a --projector in the model's own words), what each level looks at (--attention with "
        "--caption). Several can be asked at once. The clip is encoded without a caption, except "
        "for --attention.",
        examples=["clip.mp4 --checkpoint runs/demo --output out --segment 'a dog'"],
        epilog="Writes result.json, and: segment.mp4 with a coloured mask per phrase, heat.mp4 "
        "with each phrase's similarity and masks.npz; find_N.png with the curve of a sentence's "
        "score and its intervals; attention_LEVEL.mp4 with a heat map for each piece of a word.",
    )
    p.add_argument("clip", help="a video or picture (local or gs://)")
    p.add_argument("--checkpoint", required=True, help="the --workdir of a training")
    p.add_argument("--output", required=True, help="folder to write (local or gs://)")
    add_frozen(p)
    p.add_argument("--segment", action="append", metavar="PHRASE", help='"red ball"; repeatable')
    p.add_argument(
        "--find", action="append", metavar="SENTENCE", help='"the ball moves left"; repeatable'
    )
    p.add_argument("--question", help="with --choices or --projector")
    p.add_argument("--choices", help="the answers to choose from: a,b,c")
    p.add_argument("--attention", type=int, metavar="LEVEL", help="level, from 1; with --caption")
    p.add_argument("--caption", help="what the clip shows, for --attention")
    p.add_argument(
        "--projector",
        default="",
        help="working folder of configs/vqa_projector.py: the language model answers --question, "
        "without --choices in its own words; without it the choices are compared with the clip as "
        "sentences",
    )
    p.add_argument("--frames", type=int, default=97, help="most frames that are read")
    p.add_argument("--fps", type=float, default=0.0, help="frames per second to take; 0: all")
    p.add_argument("--side", type=int, default=256, help="most pixels of the shorter side")
    p.add_argument("--window", type=int, default=17, help="frames encoded together")
    p.add_argument(
        "--level", type=int, default=0,
        help="for --segment, --find and --question, from 1; 0: the first, and for a question all",
    )  # fmt: skip
    p.add_argument(
        "--pooling", choices=("mean", "tokens", "peaks"), default="peaks",
        help="of the tokens that --find and a --question's answers are compared with: peaks find "
        "what is small (default), mean is the paper's; a --projector does not look at it",
    )  # fmt: skip
    p.add_argument(
        "--contrast", action="store_true",
        help="of several --segment or --find: less what a token or frame has in common with all",
    )  # fmt: skip
    p.add_argument("--threshold", type=float, default=0.5, help="share of the similarity's range")
    p.add_argument("--crf-iterations", type=int, default=5, help="for --segment; 0: no field")
    p.add_argument("--smooth", type=int, default=25, help="frames that --find averages over")
    return p


def check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be asked, before anything is loaded.

    Raises:
        UserError: nothing is asked, or something is missing.
    """
    output = any_path(arguments.output)
    if not any(getattr(arguments, mode) is not None for mode in MODES):
        raise UserError("nothing is asked: give --segment, --find, --question or --attention")
    if not any_path(arguments.clip).is_file():
        raise UserError(f"no such file: {arguments.clip}; give a video or picture")
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; give a folder")
    if arguments.question is None and arguments.choices is not None:
        raise UserError("--choices needs the --question that they answer")
    if arguments.question is not None and not (arguments.choices or arguments.projector):
        raise UserError(
            "--question needs --choices a,b,c, or --projector, which answers in its own words"
        )
    if arguments.choices is not None:
        _check_choices(choices_of(arguments))
    if arguments.attention is None and arguments.caption is not None:
        raise UserError(
            "--caption is for --attention, all else is asked of a clip without words; leave it out"
        )
    if arguments.attention is not None and not (arguments.caption or "").strip():
        raise UserError("--attention needs --caption: the words that the level attends to")
    if arguments.attention is not None and arguments.attention < 1:
        raise UserError(f"--attention {arguments.attention}: levels are counted from 1")
    texts = [*(arguments.segment or ()), *(arguments.find or ())]
    if not all(text.strip() for text in texts):
        raise UserError("--segment and --find need words")
    for mode in ("segment", "find"):
        asked = {text.strip() for text in getattr(arguments, mode) or ()}
        if arguments.contrast and len(asked) == 1:
            raise UserError(f"--contrast compares phrases: give --{mode} at least twice")
    if arguments.contrast and not texts:
        raise UserError("--contrast is for --segment and --find")
    for name in ("frames", "window", "smooth"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: expected at least 1")
    for name in ("fps", "side", "level", "crf_iterations"):
        value = getattr(arguments, name)
        if not 0 <= value < math.inf:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {value}: expected a finite number from 0")
    if not math.isfinite(arguments.threshold):
        raise UserError(f"--threshold {arguments.threshold}: expected a finite number")
    check_writable(output, "--output")


def choices_of(arguments: argparse.Namespace) -> list[str]:
    """The answers of `--choices`, without the spaces around them and without empty ones."""
    return [choice.strip() for choice in arguments.choices.split(",") if choice.strip()]


def _check_choices(choices: Sequence[str]) -> None:
    if len(choices) < 2:
        raise UserError(f"--choices has {len(choices)} answers; expected at least 2, as in a,b,c")
    repeated = sorted({choice for choice in choices if choices.count(choice) > 1})
    if repeated:
        raise UserError(
            f"--choices has {', '.join(repeated)} more than once; give each answer once"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parser().parse_args(argv)
    check(arguments)
    keep_programs()
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax.evaluation.user_clip import ClipQuestions, read_user_clip
    from pyratok_jax.tokenizer import load_tokenizer

    clip = read_user_clip(
        arguments.clip, frames=arguments.frames, side=arguments.side, fps=arguments.fps
    )
    if clip.more:
        say(f"note: the first {len(clip.frames)} frames are looked at; --frames takes more")
    tokenizer = load_tokenizer(arguments.checkpoint, **frozen_options(arguments))
    asked = ClipQuestions(tokenizer, clip, arguments.window)
    with output_folder(arguments.output) as output:
        output.folder.mkdir(parents=True, exist_ok=True)
        result: dict[str, Json] = {
            "clip": str(arguments.clip),
            "checkpoint_hash": tokenizer.checkpoint_hash,
            "frames": len(clip.frames),
            "fps": clip.fps,
            "size": list(clip.frames.shape[1:3]),
        }
        if arguments.segment:
            result["segment"] = segment(asked, arguments, output)
        if arguments.find:
            result["find"] = find(asked, arguments, output)
        if arguments.question is not None:
            result["question"] = answer(asked, arguments)
        if arguments.attention is not None:
            result["attention"] = attention(asked, arguments, output)
        write_json(output.folder / "result.json", result)
    say(f"written: {output.place(output.folder / 'result.json')}")
    return 0


def segment(
    asked: "ClipQuestions", arguments: argparse.Namespace, output: OutputFolder
) -> list[dict[str, Json]]:
    """Masks and heat maps of phrases; the share of pixels and the frames that each one has."""
    from pyratok_jax.evaluation.vision.drawing import (
        PALETTE,
        heat_maps,
        overlay_masks,
        tiled,
        titled,
    )
    from pyratok_jax.evaluation.vision.masks import FieldSettings

    phrases = list(dict.fromkeys(phrase.strip() for phrase in arguments.segment))
    settings = FieldSettings(threshold=arguments.threshold, crf_iterations=arguments.crf_iterations)
    found = asked.segment(
        phrases, settings, max(arguments.level - 1, 0), contrast=arguments.contrast
    )
    frames, fps = asked.clip.frames, asked.clip.fps
    colours = {phrase: PALETTE[i % len(PALETTE)] for i, phrase in enumerate(phrases)}
    film = output.folder / "segment.mp4"
    write_film(film, titled(overlay_masks(frames, found.masks), colours), fps)
    panels = [
        titled(heat_maps(frames, values), {phrase: _WHITE})
        for phrase, values in zip(phrases, found.similarity, strict=True)
    ]
    write_film(film.with_name("heat.mp4"), tiled(panels, min(len(panels), 3)), fps)
    masks = {"masks": found.masks, "phrases": np.array(phrases)}
    write_npz(film.with_name("masks.npz"), compress=True, **masks)
    say(f"written: {output.place(film)}, heat.mp4, masks.npz")
    return [
        {
            "phrase": phrase,
            "share_of_pixels": float(mask.mean()),
            "frames": np.flatnonzero(mask.any(axis=(1, 2))).tolist(),
            "similarity_inside": float(values[mask].mean()) if mask.any() else None,
            "similarity_outside": float(values[~mask].mean()) if not mask.all() else None,
        }
        for phrase, mask, values in zip(phrases, found.masks, found.similarity, strict=True)
    ]


def find(
    asked: "ClipQuestions", arguments: argparse.Namespace, output: OutputFolder
) -> list[dict[str, Json]]:
    """Intervals of sentences in seconds, best first, and the picture of each one's curve."""
    from pyratok_jax.evaluation.vision.drawing import draw_curve
    from pyratok_jax.evaluation.vision.temporal_detection import ProposalSettings

    settings = ProposalSettings(window_frames=arguments.smooth, threshold=arguments.threshold)
    fps, rows = asked.clip.fps, []
    moments = asked.find(
        arguments.find, settings, max(arguments.level - 1, 0),
        pooling=arguments.pooling, contrast=arguments.contrast,
    )  # fmt: skip
    for number, (sentence, found) in enumerate(zip(arguments.find, moments, strict=True), 1):
        spans = [(run.first / fps, run.end / fps) for run in found.runs]
        picture = output.folder / f"find_{number}.png"
        draw_curve(picture, found.scores, spans, fps, sentence)
        intervals = [
            {"start": start, "end": end, "score": run.score}
            for (start, end), run in zip(spans, found.runs, strict=True)
        ]
        scores = [round(float(x), 5) for x in found.scores]
        rows.append({"sentence": sentence, "intervals": intervals, "scores": scores})
        best = f"{spans[0][0]:.2f} to {spans[0][1]:.2f} s" if spans else "nowhere"
        say(f"{sentence}: {best}; written: {output.place(picture)}")
    return rows


def answer(asked: "ClipQuestions", arguments: argparse.Namespace) -> dict[str, Json]:
    """The choice, and every choice's score; without choices what the language model writes."""
    if arguments.choices is None:
        written = asked.write(arguments.question, arguments.projector)
        say(f"-> {written}")
        return {"question": arguments.question, "answer": written, "method": "written"}
    choices = choices_of(arguments)
    found = asked.choose(
        arguments.question, choices, arguments.projector, pooling=arguments.pooling,
        level=arguments.level - 1 if arguments.level else None,
    )  # fmt: skip
    for choice, score in zip(choices, found.scores, strict=True):
        say(f"{'->' if choice == choices[found.option] else '  '} {choice}: {score:.4f}")
    return {
        "question": arguments.question,
        "answer": choices[found.option],
        "scores": dict(zip(choices, found.scores, strict=True)),
        "method": found.method,
    }


def attention(
    asked: "ClipQuestions", arguments: argparse.Namespace, output: OutputFolder
) -> dict[str, Json]:
    """A video of attention maps, a panel per piece of a word; the mean weight of each piece."""
    from pyratok_jax.evaluation.vision.drawing import heat_maps, tiled, titled

    pieces, maps = asked.attention(arguments.caption, arguments.attention - 1)
    panels = [
        titled(heat_maps(asked.clip.frames, weights), {piece or "(start)": _WHITE})
        for piece, weights in zip(pieces, maps, strict=True)
    ]
    path = output.folder / f"attention_{arguments.attention}.mp4"
    write_film(path, tiled(panels, min(len(panels), 4)), asked.clip.fps)
    say(f"written: {output.place(path)}")
    weights = [float(x.mean()) for x in maps]
    return {"level": arguments.attention, "pieces": pieces, "mean_weights": weights}


def write_film(path: Path, frames: np.ndarray, fps: float) -> None:
    """Frames (t, h, w, 3) as an mp4."""
    from pyratok_jax.data.video.writer import VideoWriter

    with VideoWriter(path, fps=fps) as writer:
        for frame in frames:
            writer.write(np.ascontiguousarray(frame))


if __name__ == "__main__":
    run_cli(main)
