"""Saving what 8 devices hold copies of."""

import os
import subprocess
import sys
from pathlib import Path

from tests.compiler_flags import quick_flags

SAVE = """
import sys
import jax, numpy as np, optax
from pyratok_jax.training.checkpoints import Checkpoints
from pyratok_jax.training.config import training_config
from pyratok_jax.training.step import initial_state

mesh = jax.make_mesh((8,), ("data",))
everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
params = {f"w{n}": np.full((16, 8 * n), n, np.float32) for n in range(1, 6)}
state = jax.device_put(initial_state(params, optax.adam(1e-3)), everywhere)
checkpoints = Checkpoints(sys.argv[1], training_config())
compiled = []
def note(event, seconds, **_):
    if "backend_compile" in event:
        compiled.append(event)
jax.monitoring.register_event_duration_secs_listener(note)
checkpoints.save(state, {"step": 0})
print("compiled", len(compiled))
checkpoints.wait()
found, data = checkpoints.restore(state)
checkpoints.close()
same = jax.tree.map(np.array_equal, found, state)
print("same", all(jax.tree.leaves(same)), data)
"""


def test_a_save_compiles_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SAVE, str(tmp_path / "run")],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"XLA_FLAGS": quick_flags(8)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "compiled 0\nsame True {'step': 0}\n", done.stderr[-2000:]
    assert "handler" not in done.stderr
