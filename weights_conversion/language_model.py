"""Convert a published language model.

Reads Hugging Face folders (sharded or not, every published naming), Meta's `.pth` with its
`params.json`, and GGUF files. Only the text model is taken; vision weights are recognised, left
out and counted in the report. The tokenizer is copied along.

    python -m weights_conversion.language_model --input DIR_OR_FILE --output weights/qwen2.5-vl-3b
"""

from pathlib import Path

from pyratok_jax.errors import run_cli
from weights_conversion.command import convert, make_parser


def main() -> int:
    """Convert one model."""
    parser = make_parser(__doc__.splitlines()[0])
    arguments = parser.parse_args()
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax.checkpoints.foreign.language_model import KIND, make_plan
    from pyratok_jax.checkpoints.foreign.language_tokenizer import (
        gguf_tokenizer,
        save_tokenizer,
        tokenizer_files,
    )
    from pyratok_jax.checkpoints.foreign.sources import open_tensors
    from weights_conversion.networks.language_model import source_config

    source = open_tensors(arguments.input)
    config = source_config(source)
    plan = make_plan(source, config)
    kept, files = None, tokenizer_files(source.path.parent)
    if Path(arguments.input).is_dir():
        files = tokenizer_files(Path(arguments.input))
    if not files and source.kind == "gguf":
        kept, files = save_tokenizer(gguf_tokenizer(source))
    try:
        return convert(
            arguments,
            kind=KIND,
            config=config.to_dict(),
            plan=plan,
            copy=files,
            title=f"{config.family} language model",
        )
    finally:
        if kept is not None:
            kept.cleanup()


if __name__ == "__main__":
    run_cli(main)
