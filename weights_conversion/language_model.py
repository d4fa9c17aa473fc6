"""Convert a published language model.

Reads Hugging Face folders (sharded or not, every published naming), Meta's `.pth` with its
`params.json`, and GGUF files. Only the text model is taken; vision weights are recognised, left
out and counted in the report. The tokenizer is copied along.

    python -m weights_conversion.language_model --input DIR_OR_FILE --output weights/qwen2.5-vl-3b
"""

from pathlib import Path

from pyratok_jax.checkpoints.foreign import language_model
from pyratok_jax.checkpoints.foreign.language_config import parse_config, parse_gguf, parse_meta
from pyratok_jax.checkpoints.foreign.language_model import KIND, make_plan
from pyratok_jax.checkpoints.foreign.language_tokenizer import (
    gguf_tokenizer,
    save_tokenizer,
    tokenizer_files,
)
from pyratok_jax.checkpoints.foreign.sources import TensorSource, open_tensors
from pyratok_jax.errors import UserError, run_cli
from pyratok_jax.io import Json
from pyratok_jax.io.documents import read_json
from pyratok_jax.models.language.config import LanguageConfig
from weights_conversion.command import convert, make_parser


def source_config(source: TensorSource) -> LanguageConfig:
    """The configuration beside the weights, or inside them (GGUF).

    Raises:
        UserError: when there is none, or it describes another kind of model.
    """
    layout = language_model.layout_of(source)
    if layout == "gguf":
        return parse_gguf(source)
    folder = source.path if source.path.is_dir() else source.path.parent
    name = "params.json" if layout == "meta" else "config.json"
    if not (folder / name).is_file():
        raise UserError(f"{folder}: no {name}; fetch it into the folder of the weights")
    values = read_json(folder / name, dict[str, Json])
    if layout == "meta":
        return parse_meta(values, source)
    if values.get("eos_token_id") is None and (folder / "generation_config.json").is_file():
        generation = read_json(folder / "generation_config.json", dict[str, Json])
        values["eos_token_id"] = generation.get("eos_token_id")
    return parse_config(values, has_head=language_model.head_key(source) is not None)


def main() -> int:
    """Convert one model."""
    parser = make_parser(__doc__.splitlines()[0])
    arguments = parser.parse_args()
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
