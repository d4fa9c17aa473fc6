"""CLIP weights for CLIPSIM, from a transformers folder such as openai/clip-vit-base-patch32.

    python -m weights_conversion.clip --input hf://openai/clip-vit-base-patch32 --output clip

The folder's tokenizer files are copied beside the weights.
"""

from pathlib import Path

from pyratok_jax.errors import UserError, run_cli
from weights_conversion.command import convert, make_parser


def main(arguments: list[str] | None = None) -> int:
    """Convert one CLIP."""
    options = make_parser(__doc__.splitlines()[0]).parse_args(arguments)
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax.checkpoints.foreign.language_tokenizer import (
        load_tokenizer_files,
        tokenizer_files,
    )
    from pyratok_jax.checkpoints.foreign.sources import open_tensors
    from pyratok_jax.checkpoints.scorers import CLIP_KIND
    from weights_conversion.networks.clip import make_plan, read_sizes

    folder = Path(options.input)
    if not folder.is_dir():
        raise UserError(f"--input {folder}: expected a transformers folder with config.json")
    config = read_sizes(folder / "config.json")
    load_tokenizer_files(folder)  # Refused here, not when it is needed.
    plan = make_plan(open_tensors(folder), config)
    return convert(
        options, kind=CLIP_KIND, config=config.to_dict(), plan=plan, copy=tokenizer_files(folder),
        title="CLIP",
    )  # fmt: skip


if __name__ == "__main__":
    run_cli(main)
