"""Saves a training's state that 8 devices hold copies of, restores it, and prints a JSON report.

Argument: the folder.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pyratok_jax.training.checkpoints import Checkpoints
from pyratok_jax.training.config import training_config
from pyratok_jax.training.step import initial_state


def main(folder: str) -> None:
    mesh = jax.make_mesh((8,), ("data",))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = {f"w{n}": jnp.full((16, 8 * n), n, jnp.float32) for n in range(1, 6)}
    state = jax.device_put(initial_state(params, optax.adam(1e-3)), replicated)
    checkpoints = Checkpoints(folder, training_config())
    compiled: list[str] = []

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    checkpoints.save(state, {"step": 0})
    count = len(compiled)
    checkpoints.wait()
    restored = checkpoints.restore(state)
    assert restored is not None
    found, data = restored
    checkpoints.close()
    same = all(jax.tree.leaves(jax.tree.map(np.array_equal, found, state)))
    print(json.dumps({"compiled": count, "same": same, "data": data}))


if __name__ == "__main__":
    main(sys.argv[1])
