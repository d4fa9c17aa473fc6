"""Runs a module's `main`, and ends with 7 if an import is replaced while there are threads.

Arguments: the module, and the arguments that it is to find.
"""

import importlib
import os
import sys
import threading
import traceback
from contextlib import AbstractContextManager
from typing import Any

from etils import epy

_lazy_imports = epy.lazy_imports


def guarded(**options: Any) -> AbstractContextManager:
    if threading.active_count() > 1:
        traceback.print_stack()
        os._exit(7)
    return _lazy_imports(**options)


if __name__ == "__main__":
    epy.lazy_imports = guarded
    sys.argv = sys.argv[1:]
    importlib.import_module(sys.argv[0]).main()
