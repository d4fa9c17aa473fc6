"""Checkpoint folders on the Hugging Face Hub: `hf://ORG/NAME[@REVISION][/SUBFOLDER]`.

Only safetensors and the text files beside them are downloaded, into the Hub's own cache. Archives
that could hold code (pickles) are never fetched.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pyratok_jax.errors import UserError
from pyratok_jax.io.mirror import cached_folder
from pyratok_jax.io.remote import AnyPath, is_remote, open_path

PREFIX = "hf://"
_PATTERN = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<folder>[\w./-]+?))?/?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.md")
DESCRIPTIONS = ("*.json",)


class HubFolder(NamedTuple):
    """A folder of a repository: `revision` is a branch, a tag or a commit."""

    repo: str
    revision: str = "main"
    folder: str = ""

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}@{self.revision}" + (f"/{self.folder}" if self.folder else "")


def parse_hub(spec: str) -> HubFolder:
    """The folder that `hf://...` names.

    A revision ends at the first slash.

    Raises:
        UserError: not of that form.
    """
    match = _PATTERN.fullmatch(spec)
    if match is None or ".." in (match["folder"] or "").split("/"):
        raise UserError(f"{spec}: expected hf://ORG/NAME[@REVISION][/SUBFOLDER]")
    return HubFolder(match["repo"], match["revision"] or "main", match["folder"] or "")


def checkpoint_folder(spec: str | AnyPath, what: str, shipped: Mapping[str, Path]) -> AnyPath:
    """The folder of a training, or of what it published.

    On a storage service it is read where it lies, from the Hub it is downloaded.

    Args:
        spec: a folder, `gs://...`, `hf://...` or `builtin:NAME`.
        what: is looked for, in words.
        shipped: folders of the package by `builtin:NAME`.

    Raises:
        UserError: none of that name is shipped; see also `local_folder` and `io.remote.open_path`.
    """
    if is_remote(spec) and not str(spec).startswith(PREFIX):
        return open_path(spec)
    if not str(spec).startswith("builtin:"):
        return local_folder(spec)
    if str(spec) not in shipped:
        raise UserError(f"no shipped {what} {spec}; there is {', '.join(shipped)}")
    return shipped[str(spec)]


def local_folder(spec: str | Path, *, only: tuple[str, ...] = FILES) -> Path:
    """The local folder of a specification; what is elsewhere is downloaded into a cache.

    Args:
        spec: a folder, local or on a storage service (`gs://...`), or `hf://...`.
        only: patterns of the files that are needed.

    Raises:
        UserError: no such repository, revision or folder, or the Hub cannot be reached and the
            files are not in the cache.
    """
    if not str(spec).startswith(PREFIX):
        try:
            # Converted weights also lie in folders of arrays, which the Hub's patterns leave out.
            return cached_folder(spec, ("*",) if only == FILES else only)
        except FileNotFoundError as error:
            raise UserError(f"{spec}: no such folder, or it holds no weights") from error
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    wanted = parse_hub(str(spec))
    start = f"{wanted.folder}/" if wanted.folder else ""
    disable_progress_bars()
    try:
        root = snapshot_download(
            wanted.repo, revision=wanted.revision, allow_patterns=[start + name for name in only]
        )
    except Exception as error:
        # Its errors, those of its HTTP library, and of the file system have no common class.
        include = f" --include '{start}*'" if start else ""
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"{spec} cannot be downloaded ({type(error).__name__}: {reason}); where there is a "
            f"network run: hf download {wanted.repo} --revision {wanted.revision}{include}, and "
            "copy its cache (HF_HOME) here, or name the local folder"
        ) from error
    folder = Path(root) / wanted.folder
    if not folder.is_dir():
        raise UserError(f"{spec}: the repository has no folder {wanted.folder} with safetensors")
    return folder


def pinned(spec: str) -> str:
    """The specification with the commit that its revision means now; others as they are."""
    if not spec.startswith(PREFIX):
        return spec
    wanted = parse_hub(spec)
    # A snapshot's folder is named after its commit.
    path = local_folder(spec, only=DESCRIPTIONS)
    commit = next((part for part in reversed(path.parts) if _COMMIT.fullmatch(part)), None)
    return str(wanted._replace(revision=commit)) if commit else spec
