"""Evaluate a tokenizer by the field's protocols: `python -m pyratok_jax.evaluate --help`."""

import argparse
import dataclasses
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from pyratok_jax.assets.programs import keep_programs
from pyratok_jax.errors import UserError, missing_package, run_cli
from pyratok_jax.evaluation.engine import (
    PartialStore,
    Shard,
    evaluate_items,
    gather,
    parse_shard,
    unique_items,
)
from pyratok_jax.evaluation.task import TASKS, Model, Task, load_task, parse_settings
from pyratok_jax.io import Json
from pyratok_jax.io.cli import add_frozen, add_no_verify, command_parser, frozen_options
from pyratok_jax.io.mirror import output_folder
from pyratok_jax.io.progress import PlainConsole
from pyratok_jax.io.remote import AnyPath, any_path, check_writable


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_parser(
        "pyratok_jax.evaluate",
        "Evaluate a tokenizer. Results: results.json, row.md (a table row for a "
        "paper) and report.html. An interrupted run resumes when the same command is given "
        "again.",
        examples=["--checkpoint runs/demo --task reconstruction --output results", "--task list"],
    )
    p.add_argument("--task", required=True, help=f"one of {', '.join(TASKS)}; list explains them")
    p.add_argument(
        "--checkpoint",
        action="append",
        help="folder of a trained tokenizer, or oracle (which knows the ground truth) or random, "
        "which test the evaluation itself; the task compression takes several, generation takes a "
        "trained prior (or frozen, which repeats the first frame)",
    )
    p.add_argument(
        "--reconstructions",
        metavar="DIR",
        help="instead of --checkpoint: what another tokenizer made of the same clips, a file for "
        "each by the clip's name (.npy uint8 (t, h, w, 3), videos, pictures); see --name, --rate",
    )
    p.add_argument("--rate", type=float, metavar="BPP", help="bits per pixel of these; none: none")
    p.add_argument("--name", help="of the method in tables")
    p.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="DIR",
        help="--output of another run of the same protocol, to stand in the same table",
    )
    p.add_argument(
        "--protocol",
        help="settings of a published protocol: tokenbench; "
        "of generation styleganv, tats, larp, magvit, msrvtt, msrvtt-2048, webvid",
    )
    p.add_argument("--data", help="the task's data: see --task list")
    p.add_argument("--output", help="folder for the results (local or gs://)")
    p.add_argument("--limit", type=int, default=0, help="evaluate the first items only; 0: all")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting of the task; may be repeated",
    )
    p.add_argument(
        "--shard",
        default="0/1",
        help="evaluate items I, I+N, I+2N, ...: start N processes with 0/N .. N-1/N and the same "
        "--output; the one that finishes last writes the results",
    )
    p.add_argument(
        "--distributed",
        action="store_true",
        help="take the shard from JAX's processes (one per host of a TPU slice)",
    )
    p.add_argument("--restart", action="store_true", help="forget the results in --output")
    add_frozen(p)
    add_no_verify(p)
    return p


