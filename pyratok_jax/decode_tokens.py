"""Tokens back to video: `python -m pyratok_jax.decode_tokens --help`."""

import argparse
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from pyratok_jax.assets.programs import keep_programs
from pyratok_jax.errors import EXIT_PARTIAL, UserError, run_cli, short
from pyratok_jax.io.cli import add_frozen, add_no_verify, command_parser, frozen_options
from pyratok_jax.io.mirror import output_folder
from pyratok_jax.io.progress import PlainConsole, progress_bar
from pyratok_jax.io.remote import AnyPath, any_path, check_writable, is_remote

if TYPE_CHECKING:
    from pyratok_jax.tokens.decoding import Outcome, Selection

_MOST_NAMED = 50  # Videos without the frames that were asked for.


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_parser(
        "pyratok_jax.decode_tokens",
        "Decode a dataset of tokens, or one of its shards, to videos. What is damaged "
        f"is named and left black; the exit code is {EXIT_PARTIAL} then.",
        examples=["--checkpoint runs/demo --input tokens --output videos"],
    )
    p.add_argument("--checkpoint", required=True, help="working folder of the tokenizer")
    p.add_argument("--input", required=True, help="folder of a dataset, or a shard")
    p.add_argument("--output", required=True, help="folder for the videos (local or gs://)")
    p.add_argument("--ids", nargs="+", default=[], help="only these videos")
    p.add_argument("--frames", default=":", help="only frames FIRST:END of every video")
    p.add_argument("--png", action="store_true", help="numbered PNG files instead of mp4")
    p.add_argument("--crf", type=int, default=12, help="quality of the mp4, 0 (best) to 51")
    p.add_argument(
        "--spatial", type=int, default=1, help="devices of this host that share a frame's height"
    )
    p.add_argument(
        "--force", action="store_true", help="decode tokens of another checkpoint or schema"
    )
    add_frozen(p)
    add_no_verify(p)
    return p


def _total(path: str, selection: "Selection") -> int | None:
    """Frames to write, where the dataset's card tells."""
    from pyratok_jax.tokens.dataset import TokenDataset

    try:
        card = TokenDataset(path).card
    except UserError:
        return None
    whole = not selection.ids and selection.first == 0 and selection.stop is None
    frames = card.get("frames")
    return frames if whole and isinstance(frames, int) and 0 <= frames < 1 << 53 else None


def report(outcome: "Outcome", selection: "Selection", output: AnyPath, console: Console) -> int:
    """Say what was written and what is wrong: the exit code.

    Raises:
        UserError: ids that the input does not hold, or no video with frames that were asked for.
    """
    for message in outcome.bad:
        console.print(f"damaged: {message}", soft_wrap=True, markup=False)
    unknown, first = sorted(selection.ids - outcome.seen), selection.first
    if outcome.ended and not outcome.videos and not unknown:
        raise UserError(
            f"--frames: no video has a frame {first}, nothing is written; the longest has "
            f"{max(outcome.ended.values())} frames, counted from 0"
        )
    for video, frames in list(outcome.ended.items())[:_MOST_NAMED]:
        note = f"{short(video)} has {frames} frames, none from {first} on; it is left out"
        console.print(f"note: {note}", soft_wrap=True, markup=False)
    if len(outcome.ended) > _MOST_NAMED:
        console.print(f"note: so are {len(outcome.ended) - _MOST_NAMED} more videos")
    console.print(f"decoded {len(outcome.videos)} videos, {outcome.frames} frames")
    if outcome.videos:
        console.print(f"videos: {output}", soft_wrap=True)
    if unknown:
        raise UserError(f"the input holds no {', '.join(unknown)} (--ids)")
    return EXIT_PARTIAL if outcome.bad else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments, console = parser().parse_args(argv), PlainConsole()
    output = any_path(arguments.output)
    if output.exists() and (is_remote(output) or not output.is_dir()):
        found = "exists already; give another" if is_remote(output) else "is a file; give a folder"
        raise UserError(f"--output {output} {found}")
    check_writable(output, "--output")
    keep_programs()
    if not 0 <= arguments.crf <= 51:
        raise UserError(f"--crf {arguments.crf} is not within 0 .. 51")
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax.tokenizer import load_tokenizer, local_devices
    from pyratok_jax.tokens.dataset import read_all
    from pyratok_jax.tokens.decoding import Selection, decode_all, parse_frames

    selection = Selection(frozenset(arguments.ids), *parse_frames(arguments.frames))
    items = read_all(arguments.input, any_schema=arguments.force)
    tokenizer = load_tokenizer(arguments.checkpoint, **frozen_options(arguments))
    if arguments.spatial != 1:
        tokenizer = tokenizer.split_rows(local_devices(arguments.spatial))
    with contextlib.ExitStack() as stack:
        # Uploaded before it is said to be there.
        folder = stack.enter_context(output_folder(output)).folder
        bar = stack.enter_context(progress_bar(console))
        task = bar.add_task("frames", total=_total(arguments.input, selection))
        outcome = decode_all(
            items,
            tokenizer,
            folder,
            selection,
            crf=None if arguments.png else arguments.crf,
            force=arguments.force,
            advance=lambda frames: bar.advance(task, frames),
        )
    return report(outcome, selection, output, console)


if __name__ == "__main__":
    run_cli(main)
