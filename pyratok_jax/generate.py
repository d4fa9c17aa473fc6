"""Generate videos with a trained prior: `python -m pyratok_jax.generate --help`."""

import argparse
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from pyratok_jax.assets.programs import keep_programs
from pyratok_jax.errors import UserError, run_cli
from pyratok_jax.io.atomic import write_text
from pyratok_jax.io.cli import add_no_verify, command_parser
from pyratok_jax.io.documents import read_lines
from pyratok_jax.io.mirror import OutputFolder, output_folder
from pyratok_jax.io.progress import PlainConsole, progress_bar
from pyratok_jax.io.remote import any_path, check_writable

if TYPE_CHECKING:
    from pyratok_jax.generator import Clip, Generator, Request
    from pyratok_jax.models.prior.config import Sampling

TASKS = ("prediction", "interpolation", "inpainting", "outpainting")
_LONGEST = 1e6  # seconds of a clip, far above what can be drawn
SAMPLES, PAGE = "samples.jsonl", "index.html"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_parser(
        "pyratok_jax.generate",
        "Generate videos from prompts, with a prior that was trained on a tokenizer's tokens.",
        examples=["--checkpoint runs/generator --prompt 'a red square moves left' --output out"],
        epilog="Writes one mp4 per sample, samples.jsonl with all that reproduces each, and "
        "index.html to look at them. Sample n of a seed is the same in a batch of any size. Exit "
        "codes: 0 done, 2 a mistake in the arguments or files, 1 a defect.",
    )
    none = argparse.SUPPRESS
    p.add_argument(
        "--checkpoint", required=True,
        help="the --workdir of a training, a published folder, hf://ORG/NAME, or builtin:world, "
        "which is shipped with this package",
    )  # fmt: skip
    p.add_argument("--output", required=True, help="folder for the results (local or gs://)")
    p.add_argument("--tokenizer", default="", help="its folder, where it has moved")
    what = p.add_argument_group("what")
    what.add_argument(
        "--prompt",
        action="append",
        help="text, or the name of a class; empty: no prompt; several: a sample of each",
    )
    what.add_argument("--prompts", help="a file with a prompt in each line")
    what.add_argument("--per-prompt", type=int, default=1, help="samples of each prompt")
    what.add_argument("--negative-prompt", default="", help="what guidance leads away from")
    what.add_argument("--image", help="a picture to begin with")
    what.add_argument("--video", help="a video to continue, or the clip of --task")
    what.add_argument("--keep-frames", type=int, default=0, help="of --video, from its start; 0: "
                      "half of the clip's")  # fmt: skip
    what.add_argument("--task", choices=TASKS, default="prediction", help="what of --video is kept")
    size = p.add_argument_group("size")
    size.add_argument("--size", default="", help="HEIGHTxWIDTH; empty: that of the training")
    size.add_argument("--frames", type=int, default=0, help="0: as many as in the training")
    size.add_argument("--seconds", type=float, default=0.0, help="in place of --frames")
    size.add_argument("--fps", type=float, default=0.0, help="0: that of the training")
    how = p.add_argument_group("how", "empty: what the training's config says")
    how.add_argument("--seed", type=int, default=0, help="of all samples")
    how.add_argument("--guidance", type=float, default=none, help="scale; 1: none")
    how.add_argument("--guidance-schedule", choices=("constant", "linear", "cosine"), default=none,
                     help="how the scale grows while a level is drawn")  # fmt: skip
    how.add_argument("--temperature", default=none, help="one, or one per level: 1,.8,.6,.5")
    how.add_argument("--top-p", default=none, help="likewise")
    how.add_argument("--steps", default=none, help="parallel steps of each level: 8,6,4,3")
    how.add_argument("--choice-temperature", type=float, default=none,
                     help="noise on which tokens are kept first")  # fmt: skip
    how.add_argument(
        "--candidates",
        type=int,
        default=1,
        help="draws of each sample; the one whose tokens say the prompt best is kept",
    )
    how.add_argument("--batch", type=int, default=4, help="clips drawn at once")
    p.add_argument("--tokens-only", action="store_true", help="write a token dataset, no videos")
    p.add_argument(
        "--stream", action="store_true", help="write frames as they are drawn; order blocks alone"
    )
    add_no_verify(p)
    return p


