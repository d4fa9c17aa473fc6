"""The published PyraTok's checkpoint into a working folder: 246 tensors, made here."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from pyratok_jax import decode_tokens, evaluate, export_tokens, reconstruct
from pyratok_jax.data.video.files import iter_frames
from pyratok_jax.errors import UserError
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.tokenizer.loading import load_tokenizer
from tests.data.synthetic import numbered_frames, write_video
from tests.models.wan_vae.reference import torch_vae
from weights_conversion.networks.wan_vae_published import diffusers_config
from weights_conversion.pyratok import main

VAE = WanVAEConfig(base_dim=4, num_res_blocks=2, latents_mean=(0.0,) * 16, latents_std=(1.0,) * 16)


@pytest.fixture(scope="module")
def tensors():
    """Wan's 194 tensors and the 52 of four stages and their text layers."""
    found = {k: v.numpy() for k, v in torch_vae(VAE).state_dict().items()}
    places = 2 ** np.arange(15, -1, -1)
    codes = np.where(np.arange(2**16)[:, None] & places, 1.0, -1.0).astype(np.float32)
    widths = {
        "cross_attn.in_proj_weight": (48, 16), "cross_attn.in_proj_bias": (48,),
        "cross_attn.out_proj.weight": (16, 16), "cross_attn.out_proj.bias": (16,),
        "query_norm.weight": (16,), "query_norm.bias": (16,),
        "text_context_norm.weight": (256,), "text_context_norm.bias": (256,),
        "text_proj.weight": (16, 256), "text_proj.bias": (16,),
    }  # fmt: skip
    for layer in (0, 2):
        found[f"lapq_text_mlp.{layer}.weight"] = np.zeros((2, 2), np.float32)
        found[f"lapq_text_mlp.{layer}.bias"] = np.zeros(2, np.float32)
    for stage in range(4):
        prefix = f"lapq_quantizer.layers.{stage}."
        found[prefix + "bitmask"], found[prefix + "codebook"] = places, codes
        found |= {prefix + name: np.zeros(s, np.float32) for name, s in widths.items()}
    assert len(found) == 246
    return found


def write(folder, tensors, **more):
    (folder / "vae").mkdir(parents=True)
    save_file(tensors, folder / "vae" / "diffusion_pytorch_model.safetensors")
    record = {"_class_name": "AutoencoderKLPyraTok", **diffusers_config(VAE), **more}
    (folder / "vae" / "config.json").write_text(json.dumps(record))
    return folder


def run(given, output, *more):
    return main(["--input", str(given), "--output", str(output), *more])


@pytest.mark.slow
def test_every_command_takes_the_folder(tmp_path, tensors):
    """With the released code's resize, streamed, and in windows."""
    work, videos, small = (tmp_path / name for name in ("work", "videos", "small"))
    assert run(write(tmp_path / "in", tensors), work) == 0
    for folder, (height, width) in ((videos, (16, 32)), (small, (12, 20))):
        folder.mkdir()
        write_video(folder / "clip.mp4", numbered_frames(9, height, width))
    common = ["--checkpoint", str(work), "--lpips", "none", "--window", "5"]
    for name, folder, latents, more in (
        ("windows", videos, 2 + 2, []),  # the second window is padded to 5 frames
        ("streamed", videos, 3, ["--stream-beyond", "5"]),
        ("resized", small, 2 + 2, ["--resize", "16x32"]),
    ):
        output = tmp_path / name
        arguments = [*common, "--input", str(folder), "--output", str(output), *more]
        assert reconstruct.main(arguments) == 0
        measured = json.loads((output / "metrics.json").read_text())
        assert measured["frames"] == 9 and measured["tokens"] == latents * 4 * 2 * 4, name
    export_tokens.main(["--checkpoint", str(work), "--input", str(videos), "--window", "5",
                        "--output", str(tmp_path / "tokens"), "--shards", "1"])  # fmt: skip
    decode_tokens.main(["--checkpoint", str(work), "--input", str(tmp_path / "tokens"),
                        "--output", str(tmp_path / "decoded")])  # fmt: skip
    (decoded,) = (tmp_path / "decoded").rglob("*.mp4")
    assert [frame.shape for frame in iter_frames(str(decoded))] == [(16, 32, 3)] * 9
    evaluate.main(["--task", "reconstruction", "--checkpoint", str(work), "--data", str(videos),
                   "--output", str(tmp_path / "results"), "--set=frames=5", "--set=side=16",
                   "--set=lpips=none"])  # fmt: skip
    results = json.loads((tmp_path / "results/results.json").read_text())
    # Four stages of 16 bits at 2 x 2 x 2 positions.
    assert results["bpp"] == pytest.approx(4 * 16 * 8 / (5 * 16 * 16))


@pytest.mark.slow
def test_a_folder_becomes_a_tokenizer_with_equal_ids(tmp_path, tensors, capsys):
    given = write(tmp_path / "in", tensors, lapq_num_quantizers=4, lapq_codebook_dim=16)
    assert run(given, tmp_path / "out", "--verify") == 0
    assert "skipped 44 tensors: text layers" in (printed := capsys.readouterr().out)
    assert "verified: ids of" in printed
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.model.streams
    # Two chunks have the ids of the whole clip.
    video = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (1, 9, 16, 24, 3)), jnp.float32)
    whole = tokenizer.model.tokenize(video)
    first, caches = tokenizer.model.tokenize_next(video[:, :5])
    later, _ = tokenizer.model.tokenize_next(video[:, 5:], caches=caches)
    for a, b, c in zip(whole, first, later, strict=True):
        assert np.mean(np.asarray(a) == np.concatenate([b, c], axis=1)) > 0.99


def test_a_training_checkpoint_is_read(tmp_path, tensors):
    state = {name: torch.from_numpy(value) for name, value in tensors.items()}
    tree = {"model_state_dict": state, "step": 10, "config": {"lr": 1e-5}}
    tree["optimizer_state_dict"] = {"state": {0: {"step": torch.zeros(1)}}, "param_groups": []}
    torch.save(tree, tmp_path / "checkpoint_step_10.pt")
    (tmp_path / "config.json").write_text(json.dumps(diffusers_config(VAE)))
    assert run(tmp_path / "checkpoint_step_10.pt", tmp_path / "out", "--dry-run") == 0
    assert not (tmp_path / "out").exists()


def test_refusals(tmp_path, tensors):
    mask = "lapq_quantizer.layers.2.bitmask"
    for number, (changed, more, message) in enumerate(
        (
            ({mask: tensors[mask][::-1].copy()}, {}, f"{mask} is not that of 16 signs"),
            ({}, {"lapq_num_quantizers": 8}, "lapq_num_quantizers is 8, the weights have 4"),
            ({"decoder.surplus": np.zeros(2, np.float32)}, {}, "unexpected: decoder.surplus"),
        )
    ):
        given = write(tmp_path / f"in{number}", tensors | changed, **more)
        with pytest.raises(UserError, match=message):
            run(given, tmp_path / "out")
    plain = {k: v for k, v in tensors.items() if not k.startswith("lapq")}
    with pytest.raises(UserError, match="no published PyraTok"):
        run(write(tmp_path / "plain", plain), tmp_path / "out")
    assert "out" not in os.listdir(tmp_path)
