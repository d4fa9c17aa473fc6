"""The DINO converter: every layout of names gives the same network, bad files are refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from pyratok_jax.checkpoints.conversion import load_arrays
from pyratok_jax.checkpoints.foreign.sources import sources_from_arrays
from pyratok_jax.checkpoints.pretrained import load_dino
from pyratok_jax.errors import UserError
from tests.models.dino import reference
from weights_conversion.dino import main
from weights_conversion.networks import dino

V3_NAMES = [
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.mask_token", "mask_token"),
    ("embeddings.register_tokens", "storage_tokens"),
    ("embeddings.patch_embeddings.", "patch_embed.proj."),
    ("model.layer.", "blocks."),
    ("attention.o_proj", "attn.proj"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("mlp.up_proj", "mlp.fc1"),
    ("mlp.down_proj", "mlp.fc2"),
]
V2_NAMES = [
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.mask_token", "mask_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("encoder.layer.", "blocks."),
    ("attention.o_proj", "attn.proj"),
    ("attention.output.dense", "attn.proj"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("layernorm.", "norm."),
]


def renamed(state, names):
    result = {}
    for key, value in state.items():
        for theirs, ours in names:
            key = key.replace(theirs, ours)
        result[key] = value
    return result


def fused(state):
    """Query, key and value of every block joined; a missing key bias becomes zeros."""
    result = {k: v for k, v in state.items() if "attention." not in k}
    for i in range(2):
        inside = [f"blocks.{i}.attention.{part}_proj" for part in "qkv"]
        kernels = [state[f"{name}.weight"] for name in inside]
        biases = [state.get(f"{name}.bias", np.zeros(32, np.float32)) for name in inside]
        result[f"blocks.{i}.attn.qkv.weight"] = np.concatenate(kernels)
        result[f"blocks.{i}.attn.qkv.bias"] = np.concatenate(biases)
    return result


def converted(state):
    _, plan = dino.make_plan(sources_from_arrays(state), heads=2)
    return {name: np.asarray(value) for name, value in load_arrays(plan).items()}


@pytest.mark.parametrize("kind, names", [("v3", V3_NAMES), ("v2", V2_NAMES)])
def test_original_checkpoints_give_the_same_arrays(kind, names):
    state = reference.arrays(reference.make(kind))
    original = fused(renamed(state, names))
    if kind == "v3":
        original["rope_embed.periods"] = np.zeros(8, np.float32)
        original |= {f"blocks.{i}.attn.qkv.bias_mask": np.zeros(96, "f") for i in range(2)}
    expected, found = converted(state), converted(original)
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_older_hub_names_of_version_3_are_known():
    state = reference.arrays(reference.make("v3"))
    old = {k.removeprefix("model."): v for k, v in state.items()}
    for name, value in converted(old).items():
        np.testing.assert_array_equal(value, converted(state)[name])


def folder_of(tmp_path, state, **facts):
    tmp_path.mkdir(exist_ok=True)
    save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, tmp_path / "m.safetensors")
    if facts:
        (tmp_path / "config.json").write_text(json.dumps(facts))
    return tmp_path


def test_the_command_writes_a_folder_that_loads(tmp_path, capsys):
    theirs = reference.make("v3")
    facts = {"num_attention_heads": 2, "layer_norm_eps": 1e-5}
    source = folder_of(tmp_path / "hub", reference.arrays(theirs), **facts)
    output = tmp_path / "ours"
    assert main(["--input", str(source), "--output", str(output)]) == 0
    assert "mask token" in capsys.readouterr().out
    x = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    found = load_dino(output)(jnp.asarray(x))
    np.testing.assert_allclose(found.summary, reference.hidden_states(theirs, x)[:, 0], atol=2e-4)


def test_a_missing_and_an_unknown_tensor_are_both_named(tmp_path):
    state = reference.arrays(reference.make("v3"))
    state["extra"] = state.pop("norm.bias")
    source = folder_of(tmp_path / "hub", state)
    arguments = ["--input", str(source), "--output", str(tmp_path / "out"), "--heads", "2"]
    with pytest.raises(UserError, match=r"missing: norm.bias.*unexpected: extra"):
        main(arguments)
    assert not (tmp_path / "out").exists()


def test_files_of_other_models_and_wrong_heads_are_refused(tmp_path):
    with pytest.raises(UserError, match="no known DINO"):
        dino.make_plan(sources_from_arrays({"a": np.zeros(3)}))
    state = reference.arrays(reference.make("v3"))
    with pytest.raises(UserError, match="--heads"):
        dino.make_plan(sources_from_arrays(state))
    for heads in ("0", "-1"):
        with pytest.raises(UserError, match=f"--heads {heads}: expected"):
            main(["--input", "none", "--output", "out", "--heads", heads])
