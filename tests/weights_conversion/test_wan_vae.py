"""Published VAE files of every kind into our checkpoint, and back."""

import functools
import json
import os
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pyratok_jax.checkpoints.foreign.sources import sources_from_arrays
from pyratok_jax.checkpoints.partition import module_arrays
from pyratok_jax.checkpoints.weights import read_config
from pyratok_jax.errors import UserError
from pyratok_jax.models.wan_vae.config import WAN21, WAN22
from tests.models.wan_vae.reference import small, torch_vae
from tests.processes import run_script
from weights_conversion.networks import wan_vae
from weights_conversion.networks.wan_vae import load_wan_vae, make_plan, vae_shapes
from weights_conversion.networks.wan_vae_published import (
    WEIGHTS,
    detect,
    diffusers_config,
    published_name,
    to_published,
)
from weights_conversion.wan_vae import main


@pytest.fixture(scope="module", autouse=True)
def shapes_found_once():
    """A model's shapes take a second to trace, and every command asks for them several times."""
    once = functools.cache(vae_shapes)
    with pytest.MonkeyPatch.context() as patch:
        for module in (wan_vae, sys.modules[__name__]):
            patch.setattr(module, "vae_shapes", once)
        yield


def arrays_of(config, seed=0):
    """Random values for every array of our model."""
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=s).astype(np.float32) for k, s in vae_shapes(config).items()}


def write(folder: Path, kind: str, config, arrays) -> Path:
    """A published file of `kind` with these values; returns what --input names."""
    folder.mkdir(parents=True)
    naming = "diffusers" if kind.startswith("diffusers") else "original"
    tensors = dict(to_published(arrays, naming, config))
    if kind == "pth":
        path = folder / "Wan_VAE.pth"
        torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, path)
        return path
    if kind == "repack":
        save_file(tensors, folder / "wan_vae.safetensors")
        return folder / "wan_vae.safetensors"
    (folder / "config.json").write_text(
        json.dumps({"_class_name": "AutoencoderKLWan", **diffusers_config(config)})
    )
    if kind == "diffusers":
        save_file(tensors, folder / WEIGHTS)
        return folder
    names = sorted(tensors)
    half = len(names) // 2
    weight_map = {}
    for i, part in enumerate((names[:half], names[half:])):
        file = f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        save_file({k: tensors[k] for k in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    return folder


def config_file(tmp_path, config) -> list[str]:
    path = tmp_path / "sizes.json"
    path.write_text(json.dumps(config.to_dict()))
    return ["--config", str(path)]


def run(given, output, *more) -> Path:
    assert main(["--input", str(given), "--output", str(output), *more]) == 0
    return Path(output)


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("kind", ["pth", "repack", "diffusers", "diffusers-sharded"])
def test_every_file_kind(tmp_path, kind, residual):
    config = small(residual)
    arrays = arrays_of(config)
    given = write(tmp_path / "in", kind, config, arrays)
    more = [] if kind.startswith("diffusers") else config_file(tmp_path, config)
    output = run(given, tmp_path / "out", *more)
    vae = load_wan_vae(output)
    assert vae.config == config
    loaded = module_arrays(vae)
    assert loaded.keys() == arrays.keys()
    for name, value in arrays.items():
        assert np.array_equal(loaded[name], value), name


def test_published_key_lists():
    """A few names of the published files, as users see them, and the numbers of tensors."""
    for config, count, names in (
        (WAN21, 194, ["decoder.upsamples.15.shortcut.weight", "encoder.middle.1.to_qkv.weight"]),
        (WAN22, 196, ["decoder.upsamples.3.upsamples.0.shortcut.weight", "encoder.head.0.gamma"]),
    ):
        shapes = vae_shapes(config)
        original = {published_name(name, "original", config) for name in shapes}
        assert len(original) == count == len(shapes)
        # The plain layout's last stages keep their width: no shortcut there.
        assert names[1] in original
        assert (names[0] in original) is config.is_residual
        assert {"conv1.weight", "conv2.bias", "decoder.head.2.weight"} <= original
    assert sum(int(np.prod(s)) for s in vae_shapes(WAN21).values()) == 126_892_531
    assert sum(int(np.prod(s)) for s in vae_shapes(WAN22).values()) == 704_688_668


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes(tmp_path, dtype):
    config = small(False, blocks=1)
    arrays = arrays_of(config)
    given = write(tmp_path / "in", "diffusers", config, arrays)
    output = run(given, tmp_path / "out", "--dtype", dtype)
    assert read_config(output, "wan_vae")["dtype"] == dtype
    value_type = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    for name, value in module_arrays(load_wan_vae(output)).items():
        assert value.dtype == value_type
        assert np.array_equal(value, arrays[name].astype(value_type))
    half = {k: v.astype(value_type) for k, v in arrays.items()}
    again = run(write(tmp_path / "half", "diffusers", config, half), tmp_path / "full")
    kernel = module_arrays(load_wan_vae(again))["quant_conv.kernel"]
    assert np.array_equal(kernel, half["quant_conv.kernel"].astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_round_trip_is_bit_equal(tmp_path, residual, dtype):
    """To our folder and back to diffusers: every array, bit for bit, and diffusers loads it."""
    config = small(residual, blocks=1)
    model = torch_vae(config)
    value_type = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    state = {k: v.numpy().astype(value_type) for k, v in model.state_dict().items()}
    folder = tmp_path / "in"
    folder.mkdir()
    save_file(state, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(diffusers_config(config)))
    ours = run(folder, tmp_path / "out", "--dtype", dtype)
    back = run(ours, tmp_path / "back", "--to", "diffusers")
    written = load_file(back / WEIGHTS)
    assert written.keys() == state.keys()
    for name, value in state.items():
        assert written[name].dtype == value.dtype and written[name].shape == value.shape
        assert written[name].tobytes() == value.tobytes(), name
    type(model).from_pretrained(back)
    with pytest.raises(UserError, match="exists"):
        main(["--input", str(ours), "--output", str(back), "--to", "diffusers"])


def test_refusals_name_the_keys(tmp_path):
    config = small(False, blocks=1)
    tensors = dict(to_published(arrays_of(config), "diffusers", config))
    del tensors["encoder.conv_in.bias"]
    tensors["decoder.surplus"] = np.zeros(3, np.float32)
    tensors["quant_conv.weight"] = np.zeros((8, 7, 1, 1, 1), np.float32)
    folder = tmp_path / "in"
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(diffusers_config(config)))
    with pytest.raises(UserError) as problem:
        main(["--input", str(folder), "--output", str(tmp_path / "out")])
    for part in (
        "1 keys missing: encoder.conv_in.bias",
        "1 keys unexpected: decoder.surplus",
        "1 keys of the wrong shape: quant_conv.weight",
    ):
        assert part in str(problem.value)
    assert sorted(os.listdir(tmp_path)) == ["in"]


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="not a Wan VAE"):
        detect(sources_from_arrays({"model.embed_tokens.weight": np.zeros(2)}))
    plain, residual = small(False, blocks=1), small(True, blocks=1)
    tensors = dict(to_published(arrays_of(plain), "original", plain))
    with pytest.raises(UserError, match="the plain layout, the configuration describes"):
        make_plan(sources_from_arrays(tensors), residual)
    path = tmp_path / "x.json"
    path.write_text('{"_class_name": "UNet2DModel"}')
    given = write(tmp_path / "in", "repack", plain, arrays_of(plain))
    with pytest.raises(UserError, match="describes UNet2DModel"):
        main(["--input", str(given), "--output", str(tmp_path / "o"), "--config", str(path)])
    # Without its sizes a file is measured against the published ones.
    with pytest.raises(UserError, match="of the wrong shape"):
        main(["--input", str(given), "--output", str(tmp_path / "o")])


def test_a_pickle_is_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"encoder.conv1.weight": Hostile()}, tmp_path / "vae.pth")
    with pytest.raises(UserError, match="not executed"):
        main(["--input", str(tmp_path / "vae.pth"), "--output", str(tmp_path / "out")])
    assert sorted(os.listdir(tmp_path)) == ["vae.pth"]


