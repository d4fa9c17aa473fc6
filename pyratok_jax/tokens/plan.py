"""What an export is to produce: its options, provenance, and which record goes to which shard."""

import ast
import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from etils import epath
from jaxtyping import UInt32

from pyratok_jax.data.sources.fingerprints import clip_identity, shard_identity
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.sources.shards import ShardRecords
from pyratok_jax.errors import UserError, short
from pyratok_jax.io import Json, text_bytes
from pyratok_jax.io.atomic import write_json
from pyratok_jax.io.documents import read_json
from pyratok_jax.io.sharded_job import ShardedJob
from pyratok_jax.tokens.options import ExportOptions
from pyratok_jax.tokens.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import TokenizerLike

PLAN = "export.json"
DATASET = "tokens"
# What turns a clip's frames and caption into tokens, with all that these modules import.
_ENCODER_MODULES = ("tokenizer", "tokens.blocks", "data.padding")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """By what the tokens were made; `vocabulary` and `bits` bound the ids."""

    checkpoint: str
    code: str
    text_encoder: str
    bits: int
    vocabulary: int
    grids: tuple[tuple[int, int], ...]


def provenance_of(tokenizer: "TokenizerLike") -> Provenance:
    """Hashes and sizes of a `tokenizer.Tokenizer`."""
    config = tokenizer.config
    return Provenance(
        tokenizer.checkpoint_hash, encoder_code_hash(), _text_encoder(tokenizer), config.bits,
        config.vocabulary_size, config.grids,
    )  # fmt: skip


@functools.cache
def encoder_code_hash() -> str:
    """SHA-256 (first 16 digits) of the source code that turns frames into tokens."""
    return code_hash(Path(__file__).parents[1], _ENCODER_MODULES)


def code_hash(package: Path, modules: Sequence[str]) -> str:
    """SHA-256 (first 16 digits) of the sources of modules and of everything that they import."""
    digest = hashlib.sha256()
    for file in import_closure(package, modules):
        digest.update(f"{file.relative_to(package).as_posix()}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def import_closure(package: Path, modules: Sequence[str]) -> list[Path]:
    """The files of a package's modules and of the modules of that package that they import.

    Imports are read from the sources, those inside functions included. The `__init__` of a
    sub-package counts where something is imported from it, not where a module below it is.

    Args:
        package: the folder of the package.
        modules: dotted names within it.

    Returns:
        Files, sorted.
    """
    found: set[Path] = set()
    waiting = [f"{package.name}.{name}" for name in modules]
    while waiting:
        file = _module_file(package, waiting.pop())
        if file is not None and file not in found:
            found.add(file)
            waiting += _imported(file)
    return sorted(found)


def _module_file(package: Path, name: str) -> Path | None:
    """The file of a module, or of the module or sub-package that holds the object so named."""
    parts = name.split(".")
    folder, found = package, None
    for part in parts[1:] if parts[0] == package.name else ():
        folder = folder / part
        module = folder.with_suffix(".py")
        if module.is_file():
            return module
        if (folder / "__init__.py").is_file():
            found = folder / "__init__.py"
    return found


def _imported(file: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _text_encoder(tokenizer: "TokenizerLike") -> str:
    if tokenizer.text is None:
        return ""
    if tokenizer.folder is None:
        return "unnamed"
    try:
        said = read_json(tokenizer.folder / "tokenizer.json")["language_model"]
        return f"{said['spec']} sha256:{said['sha256'][:16]} length:{said['length']}"
    except (UserError, TypeError, KeyError):
        return "unnamed"


def flip_key(seed: int, clip: str, block: int) -> UInt32[np.ndarray, "2"]:
    """Random key of a block's flips, which follow from the seed and its place alone."""
    name = text_bytes(f"{seed}\0{block}\0{clip}")
    return np.frombuffer(hashlib.sha256(name).digest()[:8], "<u4")


def source_fingerprint(records: Sequence[ClipRecord]) -> str:
    """Hash of a source's clips with sizes and times of their files, or of its shards.

    No clip is read, and no folder's name counts: see `data.sources.fingerprints`.

    Raises:
        UserError: an id that is there twice.
    """
    digest = hashlib.sha256(str(len(records)).encode())
    if isinstance(records, ShardRecords):
        for file in records.files:
            digest.update(shard_identity(file))
        return digest.hexdigest()[:16]
    seen: set[str] = set()
    for r in records:
        if r.id in seen:
            raise UserError(f"the input holds two clips with the id {r.id}; make the ids unique")
        seen.add(r.id)
        digest.update(clip_identity(r))
    return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class ExportPlan:
    """An export: which clips, made into tokens by what, with which options."""

    output: str
    options: ExportOptions
    provenance: Provenance
    source: str
    source_hash: str
    clips: int

    def to_dict(self) -> dict[str, Json]:
        """Plain values for JSON."""
        return {
            "schema": SCHEMA_VERSION,
            "source": self.source,
            "source_hash": self.source_hash,
            "clips": self.clips,
            "options": self.options.to_dict(),
            "provenance": dataclasses.asdict(self.provenance),
        }

    @property
    def job(self) -> ShardedJob:
        """The dataset's shards; the counts of codes (npz) belong to every report."""
        return ShardedJob(
            self.output, DATASET, self.options.format, self.options.shards, companions=("npz",)
        )

    def clips_of(self, shard: int) -> range:
        """The numbers of a shard's clips: consecutive, whatever the number of hosts."""
        shards = self.options.shards
        return range(self.clips * shard // shards, self.clips * (shard + 1) // shards)

    def write_or_compare(self) -> None:
        """Leave the plan in the output, or make sure that the one there is the same.

        Raises:
            UserError: the output holds another export.
        """
        path = epath.Path(self.output) / PLAN
        if not path.exists():
            write_json(path, self.to_dict())
            return
        found = read_json(path, dict[str, Json], advice="give another --output")
        wanted = json.loads(json.dumps(self.to_dict()))
        # The same clips may be named in another way, for example by an absolute path.
        different = [k for k in wanted if k != "source" and found.get(k) != wanted[k]]
        if different:
            raise UserError(
                f"{self.output} holds an export that differs in {_difference(found, wanted)}; "
                "continue it with what it was begun with, or give another --output"
            )


def _difference(found: dict[str, Json], wanted: dict[str, Json]) -> str:
    for key, value in wanted.items():
        other = found.get(key)
        if key == "source" or other == value:
            continue
        if isinstance(value, dict) and isinstance(other, dict):
            return _difference(other, value)
        clips = "the list of clips or their files (sizes and times of change)"
        names = {"source_hash": clips, "code": "the encoder's source code"}
        return f"{names.get(key, key)} ({short(other, 100)}, now {short(value, 100)})"
    return "nothing"
