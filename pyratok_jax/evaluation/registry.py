"""The tasks by name. A task's module is imported when it is used, so that none drags in another."""

import importlib

from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.framework import Task

TASKS: dict[str, str] = {
    "reconstruction": "pyratok_jax.evaluation.tasks.reconstruction:Reconstruction",
    "compression": "pyratok_jax.evaluation.tasks.compression:Compression",
    "segmentation": "pyratok_jax.evaluation.tasks.segmentation:Segmentation",
    "localization": "pyratok_jax.evaluation.tasks.localization:Localization",
    "classification": "pyratok_jax.evaluation.tasks.classification:Classification",
    "probes": "pyratok_jax.evaluation.tasks.probes:Probes",
    "vqa": "pyratok_jax.evaluation.tasks.vqa:VideoQuestions",
    "codebook": "pyratok_jax.evaluation.tasks.codebook:Codebook",
}


def load_task(name: str) -> type[Task]:
    """The class of a task.

    Raises:
        UserError: there is none of that name.
    """
    if name not in TASKS:
        raise UserError(f"no task {name}; expected one of {', '.join(TASKS)}, or list")
    module, _, attribute = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
