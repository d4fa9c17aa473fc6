"""Compiled programs, kept between the runs of a command."""

import os
import sys
from pathlib import Path

from pyratok_jax.assets.fetch import cache_folder
from pyratok_jax.errors import UserError

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.5,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    # The programs that were used last; a training step of the full size takes some 100 MB.
    "jax_compilation_cache_max_size": 4 << 30,
}


def keep_programs(folder: Path | None = None) -> Path | None:
    """Have XLA's programs written to disk, where later runs and resumed ones find them.

    JAX finds a program by its code, the compiler's version and the machine. Must be called before
    the first compilation.

    Args:
        folder: None: `programs` in the cache folder, unless the user has set JAX's own variable
            `JAX_COMPILATION_CACHE_DIR`, empty for no cache.

    Returns:
        where they are kept; None where they are not.
    """
    if folder is None:
        if VARIABLE in os.environ:
            return Path(os.environ[VARIABLE]) if os.environ[VARIABLE] else None
        try:
            folder = cache_folder() / "programs"
            folder.mkdir(mode=0o700, exist_ok=True)  # What is executed is nobody else's to write.
        except (UserError, OSError):
            return None  # Without a place to keep them they are compiled every time.
    settings: dict[str, str | float] = {"jax_compilation_cache_dir": str(folder), **_SETTINGS}
    if "jax" in sys.modules:
        import jax

        for name, value in settings.items():
            jax.config.update(name, value)
    else:
        # Read when JAX is imported: a command that ends in a refusal never imports it.
        os.environ.update({name.upper(): str(value) for name, value in settings.items()})
    return folder
