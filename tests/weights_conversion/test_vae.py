"""Published VAE files of every family and naming into our checkpoints, and back."""

import functools
import json
import os
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pyratok_jax.checkpoints.foreign.sources import sources_from_arrays
from pyratok_jax.checkpoints.pretrained import load_backbone
from pyratok_jax.checkpoints.weights import read_config
from pyratok_jax.errors import UserError
from pyratok_jax.models import cogvideox, hunyuan_video, mochi, svd
from pyratok_jax.models.wan_vae.config import WAN21
from weights_conversion.vae import converting
from weights_conversion.vae.__main__ import main
from weights_conversion.vae.converting import (
    CONVERTERS,
    WEIGHTS,
    Layout,
    recognise,
    source_config,
    vae_shapes,
)
from weights_conversion.vae.naming import to_diffusers_tensors

TINY = {
    "cogvideox": cogvideox.tiny(),
    "hunyuan_video": hunyuan_video.tiny(),
    "mochi": mochi.tiny(),
    "svd": svd.tiny(),
}
SLOW = pytest.mark.slow
# Round trips and prefixes read diffusers' names too.
NAMINGS = [
    pytest.param(family, naming.name, marks=SLOW if naming.name == "diffusers" else ())
    for family in TINY
    for naming in CONVERTERS[family].namings
]
OTHERS = [pytest.param(one, marks=SLOW) for one in ("cogvideox", "hunyuan_video", "svd")]


@functools.cache
def shapes_of(family):
    return vae_shapes(TINY[family])


@pytest.fixture(autouse=True)
def shapes_found_once(monkeypatch):
    """Tracing a model for its shapes takes seconds, and every command does."""

    def known(config):
        return shapes_of(config.family) if config == TINY[config.family] else vae_shapes(config)

    monkeypatch.setattr(converting, "vae_shapes", known)


def arrays_of(family, seed=0):
    """Random values for every array of our model."""
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=s).astype(np.float32) for k, s in shapes_of(family).items()}


def tensors_of(family, naming_name, arrays):
    """Our arrays under published names, in torch's layout."""
    converter = CONVERTERS[family]
    given = dict(to_diffusers_tensors(arrays, converter))
    if naming_name == "diffusers":
        return given
    (naming,) = (one for one in converter.namings if one.name == naming_name)
    found, thirds = {}, {}
    for target in arrays:
        path, leaf = target.rsplit(".", 1)
        leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
        value = given[f"{converter.namings[0].place(path).path}.{leaf}"]
        place = naming.place(path)
        if place.third is not None:
            thirds.setdefault(f"{place.path}.{leaf}", {})[place.third] = value
        elif naming_name == "Stability" and ".attentions." in path and value.ndim == 2:
            found[f"{place.path}.{leaf}"] = value[:, :, None, None]
        else:
            found[f"{place.path}.{leaf}"] = value
    joined = {k: np.concatenate([v[i] for i in range(3)]) for k, v in thirds.items()}
    return found | joined


def write(folder: Path, family, naming, tensors) -> Path:
    """A published folder or file; returns what --input names."""
    folder.mkdir(parents=True)
    converter = CONVERTERS[family]
    if naming == "diffusers":
        values = converter.to_diffusers(TINY[family])
        record = {"_class_name": converter.class_names[0], **values}
        (folder / "config.json").write_text(json.dumps(record))
        save_file(tensors, folder / WEIGHTS)
        return folder
    if naming == "SAT":
        tensors = tensors | {"loss.logvar": np.zeros(1, np.float32)}
        state = {"state_dict": {k: torch.from_numpy(v) for k, v in tensors.items()}}
        torch.save(state, folder / "3d-vae.pt")
        return folder / "3d-vae.pt"
    if naming == "genmo":
        for side in ("encoder", "decoder"):
            part = {k.removeprefix(f"{side}."): v for k, v in tensors.items()
                    if k.startswith(side)}  # fmt: skip
            save_file(part, folder / f"{side}.safetensors")
        return folder
    tensors = tensors | {
        "model.diffusion_model.out.weight": np.zeros(2, np.float32),
        "first_stage_model.encoder.conv_in.weight": np.zeros(2, np.float32),
        "conditioner.embedders.3.encoder.post_quant_conv.bias": np.zeros(2, np.float32),
    }
    save_file(tensors, folder / "svd.safetensors")
    return folder / "svd.safetensors"


def sizes(tmp_path, family) -> list[str]:
    """--config for files that say nothing of their sizes."""
    path = tmp_path / "sizes.json"
    values = CONVERTERS[family].to_diffusers(TINY[family])
    path.write_text(json.dumps({"_class_name": CONVERTERS[family].class_names[0], **values}))
    return ["--config", str(path)]


def run(given, output, *more) -> Path:
    assert main(["--input", str(given), "--output", str(output), *more]) == 0
    return Path(output)


