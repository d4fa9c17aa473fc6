"""Config files by path or by name: `configs/demo.py:smoke`, `demo:smoke`, `/path/to/mine.py`.

The project's own configs are found in any folder: in a checkout they are in `configs/` beside the
package, in an installed wheel in `pyratok_jax/configs/`.
"""

import difflib
from pathlib import Path

import pyratok_jax
from pyratok_jax.errors import UserError


def resolve_config(named: str) -> str:
    """FILE[:ARGUMENT] of the config that a command line names.

    Args:
        named: FILE[:ARGUMENT], or NAME[:ARGUMENT] of one of the project's own configs. A path
            `configs/NAME.py` that does not exist in the current folder means the project's.

    Raises:
        UserError: no such file and no such name; says which there are.
    """
    text, colon, argument = named.partition(":")
    if Path(text).is_file():
        return named
    known = shipped_configs()
    path = Path(text)
    own = path.suffix in ("", ".py") and path.parent in (Path(), Path("configs"))
    if own and path.stem in known:
        return f"{known[path.stem]}{colon}{argument}"
    near = difflib.get_close_matches(path.stem, known, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise UserError(
        f"--config {named}: no such file{meant}; name a file, or one of {', '.join(known)}"
    )


def shipped_configs() -> dict[str, Path]:
    """The project's own configs by name."""
    package = Path(pyratok_jax.__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        files = sorted(folder.glob("[a-z]*.py"))
        if files:
            return {file.stem: file for file in files}
    return {}
