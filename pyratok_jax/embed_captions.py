"""Compute the text embeddings of all captions once and store them beside the data."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyratok_jax.errors import UserError, run_cli
from pyratok_jax.io.cli import command_parser, local_path
from pyratok_jax.io.progress import PlainConsole, progress_bar

if TYPE_CHECKING:
    from pyratok_jax.data.captions import CaptionTokenizer
    from pyratok_jax.models.language.model import TextEncoder


def main() -> int:
    """Embed and store."""
    arguments = _arguments()
    if arguments.length < 0 or arguments.batch < 1:
        raise UserError("--length must be at least 0, --batch at least 1")
    if arguments.bits and arguments.checkpoint:
        raise UserError("--bits is for --language: a checkpoint's model has those of its training")
    if Path(arguments.output).exists():
        raise UserError(f"{arguments.output} exists; name a new folder")
    # Heavy imports wait until the command line is known to be sound.
    import jax
    from flax import nnx

    from pyratok_jax.data.caption_embeddings import partial_folder, write_embeddings

    console = PlainConsole()
    captions = list(dict.fromkeys(map(str.strip, _captions(arguments, console))))
    if not captions:
        source = arguments.source or ", ".join(arguments.tokens)
        raise UserError(f"{source} has no captions; nothing to embed")
    encoder, tokenize, model = _language(arguments)
    run = nnx.jit(lambda encoder, ids, mask: encoder(ids, mask).embeddings)

    def embed(group: list[str]) -> tuple[np.ndarray, np.ndarray]:
        # Always a full batch, so that one compiled program serves all.
        ids, mask = tokenize([*group, *[None] * (arguments.batch - len(group))])
        values = np.asarray(jax.device_get(run(encoder, ids, mask)), np.float32)
        return values[: len(group)], mask[: len(group)]

    part = partial_folder(arguments.output)
    if part.is_dir():
        console.print(f"{part} is of a run that was interrupted", soft_wrap=True)
    with progress_bar(console) as bar:
        task = bar.add_task("embedding", total=len(captions))
        output = write_embeddings(
            arguments.output,
            captions,
            embed,
            length=tokenize.length,
            model=model,
            bits=arguments.bits,
            batch=arguments.batch,
            progress=lambda count: bar.advance(task, count),
        )
    if tokenize.truncated:
        console.print(f"{tokenize.truncated} of {tokenize.seen} captions were cut")
    console.print(f"written: {output}", soft_wrap=True)
    return 0


def _arguments() -> argparse.Namespace:
    parser = command_parser(
        "pyratok_jax.embed_captions",
        "Compute the text embeddings of all captions of a source once and store them. A run that "
        "was interrupted resumes: finished shards are kept in OUTPUT.part.",
        examples=[
            "--source videos.csv --output captions --language weights/qwen",
            "--tokens tokens --output captions --checkpoint runs/demo",
        ],
    )
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--source", help="data source, as in a training config")
    of.add_argument("--tokens", nargs="+", help="token datasets, for the training of a prior")
    parser.add_argument("--output", required=True, type=local_path, help="folder to write")
    by = parser.add_mutually_exclusive_group()
    by.add_argument("--language", default="builtin:smollm2", help="converted folder or builtin")
    by.add_argument("--checkpoint", help="tokenizer whose language model is taken")
    parser.add_argument(
        "--length",
        type=int,
        default=0,
        help="tokens per caption at most (default: the checkpoint's, else 128)",
    )
    parser.add_argument(
        "--bits", type=int, default=0, choices=(0, 4, 8),
        help="of the kernels of --language, as config.language.bits; 0: as stored",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=16, help="captions per pass")
    return parser.parse_args()


def _captions(arguments: argparse.Namespace, console: PlainConsole) -> Iterator[str]:
    """The captions there are, of token records those that can be read."""
    from pyratok_jax.data.sources.registry import load_source
    from pyratok_jax.tokens.dataset import TokenDataset
    from pyratok_jax.tokens.schema import DamagedRecordError

    if arguments.source:
        for record in load_source(arguments.source):
            if record.caption and record.caption.strip():
                yield record.caption
        return
    for dataset in map(TokenDataset, arguments.tokens):
        for number in range(len(dataset)):
            try:
                caption = dataset[number].caption
            except DamagedRecordError as error:
                console.print(f"left out: {error.where}: {error.reason}", soft_wrap=True)
                continue
            if caption.strip():
                yield caption


def _language(arguments: argparse.Namespace) -> tuple["TextEncoder", "CaptionTokenizer", str]:
    """The encoder, its word tokenizer, and which model it is."""
    from pyratok_jax.checkpoints.pretrained import load_language
    from pyratok_jax.data.captions import CaptionTokenizer
    from pyratok_jax.models.language.model import TextEncoder
    from pyratok_jax.tokenizer import load_tokenizer

    if arguments.checkpoint is None:
        language = load_language(arguments.language, bits=arguments.bits)
        words = CaptionTokenizer(language.tokenizer, arguments.length or 128)
        return TextEncoder(language.model), words, language.sha256
    tokenizer = load_tokenizer(arguments.checkpoint)
    if tokenizer.text is None or tokenizer.captions is None:
        raise UserError(f"{arguments.checkpoint} has no language model; name one with --language")
    words = CaptionTokenizer(
        tokenizer.captions.tokenizer, arguments.length or tokenizer.captions.length
    )
    return tokenizer.text, words, f"tokenizer {tokenizer.checkpoint_hash}"


if __name__ == "__main__":
    run_cli(main)
