"""Video to a dataset of tokens: `python -m pyratok_jax.export_tokens --help`."""

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import TextColumn

from pyratok_jax.assets.programs import keep_programs
from pyratok_jax.errors import EXIT_PARTIAL, UserError, require, run_cli
from pyratok_jax.io.cli import add_frozen, add_no_verify, command_parser, frozen_options
from pyratok_jax.io.locks import folder_lock
from pyratok_jax.io.progress import PlainConsole, progress_bar
from pyratok_jax.io.remote import is_remote
from pyratok_jax.io.sharded_job import REJECTED, check_output
from pyratok_jax.io.shards import FORMATS
from pyratok_jax.tokens.options import ExportOptions, Machine

if TYPE_CHECKING:
    from pyratok_jax.data.sources.records import ClipRecord
    from pyratok_jax.tokenizer import Tokenizer
    from pyratok_jax.tokens.exporting import Progress
    from pyratok_jax.tokens.plan import ExportPlan

_SIZES = {
    "shards": "number of files",
    "window": "frames per block, a multiple of the VAE's frame step and one: longer videos are "
    "cut, and a shorter end padded; a block is encoded alone; 0: 17, or the next that is valid",
    "tile": "side of square tiles for frames too large for memory; 0: whole frames",
    "overlap": "pixels shared by tiles",
    "short-side": "shrink the shorter side to; 0: keep the size",
    "spatial": "devices of this host that share every frame's height, for frames too large for one",
    "round-frames": "pad blocks to a multiple of this, plus 1: fewer shapes to compile; 0: the "
    "least possible",
    "round-sides": "pad sides to a multiple of this; 0: the least possible",
    "batch": "blocks per batch, at most",
    "batch-pixels": "frames x height x width of a batch, at most (one block always fits)",
}


_WHAT = (
    "Encode videos to a TFDS dataset of tokens. A run that was interrupted "
    "resumes when the same command is given again. Several processes may share the work."
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_parser(
        "pyratok_jax.export_tokens",
        _WHAT,
        examples=["--checkpoint runs/demo --input my_videos --output tokens"],
        epilog=f"Exit code: 0 all done; {EXIT_PARTIAL} some videos were rejected (rejected.jsonl).",
    )
    d, m = ExportOptions(), Machine()
    p.add_argument("--checkpoint", required=True, help="working folder of a trained tokenizer")
    p.add_argument(
        "--input", required=True, help="folder, manifest, shards, tfds:NAME:SPLIT or builtin:demo"
    )
    p.add_argument("--output", required=True, help="folder of the dataset (local or gs://)")
    p.add_argument("--format", choices=FORMATS, default=d.format, help="of the shards")
    p.add_argument("--compress", action="store_true", help="entropy-code the tokens")
    p.add_argument("--fps", type=float, default=d.fps, help="frames per second to keep; 0: all")
    for name, text in _SIZES.items():
        default = getattr(d, name.replace("-", "_"))
        p.add_argument(f"--{name}", type=int, default=default, help=text)
    p.add_argument(
        "--flip", type=float, default=d.flip, help="for training a prior: flip up to this share of "
        "every level's bits before the next level sees them, which then corrects them"
    )  # fmt: skip
    p.add_argument("--flip-seed", type=int, default=d.flip_seed, help="of the flips")
    p.add_argument("--process", type=int, default=m.index, help="number of this process")
    p.add_argument("--processes", type=int, default=m.count, help="processes that share the work")
    p.add_argument("--readers", type=int, default=m.readers, help="threads that decode video")
    p.add_argument(
        "--buffer-mb", type=int, default=m.buffer_bytes >> 20, help="decoded frames held at once"
    )
    add_frozen(p)
    add_no_verify(p)
    return p


def _machine(arguments: argparse.Namespace) -> Machine:
    a = arguments
    if not 0 <= a.process < a.processes:
        raise UserError(f"--process {a.process} is not within 0 .. {a.processes - 1} (--processes)")
    if a.readers < 1 or a.buffer_mb < 1:
        raise UserError("--readers and --buffer-mb must be at least 1")
    return Machine(a.process, a.processes, a.readers, a.buffer_mb << 20)


def run(
    plan: "ExportPlan",
    records: Sequence["ClipRecord"],
    tokenizer: "Tokenizer",
    machine: Machine,
    console: Console,
) -> "Progress":
    """Export with a progress bar: what this process has done."""
    from pyratok_jax.tokens.exporting import export, rates, shards_of

    todo = shards_of(plan, machine)
    total = sum(len(plan.clips_of(number)) for number in todo)
    console.print(
        f"{plan.clips} clips, {plan.options.shards} shards; to do here: {len(todo)} shards with "
        f"{total} clips"
    )
    began = time.monotonic()
    with progress_bar(console, TextColumn("{task.fields[rates]}")) as bar:
        task = bar.add_task("videos", total=total, rates="")

        def advance(progress: "Progress") -> None:
            r = rates(progress, began)
            text = f"{r['videos_per_second']:.2f}/s, {r['tokens_per_second']:.0f} tokens/s"
            bar.update(task, completed=progress.clips + progress.rejected, rates=text)

        return export(plan, records, tokenizer, machine, advance)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments, console = parser().parse_args(argv), PlainConsole()
    options = ExportOptions(
        **{key: getattr(arguments, key) for key in ExportOptions.__dataclass_fields__}
    )
    machine = _machine(arguments)
    if options.compress:
        require("constriction")
    output = check_output(arguments.output)
    keep_programs()
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax.data.sources.registry import load_source
    from pyratok_jax.tokenizer import load_tokenizer, local_devices
    from pyratok_jax.tokens.exporting import CARD_TEXT, drop_damaged, write_card
    from pyratok_jax.tokens.plan import ExportPlan, provenance_of, source_fingerprint

    records = load_source(arguments.input)
    tokenizer = load_tokenizer(arguments.checkpoint, **frozen_options(arguments))
    factor = tokenizer.config.vae.temporal_factor
    options = options.resolved(factor)
    options.check(factor, options.side_multiple(tokenizer))
    if options.flip:
        tokenizer.check_flips()
    if options.spatial > 1:
        tokenizer = tokenizer.split_rows(local_devices(options.spatial))
    plan = ExportPlan(
        str(output), options, provenance_of(tokenizer), arguments.input,
        source_fingerprint(records), len(records),
    )  # fmt: skip
    if not is_remote(output):
        output.mkdir(parents=True, exist_ok=True)
    lock = folder_lock(
        output, machine.index, machine.count, "exporting to", "give another --output"
    )
    with lock:
        plan.write_or_compare()
        for name in drop_damaged(plan, machine):
            console.print(f"{name} is damaged and is made again", markup=False, soft_wrap=True)
        progress = run(plan, records, tokenizer, machine, console)
        card = write_card(plan)
    console.print(f"encoded {progress.clips} videos, rejected {progress.rejected}")
    if card is None:
        console.print("shards of other processes are missing; the last one writes the card")
    else:
        console.print(
            f"in all: {card['clips']} videos, {card['tokens']} tokens, {card['bpp_raw']:.4f} bits "
            f"per pixel raw, {card['bpp_stored']:.4f} as stored, {card['rejected']} rejected"
        )
    console.print(f"dataset: {output}", soft_wrap=True)
    if card is not None:
        console.print(f"card: {output / CARD_TEXT}", soft_wrap=True)
        console.print(f"rejected, with reasons: {output / REJECTED}", soft_wrap=True)
    return EXIT_PARTIAL if progress.rejected or (card and card["rejected"]) else 0


if __name__ == "__main__":
    run_cli(main)
