"""Trainings in processes that a test starts: `python -m tests.training.worker SETTINGS`.

SETTINGS is a JSON list of trainings, done one after the other, each with

- world, workdir; `task`: "small" (default; `configs/demo.py` made small), "demo" (the same on small
  clips, else as it is) or "line" (a weight and a bias, nothing to compile);
- config, mesh, optimizer: changes; buckets: in place of its own; output: a .npz of parameters,
  before (start/) and after, and the optimizer's state (opt/);
- shards: a JSON file for the shape of every device's part of the first batch's video, and how many
  unlike parts there are;
- accident: [process, step, what]: the process meets it when it takes the batch of that step; what
  is the name of a signal, "error" (raises) or "sleep" (for a minute).
"""

import ctypes
import gc
import json
import os
import runpy
import signal
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from pyratok_jax.checkpoints.foreign import lpips as published
from pyratok_jax.errors import EXIT_INTERRUPTED, run_cli
from pyratok_jax.models.perceptual import lpips
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.training.config import training_config
from pyratok_jax.training.distributed import sharding
from pyratok_jax.training.distributed.coordinator import AheadOfTime, barrier, join_hosts
from pyratok_jax.training.distributed.heartbeat import heartbeats
from pyratok_jax.training.loop import loop
from pyratok_jax.training.loop.contracts import Batch, Evaluation
from pyratok_jax.training.loop.loop import train
from pyratok_jax.training.registry import EVALUATORS

SMALL_VAE = WanVAEConfig(
    base_dim=4,
    z_dim=4,
    dim_mult=(1, 1, 1),
    num_res_blocks=1,
    temporal_downsample=(False, True),
    latents_mean=(0.0,) * 4,
    latents_std=(1.0,) * 4,
)
NARROW = tuple(spec._replace(channels=spec.channels // 16) for spec in lpips.TRUNKS["vgg"])


def narrow_lpips(net):
    """In place of the published LPIPS: a sixteenth of the channels, random weights.

    NumPy draws them: initialisers compile a program for every shape.
    """
    lpips.TRUNKS[net] = NARROW
    graph, state = nnx.split(nnx.eval_shape(lambda: lpips.LPIPS(net, rngs=nnx.Rngs(0))))
    rng, flat = np.random.default_rng(5), []
    for path, variable in nnx.to_flat_state(state):
        shape = variable.shape
        if len(shape) == 4:
            values = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:3]))
        else:
            # Few random channels would often all be 0, where a direction has no gradient: biases.
            values = np.full(shape, 0.5) if path[-1] == "bias" else rng.uniform(size=shape)
        flat.append((path, variable.replace(jnp.asarray(values, jnp.float32))))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def demo_config(**changes):
    """`configs/demo.py`, every loss and all shipped weights, on clips of 5x32x32, levels drawn."""
    config = runpy.run_path("configs/demo.py")["get_config"]("pyramid")
    config.update(changes)
    config.data.buckets = ("5x32x32",)
    config.model.tokenizer.grids = "pyramid"
    config.calibration.batches = 0
    return config


def small_config(world: Path, **changes):
    """The demo, small: two levels of 6 bits, narrow frozen networks, clips of 3x16x16.

    Small enough for no code to lie within rounding of 0, where any two programs may part.
    """
    config = demo_config(**changes)
    # Ten steps at the demo's own rate would hardly move anything.
    config.optimizer.learning_rate = 1e-3
    # The rates that the demo's text modules have, not a hundred times those: at 0.1 the maps of
    # captions and places, which start at 0, turn one rounding into 5e-5 of the gradient's norm.
    config.optimizer.groups = tuple((name, x / 100) for name, x in config.optimizer.groups)
    config.model.backbone = str(world / "vae")
    config.language.update(spec=str(world / "language"), length=8)
    config.vision.update(spec=str(world / "dino"), projection=8)
    config.model.tokenizer.update(bits=6, width=16, heads=2, synthesis_width=8, lora_rank=2)
    with config.ignore_type():
        config.model.tokenizer.grids, config.model.tokenizer.stages = ((1, 8), (2, 4)), (1, 2)
    config.data.update(sources=(str(world / "videos"),), heldout=(str(world / "heldout"),))
    config.data.buckets = ("3x16x16",)
    return config


class Line(nnx.Module):
    def __init__(self):
        self.weight, self.bias = nnx.Param(jnp.ones((4, 4))), nnx.Param(jnp.zeros(4))


class LineTask:
    """Regression on numbers that follow from step and row."""

    def __init__(self, rows):
        self.system, self.rows, self.step, self.broken = Line(), rows, 0, {}

    def is_trainable(self, name, variable):
        return True

    def make_loader(self, share_of):
        index, count = share_of(self.rows)
        self.first, self.count = index * self.rows // count, self.rows // count
        return self

    def __next__(self):
        rows = np.arange(self.first, self.first + self.count)
        self.step += 1
        x = np.sin(self.step * 7.0 + rows[:, None] + np.arange(4.0)).astype(np.float32)
        return Batch({"x": x, "y": np.cos(x).astype(np.float32)}, self.rows)

    def get_state(self):
        return {"step": self.step}

    def set_state(self, state):
        self.step = state["step"]

    def close(self):
        pass

    def loss(self, system, batch, key, progress):
        found = batch["x"] @ system.weight[...] + system.bias[...]
        value = jnp.mean((found - batch["y"]) ** 2)
        return value, {"square": value, "noise": jax.random.normal(key)}


