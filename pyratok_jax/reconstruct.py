"""Encode and decode videos with a trained tokenizer: `python -m pyratok_jax.reconstruct --help`."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pyratok_jax import __version__
from pyratok_jax.assets.programs import keep_programs
from pyratok_jax.data.video.files import BrokenVideoError, probe
from pyratok_jax.errors import EXIT_PARTIAL, UserError, run_cli
from pyratok_jax.io import Json
from pyratok_jax.io.atomic import write_json
from pyratok_jax.io.cli import add_frozen, add_no_verify, command_parser, frozen_options
from pyratok_jax.io.mirror import OutputFolder, output_folder
from pyratok_jax.io.progress import PlainConsole, progress_bar
from pyratok_jax.io.remote import AnyPath, any_path, check_writable, is_remote

if TYPE_CHECKING:
    from pyratok_jax.metrics.image import Perceptual
    from pyratok_jax.reconstruction import Job, Reconstructor

# Of the demo's VAE: 24 frames of 1280x720 in windows of 17 took 12 GB.
_GB_PER_PIXEL = 12 / (17 * 1280 * 720)
_LPIPS = {"vgg": ("vgg",), "alex": ("alex",), "both": ("vgg", "alex"), "none": ()}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_parser(
        "pyratok_jax.reconstruct",
        "Tokenise videos and decode the tokens again. Writes NAME_reconstruction.mp4, "
        "NAME_side_by_side.mp4 (input, reconstruction, error; .png for pictures) and metrics.json "
        "with PSNR, SSIM, LPIPS, bits per pixel and code usage.",
        examples=["--checkpoint runs/demo --input clip.mp4 --output out --short-side 128"],
        epilog=f"Exit code: 0 all done; 2 nothing could be done; {EXIT_PARTIAL} some inputs of a "
        "folder could not be read and were skipped (they are listed in metrics.json).",
    )
    p.add_argument("--checkpoint", required=True, help="the --workdir of a training")
    p.add_argument(
        "--input",
        required=True,
        help="a video or picture or a folder of them (with captions from NAME.txt or NAME.json), "
        "or builtin:demo-heldout",
    )
    p.add_argument("--output", required=True, help="folder for the results (local or gs://)")
    p.add_argument(
        "--caption", help="text to encode with, for all inputs; '': no text; None: their own"
    )
    p.add_argument(
        "--window",
        type=int,
        help="frames encoded together, a multiple of the VAE's frame step and one: longer ones "
        "need fewer bits and more memory; None: 17, or the next number that the VAE takes",
    )
    p.add_argument(
        "--tile", type=int, metavar="PIXELS",
        help="side of square tiles that are encoded alone, for frames too large for memory; 0: "
        "whole frames; None: 512 where a window has more than 6 million pixels, else whole frames",
    )  # fmt: skip
    p.add_argument("--overlap", type=int, help="pixels that tiles of --tile share; None: 64")
    p.add_argument(
        "--stream-beyond",
        type=int,
        metavar="FRAMES",
        help="videos of more frames are one clip (with --tile: one for each tile) without seams in "
        "time, walked in segments of --window frames; None: every window is a clip of its own, as "
        "in exported tokens",
    )
    p.add_argument(
        "--resize",
        type=_size,
        metavar="HxW",
        help="resize frames as the released PyraTok does (256x512): bilinear without antialiasing, "
        "aspect not kept, turned where a frame is not wider than high; quality is then measured "
        "against the resized frames",
    )
    p.add_argument(
        "--lpips", choices=sorted(_LPIPS), default="vgg", help="networks; the slowest measure"
    )
    p.add_argument(
        "--lpips-every", type=int, default=4, metavar="N",
        help="measure LPIPS on frame 0 and every Nth after it; 1: on all",
    )  # fmt: skip
    p.add_argument("--short-side", type=int, default=0, help="shrink the shorter side to; 0: keep")
    p.add_argument("--fps", type=float, default=0.0, help="frames per second to keep; 0: all")
    p.add_argument("--crf", type=int, default=12, help="H.264 quality of the files, 0 (best) to 51")
    add_frozen(p)
    add_no_verify(p)
    return p


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) * int(width)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected HEIGHTxWIDTH, as in 256x512")
    return int(height), int(width)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments, console = parser().parse_args(argv), PlainConsole()
    output = any_path(arguments.output)
    _check_output(output)
    if not 0 <= arguments.crf <= 51:
        raise UserError(f"--crf {arguments.crf} must lie within 0 (best) and 51")
    if arguments.lpips_every < 1 or arguments.short_side < 0 or not 0 <= arguments.fps < 1e6:
        raise UserError("--lpips-every must be at least 1, --short-side and --fps at least 0")
    if arguments.stream_beyond is not None and arguments.stream_beyond < 0:
        raise UserError(f"--stream-beyond {arguments.stream_beyond}: expected frames, from 0")
    if arguments.overlap is not None and arguments.tile is None:
        raise UserError("--overlap goes with --tile; give both, or neither")
    keep_programs()
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax.reconstruction import TILES, Reconstructor, Tiling, find_jobs
    from pyratok_jax.tokenizer import load_tokenizer

    tiling = None
    if arguments.tile is not None:
        overlap = TILES.overlap if arguments.overlap is None else arguments.overlap
        tiling = Tiling(arguments.tile, overlap)
        tiling.check()
    jobs = find_jobs(arguments.input, output)
    lengths, sizes, skipped = _probe_all(jobs, arguments.fps)
    if not any(lengths):
        raise skipped[0] if len(jobs) == 1 else _none_readable(arguments.input, skipped)
    with console.status("loading the tokenizer"):
        tokenizer = load_tokenizer(arguments.checkpoint, **frozen_options(arguments))
        lpips = _load_lpips(arguments.lpips, console)
    if arguments.caption and tokenizer.text is None:
        _say(console, "note: this tokenizer has no language model, the caption is not used")
    reconstructor = Reconstructor(
        tokenizer,
        window=arguments.window,
        lpips=lpips,
        crf=arguments.crf,
        stream_beyond=arguments.stream_beyond,
        resize=arguments.resize,
        lpips_every=arguments.lpips_every,
        fps=arguments.fps,
        short_side=arguments.short_side,
        tiling=tiling,
    )
    largest = arguments.resize or _largest(sizes, arguments.short_side)
    _say_memory(reconstructor, largest, console)
    todo = [(job, frames) for job, frames in zip(jobs, lengths, strict=True) if frames]
    with output_folder(output) as local:
        videos = _run_all(reconstructor, todo, local, arguments, skipped, console)
    if not videos:
        raise skipped[0] if len(jobs) == 1 else _none_readable(arguments.input, skipped)
    _finish(videos, skipped, output, console)
    return EXIT_PARTIAL if skipped else 0


def _check_output(output: AnyPath) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; give a folder")
    if is_remote(output):
        check_writable(output, "--output")
        return
    output = Path(output)
    for parent in output.absolute().parents:
        if parent.exists():
            if not parent.is_dir() or not os.access(parent, os.W_OK):
                raise UserError(f"--output {output} cannot be made: {parent} is not writable")
            return


def _largest(sizes: Sequence[tuple[int, int]], short_side: int) -> tuple[int, int]:
    """(height, width) of the largest frames as they are encoded."""
    height, width = max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
    if short_side and min(height, width) > short_side:
        scale = short_side / min(height, width)
        return round(height * scale), round(width * scale)
    return height, width


def _say_memory(reconstructor: "Reconstructor", size: tuple[int, int], console: Console) -> None:
    """Say so where windows are cut into tiles, or where memory may not hold them."""
    from pyratok_jax.reconstruction import LARGE

    (height, width), window = size, reconstructor.window
    side, overlap = reconstructor.tiling(height, width)
    if window * height * width <= LARGE:
        return
    if side:
        note = (
            f"frames of {width}x{height} are encoded in tiles of {side} that share {overlap} "
            "pixels (export_tokens needs to be told --tile and --overlap); --tile 0: whole"
        )
    else:
        note = (
            f"windows of {window} frames of {width}x{height} need about "
            f"{window * height * width * _GB_PER_PIXEL:.0f} GB of memory, more with a larger VAE; "
            "--short-side 256, --tile 512 or a smaller --window need less"
        )
    _say(console, f"note: {note}")


def _probe_all(
    jobs: Sequence["Job"], fps: float
) -> tuple[list[int], list[tuple[int, int]], list[BrokenVideoError]]:
    """Frames of each input (0 for unreadable ones), sizes, and what is wrong with those."""
    lengths, sizes, broken = [], [], []
    for job in jobs:
        try:
            info = probe(job.record.media)
        except BrokenVideoError as error:
            broken.append(error)
            lengths.append(0)
            continue
        seconds = job.record.span if job.record.end is not None else None
        frames = info.frames if seconds is None else round(seconds * info.fps)
        lengths.append(max(round(frames * min(1.0, fps / info.fps if fps else 1.0)), 1))
        sizes.append((info.height, info.width))
    return lengths, sizes, broken


def _none_readable(spec: str, skipped: Sequence[BrokenVideoError]) -> UserError:
    return UserError(
        f"none of the {len(skipped)} files in --input {spec} can be read; the first is "
        f"{skipped[0].path}: {skipped[0].reason}; give playable videos or images"
    )


def _load_lpips(choice: str, console: Console) -> dict[str, "Perceptual"]:
    from pyratok_jax.checkpoints.foreign.lpips import load_lpips

    networks: dict[str, Perceptual] = {}
    for name in _LPIPS[choice]:
        try:
            networks[name] = load_lpips(name)
        except UserError as error:
            _say(console, f"note: no LPIPS ({name}): {error}")
    return networks


def _run_all(
    reconstructor: "Reconstructor",
    todo: Sequence[tuple["Job", int]],
    output: OutputFolder,
    arguments: argparse.Namespace,
    skipped: list[BrokenVideoError],
    console: Console,
) -> list[dict[str, Json]]:
    """All videos in turn; metrics.json is brought up to date after each of them."""
    videos: list[dict[str, Json]] = []
    folder, existed = output.folder, output.folder.exists()
    with progress_bar(console) as progress:
        total = progress.add_task("frames", total=sum(frames for _, frames in todo))
        for job, frames in todo:
            progress.update(total, description=job.record.id)
            before = progress.tasks[0].completed
            own = arguments.caption is None
            caption = job.record.caption if own else (arguments.caption.strip() or None)

            def advance(count: int) -> None:
                progress.advance(total, count)

            try:
                video = reconstructor.run(job, folder, caption, advance)
            except BrokenVideoError as error:
                skipped.append(error)
                left = (progress.tasks[0].total or frames) - frames
                progress.update(total, total=left, completed=before)
                continue
            video["outputs"] = [str(output.place(Path(path))) for path in video["outputs"]]
            videos.append(video)
            write_json(folder / "metrics.json", summarise(reconstructor, videos, skipped))
            output.send()
            progress.update(total, completed=before + frames)
    if not videos and not existed and folder.exists():
        _remove_empty(folder)
    elif videos:
        write_json(folder / "metrics.json", summarise(reconstructor, videos, skipped))
    return videos


def summarise(
    reconstructor: "Reconstructor",
    videos: Sequence[dict[str, Json]],
    skipped: Sequence[BrokenVideoError],
) -> dict[str, Json]:
    """The content of metrics.json: figures over all videos, then each video's own.

    Quality is the mean over videos, bpp all bits over all pixels, utilisation over all tokens;
    `size` is null where videos differ. `seconds` is computing time.
    """
    from pyratok_jax.metrics.image import PROTOCOL, mean_quality
    from pyratok_jax.metrics.rate import bits_per_pixel

    names = [name for name in PROTOCOL if name in videos[0] and _is_quality(name)]
    sizes = {tuple(video["size"]) for video in videos}
    levels = reconstructor.usage()
    tokens = sum(video["tokens"] for video in videos)
    pixels = sum(video["frames"] * video["size"][0] * video["size"][1] for video in videos)
    tokenizer = reconstructor.tokenizer
    return {
        **mean_quality([{name: video[name] for name in names} for video in videos]),
        "bpp": bits_per_pixel(tokens, tokenizer.config.bits_per_token, pixels, 1, 1),
        "tokens": tokens,
        "utilisation": [level["utilisation"] for level in levels],
        "levels": levels,
        "frames": sum(video["frames"] for video in videos),
        "size": list(sizes.pop()) if len(sizes) == 1 else None,
        "video_seconds": sum(video["video_seconds"] for video in videos),
        "seconds": round(sum(video["seconds"] for video in videos), 3),
        "videos": list(videos),
        "skipped": [{"input": error.path, "reason": error.reason} for error in skipped],
        "bits_per_token": tokenizer.config.bits_per_token,
        "window": reconstructor.window,
        "resize": list(reconstructor.resize) if reconstructor.resize else None,
        "lpips_every": reconstructor.lpips_every,
        "checkpoint": str(tokenizer.folder) if tokenizer.folder else None,
        "checkpoint_hash": tokenizer.checkpoint_hash,
        "version": __version__,
        "protocol": PROTOCOL,
    }


def _is_quality(name: str) -> bool:
    return name.startswith(("psnr", "ssim", "lpips"))


def _finish(
    videos: Sequence[dict[str, Json]],
    skipped: Sequence[BrokenVideoError],
    output: AnyPath,
    console: Console,
) -> None:
    table = Table(box=None)
    for heading in ("video", "frames", "size", "PSNR", "SSIM", "LPIPS", "bpp", "seconds"):
        table.add_column(heading, justify="left" if heading == "video" else "right")
    for video in videos[:50]:
        height, width = video["size"]
        lpips = video.get("lpips", video.get("lpips_alex"))
        table.add_row(
            Path(video["input"]).name,
            str(video["frames"]),
            f"{width}x{height}",
            f"{video['psnr']:.2f}",
            *(f"{x:.4f}" if x is not None else "-" for x in (video["ssim"], lpips, video["bpp"])),
            f"{video['seconds']:.1f}",
        )
    console.print(table)
    for error in skipped:
        _say(console, f"skipped: {error.path}: {error.reason}")
    if skipped:
        _say(console, f"{len(skipped)} of {len(skipped) + len(videos)} inputs were skipped")
    for video in videos[:50]:
        for path in video["outputs"]:
            _say(console, f"written: {path}")
    _say(console, f"written: {output / 'metrics.json'}")


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def _remove_empty(folder: Path) -> None:
    """Remove a folder and those below it, as long as they hold no file."""
    for entry in folder.iterdir():
        if entry.is_dir():
            _remove_empty(entry)
    if not any(folder.iterdir()):
        folder.rmdir()


if __name__ == "__main__":
    run_cli(main)