@pytest.mark.parametrize(("family", "naming"), NAMINGS)
def test_every_naming(tmp_path, family, naming):
    arrays = arrays_of(family)
    given = write(tmp_path / "in", family, naming, tensors_of(family, naming, arrays))
    more = [] if naming == "diffusers" else sizes(tmp_path, family)
    backbone = load_backbone(str(run(given, tmp_path / "out", *more)))
    assert backbone.config == TINY[family]
    assert backbone.arrays.keys() == arrays.keys()
    for name, value in arrays.items():
        assert np.array_equal(backbone.arrays[name], value), name


@pytest.mark.parametrize("family", ["hunyuan_video", "mochi", *OTHERS[:1], *OTHERS[2:]])
def test_round_trip_is_bit_equal(tmp_path, family):
    """From diffusers in bfloat16 and back: every array, bit for bit, and diffusers loads it."""
    tensors = tensors_of(family, "diffusers", arrays_of(family))
    tensors = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}
    given = write(tmp_path / "in", family, "diffusers", tensors)
    ours = run(given, tmp_path / "out", "--dtype", "bfloat16")
    assert read_config(ours, *(f"{family}_vae",))["dtype"] == "bfloat16"
    export = ["--input", str(ours), "--output", str(tmp_path / "back"), "--to", "diffusers"]
    for flag in (["--verify"], ["--dtype", "float16"], ["--config", "config.json"]):
        with pytest.raises(UserError, match=f"{flag[0]} does not go with --to diffusers"):
            main([*export, *flag])
    with pytest.raises(UserError, match=f"of the family {family}"):
        main([*export, "--family", "wan"])
    for inside in (ours, ours.parent):
        with pytest.raises(UserError, match="would be replaced"):
            main([*export, "--output", str(inside), "--overwrite"])
    with pytest.raises(UserError, match="would be replaced"):
        run(given, tmp_path, "--overwrite")
    main([*export, "--dry-run"])
    assert not (tmp_path / "back").exists()
    back = run(ours, tmp_path / "back", "--to", "diffusers")
    written = load_file(back / WEIGHTS)
    assert written.keys() == tensors.keys()
    for name, value in tensors.items():
        assert written[name].tobytes() == value.tobytes(), name
        assert written[name].shape == value.shape
    import diffusers

    getattr(diffusers, CONVERTERS[family].class_names[0]).from_pretrained(back)
    with pytest.raises(UserError, match="exists"):
        main(export)


@pytest.mark.parametrize("family", ["mochi", *OTHERS])
def test_refusals_name_the_keys(tmp_path, family):
    tensors = tensors_of(family, "diffusers", arrays_of(family))
    marks = {mark for naming in CONVERTERS[family].namings for mark in naming.marks}
    names = [name for name in tensors if name not in marks]
    del tensors[names[0]]
    tensors["decoder.surplus"] = np.zeros(3, np.float32)
    tensors[names[1]] = np.zeros((3, 5), np.float32)
    given = write(tmp_path / "in", family, "diffusers", tensors)
    with pytest.raises(UserError) as problem:
        main(["--input", str(given), "--output", str(tmp_path / "out")])
    for part in (
        f"1 keys missing: {names[0]}",
        "1 keys unexpected: decoder.surplus",
        f"1 keys of the wrong shape: {names[1]}",
    ):
        assert part in str(problem.value)
    assert os.listdir(tmp_path) == ["in"]


def test_published_names():
    """Names as users see them in the published files."""
    for family, naming, names in (
        ("cogvideox", "SAT", ["decoder.up.3.block.0.norm1.norm_layer.weight",
                              "decoder.up.2.block.0.nin_shortcut.weight",
                              "encoder.mid.block_2.conv1.conv.weight",
                              "encoder.down.0.downsample.conv.bias"]),
        ("mochi", "genmo", ["encoder.layers.4.layers.0.weight", "encoder.layers.0.weight",
                            "encoder.layers.6.layers.1.attn_block.attn.qkv.weight",
                            "encoder.layers.7.attn_block.attn.out.bias",
                            "decoder.blocks.2.proj.bias", "decoder.blocks.4.0.stack.5.weight",
                            "encoder.output_proj.weight", "decoder.output_proj.bias"]),
        ("svd", "Stability", ["first_stage_model.decoder.up.3.block.0.time_stack.in_layers.2.bias",
                              "first_stage_model.decoder.mid.block_1.mix_factor",
                              "first_stage_model.decoder.mid.attn_1.proj_out.weight",
                              "conditioner.embedders.3.encoder.encoder.down.1.block.0.conv1.bias",
                              "first_stage_model.decoder.conv_out.time_mix_conv.weight",
                              "first_stage_model.decoder.up.1.upsample.conv.weight"]),
    ):  # fmt: skip
        tensors = tensors_of(family, naming, arrays_of(family))
        assert [name for name in names if name not in tensors] == []
        assert not any("_blocks" in name or "resnets" in name for name in tensors)