def test_prefixed_weights_inside_a_larger_file():
    config = small(False, blocks=1)
    tensors = dict(to_published(arrays_of(config), "original", config))
    tensors = {f"first_stage_model.{k}": v for k, v in tensors.items()}
    tensors["model.diffusion.weight"] = np.zeros(3, np.float32)
    plan = make_plan(sources_from_arrays(tensors), config).check()
    assert list(plan.skipped) == ["model.diffusion.weight"]


def test_verify_compares_with_the_reference(tmp_path, capsys):
    config = small(True, blocks=1)
    given = write(tmp_path / "in", "diffusers", config, arrays_of(config))
    run(given, tmp_path / "out", "--verify")
    assert "verified encode" in (printed := capsys.readouterr().out)
    assert "verified decode" in printed
    # A reference with other weights must be noticed.
    from weights_conversion.networks import wan_vae_published

    other = sources_from_arrays(dict(to_published(arrays_of(config, 1), "diffusers", config)))
    with pytest.raises(UserError, match="verification failed: encode"):
        list(wan_vae_published.verify(other, config, load_wan_vae(tmp_path / "out"), detect(other)))


def test_a_published_file_loads_directly(tmp_path):
    config = small(False, blocks=1)
    arrays = arrays_of(config)
    given = write(tmp_path / "in", "diffusers-sharded", config, arrays)
    direct = load_wan_vae(given)
    converted = load_wan_vae(run(given, tmp_path / "out"))
    expected = module_arrays(converted)
    for name, value in module_arrays(direct).items():
        assert np.array_equal(value, expected[name]), name


@pytest.mark.process
def test_loading_onto_a_mesh(tmp_path):
    """Four virtual devices each hold a quarter, from our folder and from the published file."""
    config = small(False, blocks=1)
    given = write(tmp_path / "in", "diffusers", config, arrays_of(config))
    output = run(given, tmp_path / "out")
    run_script("load_sharded", "wan_vae", output, given, devices=4)
