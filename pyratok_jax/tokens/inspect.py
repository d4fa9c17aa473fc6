"""Look at a token dataset: `python -m pyratok_jax.tokens.inspect --help`."""

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pyratok_jax.errors import EXIT_PARTIAL, UserError, run_cli
from pyratok_jax.io.atomic import write_json, write_png, write_text
from pyratok_jax.io.cli import add_frozen, add_no_verify, command_parser, frozen_options
from pyratok_jax.io.progress import PlainConsole
from pyratok_jax.io.sharded_job import check_output

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import TokenizerLike
    from pyratok_jax.tokens.inspection import Summary
    from pyratok_jax.tokens.schema import TokenRecord


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_parser(
        "pyratok_jax.tokens.inspect",
        "Totals, use of the codes, n-gram entropy and sample pictures of a dataset of "
        "tokens, as HTML, PNG and JSON.",
        examples=["tokens --checkpoint runs/demo --output inspection"],
    )
    p.add_argument("input", help="folder of a dataset, or a shard")
    p.add_argument("--output", default="token_inspection", help="folder for the report")
    p.add_argument("--checkpoint", default="", help="working folder of the tokenizer: also decode")
    p.add_argument("--pictures", type=int, default=12, help="records on the contact sheet")
    add_frozen(p)
    add_no_verify(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments, console = parser().parse_args(argv), PlainConsole()
    if arguments.pictures < 0:
        raise UserError(f"--pictures {arguments.pictures}: expected a number of records from 0")
    output = check_output(arguments.output)
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax.tokens.dataset import read_all
    from pyratok_jax.tokens.inspection import Inspection, contact_sheet, html_page

    tokenizer = None
    if arguments.checkpoint:
        from pyratok_jax.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(arguments.checkpoint, **frozen_options(arguments))
    inspection, count = Inspection(), _records(arguments.input)
    shown = _problem_of(tokenizer) if tokenizer else lambda record: None
    with console.status("reading records"):
        inspection.add_all(read_all(arguments.input), arguments.pictures, count, shown)
        summary = inspection.summary()
        sheet = contact_sheet(inspection.pictured, tokenizer)
    _print(summary, console)
    write_json(output / "summary.json", summary)
    write_text(output / "report.html", html_page(arguments.input, summary, sheet))
    write_png(output / "contact_sheet.png", sheet)
    for name in ("contact_sheet.png", "report.html", "summary.json"):
        console.print(f"written: {output / name}", soft_wrap=True)
    return EXIT_PARTIAL if summary["damaged"] else 0


def _problem_of(tokenizer: "TokenizerLike") -> "Callable[[TokenRecord], str | None]":
    """What keeps a record from being decoded for the sheet, None for nothing.

    It raises a `UserError` for tokens of another tokenizer, whose pictures would show anything.
    """
    from pyratok_jax.tokens.decoding import check_maker, mismatch

    def problem(record: "TokenRecord") -> str | None:
        check_maker(record, tokenizer, "give that one, or leave out --checkpoint")
        return mismatch(record, tokenizer)

    return problem


def _records(path: str) -> int:
    from pyratok_jax.tokens.dataset import TokenDataset

    try:
        return len(TokenDataset(path))
    except UserError:
        return 0


def _print(summary: "Summary", console: Console) -> None:
    plain = Table(show_header=False, box=None)
    for key, value in summary.items():
        if not isinstance(value, (dict, list)):
            plain.add_row(key.replace("_", " "), f"{value:.5g}")
    console.print(plain)
    table = Table("level", "tokens", "used", "utilisation", "entropy", "given row", "given time")
    for number, level in enumerate(summary["levels"], start=1):
        table.add_row(
            str(number),
            str(level["tokens"]),
            str(level["used"]),
            f"{level['utilisation']:.4f}",
            f"{level['entropy']:.3f}",
            f"{level['bigram_row']['entropy']:.3f}",
            f"{level['bigram_time']['entropy']:.3f}",
        )
    console.print(table)
    for text in summary["damaged"][:50]:
        console.print(f"damaged: {text}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    run_cli(main)
