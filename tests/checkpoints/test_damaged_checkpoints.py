"""Any file of a checkpoint or of frozen weights damaged: the same values, or one line of refusal.

A line names the place that is damaged and says what to do; other values never come back.
"""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pyratok_jax.checkpoints.conversion import Entry, match, write_checkpoint
from pyratok_jax.checkpoints.foreign.sources import sources_from_arrays
from pyratok_jax.checkpoints.weights import load_checkpoint
from pyratok_jax.checkpoints.working_folder import read_parameters
from pyratok_jax.errors import UserError
from pyratok_jax.training.checkpoints import Checkpoints
from pyratok_jax.training.config import training_config
from pyratok_jax.training.step import initial_state

WAYS = ("flipped", "cut", "emptied", "removed", "swapped")
DATA = [{"loader": {"step": step, "seed": 0}, "pending": [0.5 * step]} for step in (0, 1, 2)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRATOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYRATOK_VERIFY", raising=False)
    monkeypatch.setattr(logging.getLogger("absl"), "disabled", True)


def state_of(step):
    rng = np.random.default_rng(step)
    params = {"w": jnp.asarray(rng.normal(size=(8, 5)), jnp.float32), "v": jnp.full((3,), step)}
    state = initial_state(jax.tree.map(lambda x: x.astype(jnp.float32), params), optax.adam(1e-3))
    return state._replace(step=jnp.asarray(step, state.step.dtype))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A working folder with checkpoints of steps 1 and 2, of different values."""
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder, training_config())
    for step in (1, 2):
        checkpoints.save(state_of(step), DATA[step])
    checkpoints.close()
    return folder


def damage(file, other, way, rng):
    """Damage a file; `other` is the one in its place in another checkpoint."""
    data = file.read_bytes()
    if way == "removed":
        file.unlink()
    elif way == "swapped":
        shutil.copy(other, file)
    elif way == "flipped":
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        file.write_bytes(bytes(changed))
    else:
        file.write_bytes(data[: len(data) // 2 if way == "cut" else 0])


def same(found, expected):
    return jax.tree.all(jax.tree.map(np.array_equal, dict(found), dict(expected)))


def refused_or_same(read, place):
    """Whether the right values came; anything but a line about `place` is an error."""
    try:
        assert read()
        return True
    except UserError as error:
        text = str(error)
        assert "\n" not in text and len(text) < 2000 and place in text, text
        assert any(word in text for word in ("remove", "restore", "convert", "put")), text
        return False


def cases(folder, other, rng, turns):
    """(file below `folder`, its name below it, way), every file in some ways."""
    names = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
    names = [name for name in names if (folder / name).stat().st_size]
    for turn in range(turns):
        for number, name in enumerate(names):
            way = WAYS[(turn + number) % len(WAYS)]
            if way == "swapped" and not (other / name).is_file():
                way = "flipped"
            yield name, way


def test_resuming_and_loading_a_damaged_checkpoint(run_folder, tmp_path):
    rng, whole, results = np.random.default_rng(0), state_of(2), []
    newest = run_folder / "checkpoints" / "2"
    for name, way in cases(newest, newest.with_name("1"), rng, 2):
        folder = tmp_path / "copy"
        shutil.copytree(run_folder, folder)
        place = folder / "checkpoints" / "2"
        damage(place / name, newest.with_name("1") / name, way, rng)

        def resume(folder=folder):
            checkpoints = Checkpoints(folder, training_config())
            try:
                found = checkpoints.restore(state_of(0))
            finally:
                checkpoints.close()
            state, data = found
            return same(state._asdict(), whole._asdict()) and data == DATA[2]

        results.append((name, way, refused_or_same(resume, "checkpoints/2")))
        shutil.rmtree(folder)
        shutil.copytree(run_folder, folder)
        damage(place / name, newest.with_name("1") / name, way, rng)

        def load(folder=folder):
            return same(read_parameters(folder, 2), whole.params)

        refused_or_same(load, str(place))
        shutil.rmtree(folder)
    assert {result for _, _, result in results} == {True, False}


ARRAYS = {"a.kernel": np.arange(60, dtype=np.float32).reshape(12, 5), "b": np.ones(4, np.float32)}
SHAPES = {name: array.shape for name, array in ARRAYS.items()}


def converted(folder, arrays):
    plan = match(sources_from_arrays(arrays), [Entry(n, n) for n in arrays], SHAPES)
    return write_checkpoint(folder, kind="wan_vae", config={"width": 3}, plan=plan)


def test_loading_damaged_frozen_weights(tmp_path):
    rng, results = np.random.default_rng(1), []
    whole = converted(tmp_path / "whole", ARRAYS)
    other = converted(tmp_path / "other", {name: array + 1 for name, array in ARRAYS.items()})
    for name, way in cases(whole, other, rng, 3):
        folder = tmp_path / "copy"
        shutil.copytree(whole, folder)
        damage(folder / name, other / name, way, rng)

        def load(folder=folder):
            return same(load_checkpoint(folder, SHAPES), ARRAYS)

        results.append((name, way, refused_or_same(load, str(folder))))
        shutil.rmtree(folder)
    assert {result for _, _, result in results} == {True, False}
