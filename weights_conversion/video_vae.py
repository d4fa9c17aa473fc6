"""Convert a published video VAE of any family.

    python -m weights_conversion.video_vae --input Wan2.1_VAE.pth --output vae

The family is told from the names of the tensors; every other flag goes to its own converter
(`python -m weights_conversion.wan_vae --help`). A new family is a converter module and an entry in
`CONVERTERS`.
"""

import argparse
import sys
from collections.abc import Callable
from typing import NamedTuple

from pyratok_jax.checkpoints.foreign.sources import TensorSource, open_tensors
from pyratok_jax.errors import UserError, run_cli
from weights_conversion import wan_vae


class Converter(NamedTuple):
    """The converter of one family of VAEs.

    Attributes:
        recognises: whether tensors are of this family, from their names and shapes.
        main: its command, which takes the command line's arguments.
    """

    recognises: Callable[[TensorSource], bool]
    main: Callable[[list[str] | None], int]


# By the names in `pyratok_jax.models.vae_families`.
CONVERTERS: dict[str, Converter] = {"wan": Converter(wan_vae.recognises, wan_vae.main)}


def main(arguments: list[str] | None = None) -> int:
    """Convert one VAE with the converter of its family.

    Raises:
        UserError: tensors of no known family.
    """
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=f"Families: {', '.join(CONVERTERS)}. Other flags: see weights_conversion.wan_vae.",
    )
    parser.add_argument("--input", required=True, help="weights file, shard index or folder")
    parser.add_argument("--family", choices=[*CONVERTERS], help="default: told from the tensors")
    arguments = sys.argv[1:] if arguments is None else arguments
    options, others = parser.parse_known_args(arguments)
    source = None if options.family else open_tensors(options.input)
    for name, converter in CONVERTERS.items():
        if name == options.family or (source is not None and converter.recognises(source)):
            return converter.main(["--input", options.input, *others])
    raise UserError(
        f"{options.input}: the names of its tensors are of no known VAE; known families are "
        f"{', '.join(CONVERTERS)}"
    )


if __name__ == "__main__":
    run_cli(main)
