"""Programs that all processes compile before one runs."""

import types

import jax
import jax.numpy as jnp
import pytest

from pyratok_jax.training.distributed import compile_barrier as together
from pyratok_jax.training.distributed.compile_barrier import CompiledTogether


@pytest.fixture
def events(monkeypatch):
    """What happens at the coordinator of a run of two processes, and in the function."""
    found = []
    client = types.SimpleNamespace(wait_at_barrier=lambda name, limit: found.append(name))
    state = types.SimpleNamespace(client=client, num_processes=2)
    monkeypatch.setattr(together, "distributed", types.SimpleNamespace(global_state=state))
    return found


def test_processes_meet_between_compilation_and_the_first_run(events):
    def note(x):
        events.append("run")
        return x

    def double(x):
        events.append("traced")
        return jax.pure_callback(note, jax.ShapeDtypeStruct(x.shape, x.dtype), x) * 2

    program = CompiledTogether(jax.jit(double))
    x = jnp.arange(3.0)
    assert not program.knows(x)
    assert program(x).tolist() == [0.0, 2.0, 4.0]
    assert program(x + 1).tolist() == [2.0, 4.0, 6.0]
    jax.effects_barrier()
    assert [e.split("/")[0] for e in events] == ["traced", "pyratok", "run", "run"]
    assert program.knows(x) and not program.knows(jnp.arange(4.0))
    program(jnp.arange(4.0)).block_until_ready()
    assert [e.split("/")[0] for e in events[4:]] == ["traced", "pyratok", "run"]
    assert events[1] != events[5]  # A barrier can be used once.


def test_a_process_alone_meets_nobody():
    together.meet()
    assert CompiledTogether(jax.jit(lambda x, y: x + y))(jnp.ones(2), jnp.ones(2)).tolist() == [
        2,
        2,
    ]
