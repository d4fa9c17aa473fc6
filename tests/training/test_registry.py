"""Tasks by name: all of them load, an unknown one is refused with the names that there are."""

import pytest

from pyratok_jax import demo
from pyratok_jax.errors import UserError
from pyratok_jax.training.registry import TASKS, lookup


@pytest.mark.parametrize("name", [*TASKS, *demo.TASKS])
def test_every_task_loads(name):
    assert callable(lookup(TASKS | demo.TASKS, name, "task"))


def test_an_unknown_name_is_refused():
    with pytest.raises(
        UserError, match="config.task is 'gan', expected one of generator, projector, token"
    ):
        lookup(TASKS, "gan", "task")
