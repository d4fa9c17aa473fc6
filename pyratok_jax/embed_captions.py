"""Compute the text embeddings of all captions of a source once and store them beside the data."""

from pathlib import Path

import jax
import numpy as np
from flax import nnx

from pyratok_jax.checkpoints.pretrained import load_language
from pyratok_jax.data.caption_embeddings import write_embeddings
from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.errors import UserError, run_cli
from pyratok_jax.io.cli import command_parser, local_path
from pyratok_jax.io.progress import PlainConsole, track
from pyratok_jax.models.language.model import TextEncoder


def main() -> int:
    """Embed and store."""
    parser = command_parser(
        "pyratok_jax.embed_captions",
        "Compute the text embeddings of all captions of a source once and store them.",
        examples=["--source videos.csv --output captions --language weights/qwen"],
    )
    parser.add_argument("--source", required=True, help="data source, as in a training config")
    parser.add_argument("--output", required=True, type=local_path, help="folder to write")
    parser.add_argument("--language", default="builtin:smollm2", help="converted folder or builtin")
    parser.add_argument("--length", type=int, default=128, help="tokens per caption at most")
    parser.add_argument("--batch", type=int, default=16, help="captions per pass")
    arguments = parser.parse_args()
    if arguments.length < 1 or arguments.batch < 1:
        raise UserError("--length and --batch must be at least 1")
    if Path(arguments.output).exists():
        raise UserError(f"{arguments.output} exists; name a new folder")
    captions = [record.caption for record in load_source(arguments.source) if record.caption]
    if not captions:
        raise UserError(f"{arguments.source} has no captions; nothing to embed")
    language = load_language(arguments.language)
    encoder = TextEncoder(language.model)
    tokenize = CaptionTokenizer(language.tokenizer, arguments.length)
    run = nnx.jit(lambda encoder, ids, mask: encoder(ids, mask).embeddings)

    def embed(group: list[str]) -> tuple[np.ndarray, np.ndarray]:
        # Always a full batch, so that one compiled program serves all.
        ids, mask = tokenize([*group, *[None] * (arguments.batch - len(group))])
        values = np.asarray(jax.device_get(run(encoder, ids, mask)), np.float32)
        return values[: len(group)], mask[: len(group)]

    console = PlainConsole()
    shown = track(captions, "embedding", console, total=len(captions), only_on_terminal=True)
    output = write_embeddings(
        arguments.output,
        shown,
        embed,
        length=arguments.length,
        model=language.sha256,
        batch=arguments.batch,
    )
    if tokenize.truncated:
        console.print(f"{tokenize.truncated} of {tokenize.seen} captions were cut")
    console.print(f"written: {output}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_cli(main)