def test_a_pickle_is_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    name = "encoder.down.0.block.0.conv1.conv.weight"
    torch.save({"state_dict": {name: Hostile()}}, tmp_path / "vae.pt")
    with pytest.raises(UserError, match="not executed"):
        main(["--input", str(tmp_path / "vae.pt"), "--output", str(tmp_path / "out")])
    assert os.listdir(tmp_path) == ["vae.pt"]


def test_other_files_are_refused(tmp_path):
    save_file({"model.weight": np.zeros(2, np.float32)}, tmp_path / "x.safetensors")
    for more in ([], ["--family", "mochi"]):
        with pytest.raises(UserError, match="known families are wan, cogvideox, hunyuan_video"):
            main(["--input", str(tmp_path / "x.safetensors"), "--output", "o", *more])
    other = tmp_path / "c.json"
    other.write_text('{"_class_name": "UNet2DModel"}')
    given = write(
        tmp_path / "in", "svd", "diffusers", tensors_of("svd", "diffusers", arrays_of("svd"))
    )
    with pytest.raises(UserError, match="describes UNet2DModel"):
        main(["--input", str(given), "--output", "o", "--config", str(other)])


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("mochi", {"temporal_expansions": [1, 2, 0]}, "time_strides has 0, expected positive"),
        ("mochi", {"temporal_expansions": [1, -1, 3]}, "time_strides has -1"),
        ("mochi", {"spatial_expansions": [4, 4, 4]}, r"spatial_expansions is \[4, 4, 4\]"),
        ("mochi", {"encoder_block_out_channels": [32, 32, 32, 7]}, "has 7, .* multiples of 32"),
        ("mochi", {"latents_std": [1.0, 1.0, 0.0, 1.0]}, "latents_std has 0.0, expected"),
        ("cogvideox", {"scaling_factor": -1}, "latents_std has -1.0, expected positive"),
        ("cogvideox", {"temporal_compression_ratio": 3}, "ratio is 3, expected a power of two"),
        ("cogvideox", {"norm_num_groups": 0}, "groups has 0, expected positive"),
        ("hunyuan_video", {"norm_num_groups": 7}, "widths has 8, .* multiples of 7"),
        ("svd", {"layers_per_block": 0}, "layers has 0, expected positive"),
        ("svd", {"block_out_channels": [48, 64]}, "widths has 48, .* multiples of 32"),
    ],
)
def test_impossible_sizes_in_a_published_config_are_refused(tmp_path, family, changes, message):
    converter = CONVERTERS[family]
    values = {"_class_name": converter.class_names[0], **converter.to_diffusers(TINY[family])}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values | changes))
    layout = Layout(converter, converter.namings[0], "")
    with pytest.raises(UserError, match=f"no usable VAE configuration .*{message}"):
        source_config(sources_from_arrays({}), layout, file)


def test_one_half_of_a_vae_is_refused_by_name(tmp_path):
    save_file({"output_norm.weight": np.zeros(2, np.float32)}, tmp_path / "encoder.safetensors")
    with pytest.raises(UserError, match=r"one half of a VAE, decoder.safetensors is missing"):
        main(["--input", str(tmp_path), "--output", str(tmp_path / "out")])
    assert os.listdir(tmp_path) == ["encoder.safetensors"]


def test_a_prefix_and_motion_auras_class_name(tmp_path):
    tensors = tensors_of("cogvideox", "diffusers", arrays_of("cogvideox"))
    tensors = {f"vae.{k}": v for k, v in tensors.items()} | {"unet.w": np.zeros(2, np.float32)}
    given = write(tmp_path / "in", "cogvideox", "diffusers", tensors)
    record = json.loads((given / "config.json").read_text())
    record["_class_name"] = "AutoencoderKLMotionAura"
    (given / "config.json").write_text(json.dumps(record))
    assert load_backbone(str(run(given, tmp_path / "out"))).config == TINY["cogvideox"]


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY)
def test_verify_compares_with_diffusers(tmp_path, family, capsys):
    given = write(
        tmp_path / "in", family, "diffusers", tensors_of(family, "diffusers", arrays_of(family))
    )
    run(given, tmp_path / "out", "--verify")
    assert re.search("verified encode.*\n.*verified decode", capsys.readouterr().out)


def test_qwen_image_has_wans_names():
    """Every tensor of diffusers' QwenImage VAE has a place in Wan 2.1's, and the other way."""
    from diffusers import AutoencoderKLQwenImage

    from weights_conversion.networks.wan_vae import make_plan

    with torch.device("meta"):
        state = AutoencoderKLQwenImage().state_dict()
    arrays = {k: np.broadcast_to(np.float32(0), v.shape) for k, v in state.items()}
    source = sources_from_arrays(arrays)
    assert recognise(source) is None
    assert make_plan(source, WAN21).complete