def check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be generated, before anything is loaded.

    Raises:
        UserError: naming the argument.
    """
    a, output = arguments, any_path(arguments.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; name a folder")
    if (output / SAMPLES).exists():
        raise UserError(f"{output} holds samples already; name another --output")
    if (a.prompt is None) == (a.prompts is None):
        raise UserError('give either --prompt TEXT (which may be "") or --prompts FILE')
    if a.image is not None and a.video is not None:
        raise UserError("--image and --video exclude each other")
    if a.task != "prediction" and a.video is None:
        raise UserError(f"--task {a.task} needs --video, the clip of which a part is kept")
    if a.keep_frames and (a.video is None or a.task != "prediction"):
        raise UserError(
            "--keep-frames says how many frames of a --video are continued; leave it out"
        )
    for name in ("per_prompt", "candidates", "batch"):
        if getattr(a, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(a, name)}: expected at least 1")
    for name in ("frames", "seconds", "fps", "keep_frames"):
        value = getattr(a, name)
        if value < 0 or not math.isfinite(value):
            raise UserError(f"--{name.replace('_', '-')} {value}: expected a number from 0")
    if a.seconds > _LONGEST:
        raise UserError(f"--seconds {a.seconds:g}: expected at most {_LONGEST:g}")
    if a.frames and a.seconds:
        raise UserError("--frames and --seconds exclude each other")
    if a.stream and a.candidates > 1:
        raise UserError("--stream writes frames as they are drawn: leave --candidates at 1")
    if a.stream and a.task != "prediction":
        raise UserError(f"--stream continues what it has drawn, which --task {a.task} does not")
    if a.stream and a.tokens_only:
        raise UserError("--stream and --tokens-only exclude each other")
    parse_size(a.size)
    if not 0 <= a.seed < 2**32:
        raise UserError(f"--seed {a.seed}: expected a number within 0 .. {2**32 - 1}")
    check_writable(output, "--output")


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of HEIGHTxWIDTH; zeros where it is empty.

    Raises:
        UserError: anything else.
    """
    if not text:
        return 0, 0
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"--size {text}: expected HEIGHTxWIDTH, such as 256x256")
    height, width = (int(part) for part in parts)
    if min(height, width) < 1:
        raise UserError(f"--size {text}: sides must be at least 1")
    return height, width


def prompts_of(arguments: argparse.Namespace) -> list[str]:
    """All prompts, each as often as it is asked for.

    Raises:
        UserError: an empty or unreadable file.
    """
    lines = arguments.prompt if arguments.prompts is None else read_lines(arguments.prompts)
    if not lines:
        raise UserError(f"--prompts {arguments.prompts} holds no prompt; write one in each line")
    return [line for line in lines for _ in range(arguments.per_prompt)]


def sampling_of(arguments: argparse.Namespace, defaults: "Sampling") -> "Sampling":
    """The settings of the training with those that the command line names.

    Raises:
        UserError: a value that is no number, or out of range.
    """
    changes: dict[str, Any] = {}
    for name in ("guidance", "guidance_schedule", "choice_temperature"):
        if name in arguments:
            changes[name] = getattr(arguments, name)
    for name, kind in (("temperature", float), ("top_p", float), ("steps", int)):
        if name in arguments:
            text = getattr(arguments, name)
            try:
                changes[name] = tuple(kind(part) for part in text.split(","))
            except ValueError as error:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} {text}: expected numbers with commas") from error
    try:
        return dataclasses.replace(defaults, **changes)
    except ValueError as error:
        raise UserError(str(error)) from error


