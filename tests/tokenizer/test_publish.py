"""A trained tokenizer is one portable folder: elsewhere, bundled, published, from the Hub."""

import json
import os
import shutil
import socket

import numpy as np
import pytest

import pyratok_jax as pt
from pyratok_jax import publish
from pyratok_jax.checkpoints.hub import HubFolder, local_folder, parse_hub, pinned
from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.errors import UserError
from pyratok_jax.training.checkpoints import Checkpoints
from pyratok_jax.training.distributed.sharding import make_mesh
from pyratok_jax.training.loop.loop import place
from pyratok_jax.training.tasks.tokenizer import TokenizerTask
from tests.gcs_server import upload
from tests.hub_server import COMMIT, HubServer
from tests.training.tiny import clip, make_world, tiny_config


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """A working folder with a checkpoint of step 0, as a training writes it."""
    workdir = tmp_path_factory.mktemp("run") / "work"
    config = tiny_config(world)
    task = TokenizerTask(config)
    partition = Partition(task.system, task.is_trainable)
    checkpoints = Checkpoints(workdir, config)
    state, _, _ = place(partition, config, make_mesh(config.mesh))
    checkpoints.save(state, {"loader": {}})
    checkpoints.close()
    task.describe(workdir)
    rows = [{"name": "trained", "psnr": 23.456, "ssim": 0.7, "bpp": 0.3}]
    metrics = {"heldout": rows, "checkpoint": pt.load_tokenizer(workdir).checkpoint_hash}
    (workdir / "metrics.json").write_text(json.dumps(metrics))
    return workdir


@pytest.fixture(scope="module")
def published(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "folder"
    publish.main([str(run), "--output", str(folder), "--bundle", "backbone", "language"])
    return folder


@pytest.fixture(scope="module")
def whole(published):
    """What is in the published folder."""
    return pt.load_tokenizer(published)


def same(one, other):
    video = clip(1)[0]
    first, second = one.encode(video, "a red square"), other.encode(video, "a red square")
    equal = all(np.array_equal(a, b) for a, b in zip(first.ids, second.ids, strict=True))
    return equal and one.checkpoint_hash == other.checkpoint_hash


def test_a_published_folder_gives_the_tokens_of_the_run(run, published, world, monkeypatch):
    """In another folder, the original weights gone: all is in the published one."""
    tokenizer = pt.load_tokenizer(run)
    names = {str(path.relative_to(published)) for path in published.rglob("*") if path.is_file()}
    assert {"README.md", "model.safetensors", "tokenizer.json", "training_config.json"} <= names
    assert {"frozen/backbone/model.safetensors", "frozen/language/tokenizer.json"} <= names
    assert not [name for name in names if "ocdbt" in name or name.endswith((".bin", ".pkl"))]
    card = (published / "README.md").read_text()
    assert "23.46" in card and "load_tokenizer" in card and "training_config.json" in card
    modes = {(published / name).stat().st_mode & 0o777 for name in names}
    assert len(modes) == 1  # Weights are as readable as the card.
    monkeypatch.chdir(published.parent)
    assert str(world) not in (published / "tokenizer.json").read_text()
    assert same(tokenizer, pt.load_tokenizer(published))


@pytest.mark.parametrize("of", [None, "ab" * 32])
def test_a_card_shows_no_figures_of_another_checkpoint(run, tmp_path, of):
    shutil.copytree(run, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics | {"checkpoint": of}))
    publish.main([str(tmp_path / "run" / "checkpoints" / "0"), "--output", str(tmp_path / "out")])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Nothing was measured at this step." in card and "23.46" not in card