def explain(console: Console) -> None:
    """Print what every task does, its data and its settings."""
    for name in TASKS:
        try:
            task = load_task(name)
        except ImportError as error:
            console.print(f"{name}: not available: {missing_package(error) or error}\n")
            continue
        console.print(f"{name}: {task.description}", style="bold")
        console.print(f"  --data: {task.data_help}")
        for field in dataclasses.fields(task):
            if field.name != "data":
                console.print(f"  --set {field.name}={field.default}", markup=False)
        console.print()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments, console = parser().parse_args(argv), PlainConsole()
    if arguments.task == "list":
        explain(console)
        return 0
    keep_programs()
    kind = load_task(arguments.task)
    if arguments.reconstructions is not None:
        _check_external(arguments)
        arguments.checkpoint = [arguments.name]
    elif arguments.rate is not None:
        raise UserError("--rate belongs to --reconstructions; a tokenizer's own rate is measured")
    for name in ("checkpoint", "data", "output"):
        if getattr(arguments, name) is None:
            raise UserError(f"--{name} is missing; it is needed to run the task {kind.name}")
    if arguments.limit < 0:
        raise UserError(f"--limit {arguments.limit}: expected a number of items, 0 for all")
    output = any_path(arguments.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; give a folder")
    check_writable(output, "--output")
    settings = _protocol(kind, arguments.protocol) | parse_settings(kind, arguments.set)
    task = kind(data=arguments.data, **settings)
    task.check()
    shard = _shard(arguments)
    if arguments.reconstructions is None:
        model = load_models(task, arguments.checkpoint, frozen_options(arguments))
    else:
        clips = [item.id for item in unique_items(task, arguments.limit)]
        model = task.external(arguments.reconstructions, arguments.rate, arguments.name, clips)
    run(task, model, output, arguments, shard, console)
    return 0


def _check_external(arguments: argparse.Namespace) -> None:
    if arguments.checkpoint:
        raise UserError(
            "--checkpoint and --reconstructions are two methods: evaluate one after the other, and "
            "name the first one's --output as --beside of the second"
        )
    if not arguments.name:
        raise UserError("--reconstructions needs --name, what the method is called in tables")
    if arguments.rate is not None and not 0 < arguments.rate < math.inf:
        raise UserError(f"--rate {arguments.rate}: expected bits per pixel above 0")
    data, folder = arguments.data, arguments.reconstructions
    if data and os.path.isdir(data) and os.path.realpath(data) == os.path.realpath(folder):
        raise UserError(f"--reconstructions {folder} is the folder of the clips themselves")


def _protocol(kind: type[Task], name: str | None) -> dict[str, Json]:
    if name is None:
        return {}
    if name not in kind.protocols:
        known = ", ".join(kind.protocols) or "none"
        raise UserError(f"--protocol {name}: the task {kind.name} knows {known}")
    return dict(kind.protocols[name])


def _shard(arguments: argparse.Namespace) -> Shard:
    if not arguments.distributed:
        return parse_shard(arguments.shard)
    import jax

    from pyratok_jax.training.distributed.coordinator import join_hosts

    join_hosts(True)
    return Shard(jax.process_index(), jax.process_count())


def load_models(
    task: Task, checkpoints: Sequence[str], frozen: Mapping[str, str] | None = None
) -> Model:
    """What the task's items are evaluated with, of one checkpoint or several.

    Raises:
        UserError: as `load_model`; several where the task takes one, or one twice.
    """
    if len(checkpoints) > 1 and not task.several:
        raise UserError(
            f"--checkpoint is given {len(checkpoints)} times; the task {task.name} takes one"
        )
    names = [Path(checkpoint).name for checkpoint in checkpoints]
    if len(set(names)) < len(names):
        names = list(checkpoints)
    if len(set(names)) < len(names):
        raise UserError("--checkpoint names the same folder twice")
    return task.join(
        {n: load_model(task, c, frozen) for n, c in zip(names, checkpoints, strict=True)}
    )


def load_model(task: Task, checkpoint: str, frozen: Mapping[str, str] | None = None) -> Model:
    """What the task's items are evaluated with.

    Raises:
        UserError: the checkpoint is none, or the task takes neither oracle nor random.
    """
    if checkpoint in task.baselines:
        return task.baseline(checkpoint)
    return task.load(checkpoint, **(frozen or {}))


def run(
    task: Task,
    model: Model,
    output: AnyPath,
    arguments: argparse.Namespace,
    shard: Shard,
    console: Console,
) -> None:
    """Evaluate this process's share, and write the results when all shares are complete."""
    items = unique_items(task, arguments.limit)
    store = PartialStore(output / "partial")
    if arguments.restart:
        if shard.count > 1:
            raise UserError(f"--restart needs a single process; remove {store.folder} instead")
        store.remove()
    settings = {k: v for k, v in task.settings().items() if k not in task.late_settings}
    store.claim(
        {
            "task": task.name,
            "data": str(task.data),
            "settings": settings,
            "checkpoint": model.checkpoint_hash,
        }
    )
    console.print(f"{task.name}: {len(items)} items of {task.data}", soft_wrap=True)
    start = time.monotonic()
    evaluate_items(task, model, items[shard.index :: shard.count], store, console)
    console.print(f"this process took {time.monotonic() - start:.0f} s")
    if arguments.distributed and shard.count > 1:
        _wait_for_all(task)
        if shard.index:
            return
    finish(task, model, output, arguments, console)


def _wait_for_all(task: Task) -> None:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(f"evaluated {task.name}")


def finish(
    task: Task, model: Model, output: AnyPath, arguments: argparse.Namespace, console: Console
) -> None:
    """Merge all partial results into the results, if none is missing.

    Raises:
        UserError: no item could be evaluated.
    """
    from pyratok_jax.evaluation.peers import other_results
    from pyratok_jax.evaluation.report import (
        comparison_table,
        markdown_row,
        summarise,
        write_results,
    )

    items = unique_items(task, arguments.limit)
    gathered = gather(items, PartialStore(output / "partial"))
    if gathered.missing:
        console.print(
            f"{gathered.missing} of {len(items)} items are still to be done by other processes; "
            "the last one writes the results"
        )
        return
    if gathered.broken and arguments.reconstructions is not None:
        first = next(iter(gathered.broken.items()))
        raise UserError(
            f"{len(gathered.broken)} of {len(items)} reconstructions do not match their clips; the "
            f"first, {first[0]}: {first[1]}"
        )
    if not gathered.partials:
        first = next(iter(gathered.broken.items()))
        raise UserError(
            f"none of the {len(items)} items of {task.data} could be evaluated; the first, "
            f"{first[0]}: {first[1]}"
        )
    results = summarise(
        task,
        gathered,
        checkpoint=", ".join(arguments.checkpoint),
        checkpoint_hash=model.checkpoint_hash,
        limit=arguments.limit,
        method=arguments.name or "",
        facts=task.checkpoint_facts(model),
    )
    others = other_results(arguments.beside, results)
    with output_folder(output) as local:
        files = write_results(local.folder, task, gathered, results, others)
        written = [local.place(path) for path in files]
    console.print(markdown_row(task, results), markup=False, soft_wrap=True)
    console.print(comparison_table(task, results, others), markup=False, soft_wrap=True)
    if gathered.broken:
        console.print(f"{len(gathered.broken)} items are broken and left out: see results.json")
    for path in written:
        console.print(f"written: {path}", soft_wrap=True)


if __name__ == "__main__":
    run_cli(main)