def given_frames(
    arguments: argparse.Namespace, frames: int, size: tuple[int, int], fps: float
) -> np.ndarray | None:
    """The frames of --image or --video at the clip's size, which are kept.

    Raises:
        UserError: it cannot be read, or has too few frames.
    """
    from pyratok_jax.data.video.files import clock_of, is_image, iter_span, read_clip
    from pyratok_jax.data.video.timeline import resampled

    if arguments.image is not None:
        return read_clip(arguments.image, start=0.0, frames=1, size=size)
    if arguments.video is None:
        return None
    if is_image(arguments.video):
        raise UserError(f"--video {arguments.video} is a picture; give it as --image")
    kept = frames if arguments.task != "prediction" else arguments.keep_frames or (frames + 1) // 2
    # Not `read_clip`, which repeats the last frame: a clip would be continued from a standstill.
    rate, margin = clock_of(arguments.video)
    shown = resampled(iter_span(arguments.video, size=size), fps, margin, 1 / rate)
    found = list(itertools.islice(shown, kept))
    if len(found) < arguments.keep_frames:
        raise UserError(
            f"--video {arguments.video} has {len(found)} frames at {fps:g} per second, fewer than "
            f"--keep-frames {kept}; give at most {len(found)}"
        )
    return np.stack(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parser().parse_args(argv)
    check(arguments)
    prompts = prompts_of(arguments)
    keep_programs()
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax.generator import Request, load_generator

    generator = load_generator(arguments.checkpoint, tokenizer=arguments.tokenizer or None)
    sampling = sampling_of(arguments, generator.sampling)
    _check_words(arguments, prompts, generator, sampling)
    fps = arguments.fps or generator.fps
    height, width = parse_size(arguments.size)
    frames = arguments.frames or max(round(arguments.seconds * fps), int(arguments.seconds > 0))
    request = Request(prompts, frames, height, width, arguments.seed, 0, arguments.negative_prompt)
    padding = generator.padding(request)
    video = given_frames(arguments, padding.frames, (padding.height, padding.width), fps)
    request = Request(
        prompts, frames, height, width, arguments.seed, 0, arguments.negative_prompt, video,
        arguments.task, arguments.candidates,
    )  # fmt: skip
    with output_folder(arguments.output) as output:
        output.folder.mkdir(parents=True, exist_ok=True)
        said = _Writer(arguments, generator, request, sampling, fps, output).run()
    PlainConsole().print(said)  # When all is uploaded.
    return 0


def _check_words(
    arguments: argparse.Namespace,
    prompts: Sequence[str],
    generator: "Generator",
    sampling: "Sampling",
) -> None:
    """Refuse words that would change nothing.

    Raises:
        UserError: a negative prompt without guidance, or prompts for a prior that reads none.
    """
    if arguments.negative_prompt and not sampling.guided:
        raise UserError(
            f"--negative-prompt does nothing at guidance {sampling.guidance:g}; give --guidance "
            "above 1"
        )
    if generator.prior.config.condition == "none" and any([*prompts, arguments.negative_prompt]):
        raise UserError(
            'this prior was trained without prompts; give --prompt "" and no --negative-prompt'
        )


class _Writer:
    """Draws all samples of a command and writes its files."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        generator: "Generator",
        request: "Request",
        sampling: "Sampling",
        fps: float,
        output: OutputFolder,
    ):
        self._arguments, self._generator, self._request = arguments, generator, request
        self._sampling, self._fps = sampling, fps
        self._output, self._folder = output, output.folder
        self._rows: list[dict[str, Any]] = []

    def run(self) -> str:
        """Everything, in order; what was done."""
        started = time.monotonic()
        if self._arguments.stream:
            self._stream()
        elif self._arguments.tokens_only:
            self._tokens()
        else:
            self._videos()
        lines = [json.dumps(row, ensure_ascii=False) for row in self._rows]
        write_text(self._folder / SAMPLES, "\n".join(lines) + "\n")
        seconds = time.monotonic() - started
        frames = sum(row["size"][0] for row in self._rows)
        where = self._arguments.output
        count = len(self._rows)
        return f"{count} sample{'s'[: count != 1]}, {frames} frames, in {seconds:.1f} s: {where}"

    def _drawn(self) -> Iterator["Clip"]:
        total = len(self._request.prompts)
        with progress_bar(Console(stderr=True)) as bar:
            task = bar.add_task("clips", total=total)

            def report(done: float) -> None:
                bar.update(task, completed=round(done, 2))

            batch = self._arguments.batch
            for part in self._generator.batches(self._request, self._sampling, batch, report):
                yield from part

    def _row(self, prompt: str, number: int, file: str, clip: "Clip | None" = None) -> None:
        size = self._generator.padding(self._request)
        row = {
            "file": file,
            "prompt": prompt,
            "seed": self._request.seed,
            "sample": number,
            "candidates": self._request.candidates,
            "candidate": clip.candidate if clip else 0,
            "likeness": clip.likeness if clip else None,
            "size": [size.frames, size.height, size.width],
            "fps": self._fps,
            "negative_prompt": self._request.negative,
            "sampling": dataclasses.asdict(self._sampling),
            "order": self._generator.prior.config.order,
            "generator": self._generator.checkpoint_hash,
            "tokenizer": self._generator.tokenizer.checkpoint_hash,
            "image": self._arguments.image,
            "video": self._arguments.video,
            "kept_frames": self._generator.kept_frames(self._request),
            "task": self._request.task,
        }
        self._rows.append(row)

    def _videos(self) -> None:
        from pyratok_jax.data.video.writer import VideoWriter
        from pyratok_jax.reports.samples import MOST, Sample, write_samples_page

        shown: list[Sample] = []
        for clip in self._drawn():
            name = f"sample{clip.number:05d}.mp4"
            video = self._generator.decode(clip)
            with VideoWriter(self._folder / name, fps=self._fps) as writer:
                for frame in video:
                    writer.write(np.ascontiguousarray(frame))
            self._row(clip.prompt, clip.number, name, clip)
            self._output.send()
            if len(shown) < MOST:
                shown.append(Sample(clip.prompt, name, self._fps, video))
        settings = {
            "checkpoint": self._arguments.checkpoint,
            "seed": self._request.seed,
            "sampling": dataclasses.asdict(self._sampling),
        }
        write_samples_page(self._folder / PAGE, "Generated clips", shown, settings)

    def _stream(self) -> None:
        from pyratok_jax.data.video.writer import VideoWriter

        base = self._request
        total = len(base.prompts) * self._generator.padding(base).frames
        with progress_bar(Console(stderr=True)) as bar:
            task = bar.add_task("frames", total=total)
            for number, prompt in enumerate(base.prompts):
                name = f"sample{number:05d}.mp4"
                pieces = self._generator.stream(
                    prompt, self._sampling, frames=base.frames, height=base.height,
                    width=base.width, seed=base.seed, first=number, negative=base.negative,
                    video=base.video,
                )  # fmt: skip
                with VideoWriter(self._folder / name, fps=self._fps) as writer:
                    for frames in pieces:
                        for frame in frames:
                            writer.write(np.ascontiguousarray(frame))
                        bar.advance(task, len(frames))
                self._row(prompt, number, name)
                self._output.send()

    def _tokens(self) -> None:
        from pyratok_jax.generator.token_dataset import sample_record, write_samples

        def records() -> Iterator[Any]:
            for clip in self._drawn():
                name = f"sample{clip.number:05d}"
                self._row(clip.prompt, clip.number, name, clip)
                yield sample_record(
                    clip, name, fps=self._fps, generator=self._generator.checkpoint_hash,
                    checkpoint=self._generator.tokenizer.checkpoint_hash,
                )  # fmt: skip

        write_samples(self._folder, records())


if __name__ == "__main__":
    run_cli(main)