def test_a_run_in_a_bucket_is_published_there(run, published, whole, bucket, capsys):
    upload(bucket, run, "run")
    options = ["--output", "gs://bucket/folder", "--bundle", "backbone", "language"]
    publish.main(["gs://bucket/run", *options])
    assert "written: gs://bucket/folder/model.safetensors" in capsys.readouterr().out
    for file in (file for file in published.rglob("*") if file.is_file()):
        name = f"folder/{file.relative_to(published).as_posix()}"
        written = bucket.objects[name][0]
        # The order of the entries of safetensors' header is left to chance.
        same_bytes = file.suffix == ".safetensors" or written == file.read_bytes()
        assert same_bytes and len(written) == file.stat().st_size
    # Who finds the description finds all the rest.
    order = {name: at for name, (_, at) in bucket.objects.items() if name.startswith("folder/")}
    assert max(order, key=order.__getitem__) == "folder/tokenizer.json"
    found = pt.load_tokenizer("gs://bucket/folder")
    assert found.checkpoint_hash == whole.checkpoint_hash
    with pytest.raises(UserError, match="exists; name a new folder"):
        publish.main(["gs://bucket/run", *options])


def test_frozen_weights_are_found_by_content_or_where_they_are_said_to_be(
    run, world, tmp_path, monkeypatch
):
    moved = tmp_path / "weights"
    moved.mkdir()
    for name in ("vae", "language"):
        shutil.copytree(world / name, moved / f"my_{name}")
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    description = json.loads((copy / "tokenizer.json").read_text())
    description["backbone"]["spec"] = "weights/gone"
    description["language_model"]["spec"] = "weights/lost"
    (copy / "tokenizer.json").write_text(json.dumps(description))
    monkeypatch.chdir(tmp_path / "run")
    with pytest.raises(UserError, match="the backbone weights .* folder with --backbone"):
        pt.load_tokenizer(copy)
    tokenizer = pt.load_tokenizer(
        copy, backbone=str(moved / "my_vae"), language=str(moved / "my_language")
    )
    monkeypatch.setenv("PYRATOK_WEIGHTS", str(moved))
    # The hash covers all weights and sizes.
    assert tokenizer.checkpoint_hash == pt.load_tokenizer(copy).checkpoint_hash
    with pytest.raises(UserError, match="not the one"):
        pt.load_tokenizer(copy, backbone="builtin:demo-backbone")
    description["tokenizer"]["lora_alpha"] += 1  # Possible, and not what was trained.
    (copy / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="its values are not those that were written"):
        pt.load_tokenizer(copy)


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    shutil.copytree(published, tmp_path / "repo" / "sub")
    (tmp_path / "repo" / "sub" / "evil.pkl").write_bytes(b"code")
    with HubServer(tmp_path / "repo") as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", server.endpoint, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield server


def test_a_tokenizer_is_read_from_the_hub_safetensors_alone(hub, whole):
    found = pt.load_tokenizer("hf://org/name/sub")
    assert found.checkpoint_hash == whole.checkpoint_hash
    assert "sub/model.safetensors" in hub.fetched and "sub/evil.pkl" not in hub.fetched
    assert pinned("hf://org/name/sub") == f"hf://org/name@{COMMIT}/sub"


def test_an_unreachable_hub_is_one_line_that_says_what_to_download(tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError) as refused:
        local_folder("hf://org/name@v1/sub")
    text = str(refused.value)
    assert "hf download org/name --revision v1 --include 'sub/*'" in text and "\n" not in text
    assert not os.path.exists("cache")


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("hf://org/name", HubFolder("org/name")),
        ("hf://org/name@v1.0", HubFolder("org/name", "v1.0")),
        ("hf://org/na-me@main/a/b/", HubFolder("org/na-me", "main", "a/b")),
    ],
)
def test_specifications(spec, found):
    assert parse_hub(spec) == found and parse_hub(str(found)) == found


@pytest.mark.parametrize("spec", ["hf://org", "hf://", "hf://org/name/../x", "hf://o/n@"])
def test_malformed_specifications_are_refused(spec):
    with pytest.raises(UserError, match="expected hf://ORG/NAME"):
        parse_hub(spec)
