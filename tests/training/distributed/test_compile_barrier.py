"""Programs that all processes have compiled before one of them runs; the one use of private JAX."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pyratok_jax.training.distributed import coordinator
from pyratok_jax.training.distributed.coordinator import AheadOfTime, Coordinator

ROOT = Path(__file__).parents[3]


class Client:
    """Notes barriers in place of the coordination service's."""

    def __init__(self, events):
        self.events = events

    def wait_at_barrier(self, name, limit):
        self.events.append(name)


@pytest.fixture
def events(monkeypatch):
    """What happens at the coordinator of a run of two processes, and in the function."""
    found = []
    service = Coordinator(Client(found), 0, 2, "127.0.0.1:1")
    monkeypatch.setattr(coordinator, "coordinator", lambda: service)
    return found


def test_processes_wait_between_compilation_and_the_first_run(events):
    def note(x):
        events.append("run")
        return x

    def double(x):
        events.append("traced")
        return jax.pure_callback(note, jax.ShapeDtypeStruct(x.shape, x.dtype), x) * 2

    program = AheadOfTime(jax.jit(double))
    x = jnp.arange(3.0)
    assert not program.is_compiled(x)
    assert program(x).tolist() == [0.0, 2.0, 4.0]
    assert program(x + 1).tolist() == [2.0, 4.0, 6.0]
    jax.effects_barrier()
    assert [e.split("/")[0] for e in events] == ["traced", "pyratok", "run", "run"]
    assert program.is_compiled(x) and not program.is_compiled(jnp.arange(4.0))
    program(jnp.arange(4.0)).block_until_ready()
    assert [e.split("/")[0] for e in events[4:]] == ["traced", "pyratok", "run"]
    assert events[1] != events[5]  # A barrier can be used once.


def test_a_process_alone_waits_for_nobody():
    coordinator.barrier()
    add = AheadOfTime(jax.jit(lambda x, y: x + y))
    assert add(jnp.ones(2), jnp.ones(2)).tolist() == [2, 2]


def test_private_jax_is_used_in_one_file():
    private = re.compile(r"^\s*(from|import)\s+jax\._src|jax\._src\.", re.MULTILINE)
    found = [
        path.relative_to(ROOT).as_posix()
        for folder in ("pyratok_jax", "weights_conversion", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if private.search(path.read_text())
    ]
    assert found == ["pyratok_jax/training/distributed/coordinator.py"]