class WeightNorm:
    """An evaluator of any module: the norm of its trainable arrays, by a program on the mesh."""

    def __init__(self, config, task, *, name, every):
        self.name, self.every, self.steps = name, every, []
        self.norm = AheadOfTime(jax.jit(optax.global_norm))

    def run(self, view, step):
        self.steps.append(step)
        norm = float(self.norm(view.params))
        return Evaluation({"norm": norm}, {"grey": np.full((2, 2, 3), step, np.uint8)})


EVALUATORS["weight_norm"] = "tests.training.worker:WeightNorm"


def make(settings):
    """Config and task."""
    changes = settings.get("config", {})
    if settings.get("task") == "line":
        config = training_config(**changes)
        task = LineTask(config.batch_size)
    else:
        from pyratok_jax.training.tasks.tokenizer import TokenizerTask

        if settings.get("task") == "demo":
            config = demo_config(**changes)
        else:
            published.load_lpips = narrow_lpips
            config = small_config(Path(settings["world"]), **changes)
        config.data.buckets = tuple(settings.get("buckets", config.data.buckets))
        task = TokenizerTask(config)
    config.optimizer.update(settings.get("optimizer", {}))
    config.mesh.update(settings.get("mesh", {}))
    return config, task


def run(settings):
    """One training, with its accident."""
    config, task = make(settings)
    if settings.get("accident"):
        _prepare(task, *settings["accident"])
    if settings.get("shards"):
        _note_shards(Path(settings["shards"]))
    trained = train(config, Path(settings["workdir"]), task)
    _save(trained, settings.get("output"))
    return trained


def _prepare(task, process, step, what):
    def happen(number):
        if number == step and process in (-1, jax.process_index()):
            _happen(what)

    before_each_batch(task, happen)


def before_each_batch(task, call):
    """Have `call(number)` called when this run takes its batch `number`, from 1 on."""
    make_loader = task.make_loader

    def make(share_of):
        return Counted(make_loader(share_of), call)

    task.make_loader = make


class Counted:
    """A loader that calls before each of its batches."""

    def __init__(self, loader, call):
        self.loader, self.call, self.number = loader, call, 0

    def __next__(self):
        self.number += 1
        self.call(self.number)
        return next(self.loader)

    def __getattr__(self, name):
        return getattr(self.loader, name)


def _note_shards(path):
    put = loop.batch_to_mesh

    def noting(batch, mesh, rows):
        arrays = put(batch, mesh, rows)
        shards = arrays["video"].addressable_shards
        places = {str(shard.index) for shard in shards}
        shapes = sorted({shard.data.shape for shard in shards})
        path.write_text(json.dumps({"shapes": shapes, "places": len(places)}))
        loop.batch_to_mesh = put
        return arrays

    loop.batch_to_mesh = noting


def _happen(what):
    if what == "error":
        raise RuntimeError("the disk is on fire")
    if what == "sleep":
        time.sleep(60)
    else:
        os.kill(os.getpid(), signal.Signals[what])


def _save(trained, output):
    """Parameters, first and last, and optimizer state, whole, from process 0."""
    if not output:
        return
    begun = {f"start/{k}": np.asarray(x) for k, x in trained.partition.trainable.items()}
    leaves = {f"opt/{i}": x for i, x in enumerate(jax.tree.leaves(trained.state.opt_state))}
    leaves |= trained.state.params
    here = {k for k, x in leaves.items() if x.is_fully_addressable or x.is_fully_replicated}
    apart = {name: value for name, value in leaves.items() if name not in here}
    if apart:
        mesh = next(iter(apart.values())).sharding.mesh
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        leaves |= jax.jit(lambda tree: tree, out_shardings=whole)(apart)
    if jax.process_index() == 0:
        done = {name: np.asarray(value) for name, value in leaves.items()}
        np.savez(output, **done, **begun)


def without_tensorboard():
    """Its writer loads TensorFlow, which takes longer than these trainings."""
    stub = types.ModuleType("clu.metric_writers")
    stub.SummaryWriter = lambda folder: types.SimpleNamespace(
        write_scalars=lambda *values: None,
        write_images=lambda *values: None,
        write_hparams=lambda *values: None,
        write_texts=lambda *values: None,
        flush=lambda: None,
        close=lambda: None,
    )
    sys.modules["clu.metric_writers"] = stub


def compile_once():
    """Process 0 compiles, the others load what it has kept: only it writes to JAX's cache."""
    compile_now = jax.stages.Lowered.compile

    def waiting(lowered, *arguments, **options):
        if jax.process_index():
            barrier()
        program = compile_now(lowered, *arguments, **options)
        if not jax.process_index():
            barrier()
        if sys.platform == "linux":
            # A step takes up to 4 GB while it is compiled.
            ctypes.CDLL(None).malloc_trim(0)
        return program

    jax.stages.Lowered.compile = waiting


def main():
    # As in the tests' own process: tracing makes many small objects.
    gc.set_threshold(100_000, 20, 50)
    without_tensorboard()
    # Everything is tiny here, and must be split all the same.
    sharding.MIN_SHARDED_SIZE = 16
    if jax.config.jax_compilation_cache_dir:
        compile_once()
    trainings = json.loads(sys.argv[1])
    limits = (trainings[0].get("host_timeout", 60.0), trainings[0].get("step_timeout", 1800.0))
    join_hosts(False, limits[0])
    with heartbeats(*limits):
        done = [run(settings).finished for settings in trainings]
    return 0 if all(done) else EXIT_INTERRUPTED


if __name__ == "__main__":
    run_cli(main)
