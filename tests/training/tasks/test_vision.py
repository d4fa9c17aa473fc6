"""The small vision network's training: what learns, what stays, and that it learns."""

import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.checkpoints.pretrained import load_vision
from pyratok_jax.demo.vision import VisionTask
from pyratok_jax.errors import UserError
from pyratok_jax.models.perceptual.lpips import LPIPS
from pyratok_jax.training.distributed.transfer import DataShard


@pytest.fixture
def task(monkeypatch):
    """With a random teacher: its published weights are large."""
    monkeypatch.setattr(
        "pyratok_jax.checkpoints.foreign.lpips.load_lpips", lambda net: LPIPS(net, rngs=nnx.Rngs(7))
    )
    config = runpy.run_path("configs/demo_vision.py")["get_config"]("smoke")
    config.model.update({"width": 16, "layers": 1, "heads": 2, "hidden": 16, "registers": 1})
    return VisionTask(config)


def test_student_and_heads_learn_from_a_frozen_teacher(task):
    partition = Partition(task.system, task.is_trainable)
    assert all(name.startswith("teacher.") for name in partition.frozen) and partition.frozen
    video = jax.random.randint(jax.random.key(0), (4, 1, 32, 32, 3), 0, 256).astype(jnp.uint8)
    # One colour per picture, so that pictures differ.
    video = video // 8 + jnp.arange(4, dtype=jnp.uint8)[:, None, None, None, None] * 50
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        def loss(params):
            system = partition.merge(params, partition.frozen)
            return task.loss(system, {"video": video}, jax.random.key(1), jnp.float32(0))

        (_, terms), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, terms, grads

    params, state = partition.trainable, optimizer.init(partition.trainable)
    _, _, first, grads = step(params, state)
    for part in ("student.embed", "student.blocks.0", "student.class_token", "patch_head"):
        assert any(part in name and np.abs(g).max() > 0 for name, g in grads.items()), part
    for _ in range(30):
        params, state, last, _ = step(params, state)
    assert float(last["patches"]) < 0.6 * float(first["patches"])
    assert float(last["summary"]) < 0.6 * float(first["summary"])


def test_several_processes_are_refused(task):
    with pytest.raises(UserError, match="trains in one process, not in 2"):
        task.make_loader(lambda rows: DataShard(0, 2))


def test_shipped_sizes_are_the_config():
    config = runpy.run_path("configs/demo_vision.py")["get_config"]()
    assert load_vision("builtin:demo-vision").config.to_dict() == config.model.to_dict()
