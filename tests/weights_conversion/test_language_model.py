"""Language models in every container and naming, down to the same logits."""

import json
import sys

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pyratok_jax.checkpoints.conversion import load_arrays
from pyratok_jax.checkpoints.foreign.language_config import parse_config
from pyratok_jax.checkpoints.foreign.language_model import (
    half_split,
    load_language_model,
    make_plan,
)
from pyratok_jax.checkpoints.foreign.sources import open_tensors, sources_from_arrays
from pyratok_jax.checkpoints.partition import build_module
from pyratok_jax.errors import UserError
from pyratok_jax.models.language.attention import frequencies
from pyratok_jax.models.language.config import RopeConfig
from pyratok_jax.models.language.model import LanguageModel
from tests.models.language.families import ours, reference, state_arrays
from tests.processes import run_script
from weights_conversion import language_model
from weights_conversion.networks.language_model import source_config

IDS = np.random.default_rng(5).integers(0, 60, size=(2, 9))


@nnx.jit
def _logits(model, ids):
    return model.logits(model(ids).hidden)


def _close(model, theirs, tolerance=1e-5):
    with torch.no_grad():
        want = theirs(input_ids=torch.tensor(IDS)).logits.numpy()
    got = np.asarray(_logits(model, jnp.asarray(IDS)))
    assert np.abs(got - want).max() < tolerance * np.abs(want).max()


def _words():
    model = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "car": 2}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]", pad_token="[UNK]")


def _run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["language_model", *map(str, arguments)])
    return language_model.main()


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A sharded Hugging Face folder of a vision-language model, with a tokenizer."""
    folder = tmp_path_factory.mktemp("qwen")
    theirs = reference("qwen2_5_vl")
    theirs.save_pretrained(folder, max_shard_size="40KB")
    _words().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder, theirs


def test_sharded_folder_through_the_command(qwen, tmp_path, monkeypatch, capsys):
    folder, theirs = qwen
    output = tmp_path / "out"
    assert _run(monkeypatch, "--input", folder, "--output", output) == 0
    said = capsys.readouterr().out
    assert "vision weights; only the text model is converted" in said
    assert f"written: {output}" in said
    model, tokenizer = load_language_model(output)
    _close(model, theirs)
    assert model.config.mrope_section == (1, 1, 2)
    assert tokenizer("red car")["input_ids"] == [1, 2]
    record = json.loads((output / "config.json").read_text())
    assert record["kind"] == "language_model" and len(record["sha256"]) == 64
    with pytest.raises(UserError, match="--overwrite"):
        _run(monkeypatch, "--input", folder, "--output", output)


@pytest.mark.process
def test_loading_onto_a_mesh(qwen, tmp_path, monkeypatch):
    """Four virtual devices each hold a quarter of whatever can be cut in four."""
    assert _run(monkeypatch, "--input", qwen[0], "--output", tmp_path / "out") == 0
    run_script("load_sharded", "language_model", tmp_path / "out", devices=4)


def test_dry_run_writes_nothing(qwen, tmp_path, monkeypatch, capsys):
    assert _run(monkeypatch, "--input", qwen[0], "--output", tmp_path / "x", "--dry-run") == 0
    assert "nothing written" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("family", "text", "vision", "head"),
    [
        ("qwen2_5_vl", "model.", "visual.", "lm_head.weight"),
        ("qwen2_5_vl", "language_model.", "visual.", "lm_head.weight"),
        ("gemma3", "language_model.model.", "vision_tower.vision_model.", None),
        ("gemma3", "", "multi_modal_projector.", None),
        ("qwen3", "model.language_model.", "model.vision_tower.", None),
    ],
)
def test_every_prefix(family, text, vision, head):
    theirs = reference(family)
    old = "model.language_model." if family == "qwen2_5_vl" else "model."
    arrays = {}
    for key, value in state_arrays(theirs).items():
        if key.startswith(old):
            arrays[text + key[len(old) :]] = value
        elif key == "lm_head.weight":
            arrays[head] = value
    arrays[f"{vision}blocks.0.norm1.weight"] = np.ones(3, np.float32)
    arrays[f"{vision}layers.0.mlp.up_proj.weight"] = np.ones((3, 3), np.float32)
    source = sources_from_arrays(arrays)
    config = parse_config(theirs.config.to_dict(), has_head=head is not None)
    plan = make_plan(source, config).check()
    assert len(plan.skipped) == 2
    model = build_module(lambda: LanguageModel(config, rngs=nnx.Rngs(0)), load_arrays(plan))
    _close(model, theirs)


_META = {
    "q_proj": "attention.wq", "k_proj": "attention.wk", "v_proj": "attention.wv",
    "o_proj": "attention.wo", "gate_proj": "feed_forward.w1", "up_proj": "feed_forward.w3",
    "down_proj": "feed_forward.w2", "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm", "embed_tokens": "tok_embeddings", "norm": "norm",
    "lm_head": "output",
}  # fmt: skip


def _interleaved(value, heads):
    """Inverse of the converter's reordering, written the other way round."""
    half = value.shape[0] // heads // 2
    out = np.empty_like(value)
    for head in range(heads):
        for i in range(half):
            start = head * 2 * half
            out[start + 2 * i] = value[start + i]
            out[start + 2 * i + 1] = value[start + half + i]
    return out


def _renamed(theirs, names, prefix, interleave):
    arrays = {}
    for key, value in state_arrays(theirs).items():
        *_, part, suffix = key.split(".")
        layer = f"{prefix}{key.split('.')[2]}." if ".layers." in key else ""
        if interleave and part in ("q_proj", "k_proj"):
            value = _interleaved(value, 4 if part == "q_proj" else 2)
        arrays[f"{layer}{names[part]}.{suffix}"] = value
    return arrays


def test_meta_checkpoint(tmp_path):
    theirs = reference("llama")
    arrays = _renamed(theirs, _META, "layers.", True)
    arrays["rope.freqs"] = np.ones(4, np.float32)
    torch.save({k: torch.tensor(v) for k, v in arrays.items()}, tmp_path / "consolidated.00.pth")
    params = {"dim": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5}
    (tmp_path / "params.json").write_text(json.dumps(params))
    source = open_tensors(tmp_path)
    config = source_config(source)
    assert config.mlp_width == 40 and config.vocabulary == 67 and not config.tied
    arrays = load_arrays(make_plan(source, config))
    _close(build_module(lambda: LanguageModel(config, rngs=nnx.Rngs(0)), arrays), theirs)
    (tmp_path / "params.json").unlink()
    with pytest.raises(UserError, match="params.json"):
        source_config(source)


def test_row_order_of_pairs():
    rows = np.arange(8)[:, None]
    assert half_split(2)(rows)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


_GGUF = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
    "q_norm": "attn_q_norm", "k_norm": "attn_k_norm",
}  # fmt: skip


def _write_gguf(path, architecture, arrays, facts, types=None):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(32)
    writer.add_block_count(3)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_feed_forward_length(40)
    writer.add_context_length(128)
    for name, value in facts.items():
        getattr(writer, name)(value)
    for key, value in arrays.items():
        kind = (types or {}).get(key)
        if kind is None:
            writer.add_tensor(key, value)
        else:
            writer.add_tensor(key, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_llama_with_scaled_rope(tmp_path):
    theirs = reference("llama31")
    arrays = _renamed(theirs, _GGUF, "blk.", True)
    inverse = theirs.model.rotary_emb.inv_freq.numpy()
    plain = 500000.0 ** -(np.arange(0, 16, 2) / 16)
    arrays["rope_freqs.weight"] = (plain / inverse).astype(np.float32)
    path = tmp_path / "m.gguf"
    facts = {
        "add_rope_freq_base": 500000.0, "add_layer_norm_rms_eps": 1e-6, "add_key_length": 16,
    }  # fmt: skip
    _write_gguf(path, "llama", arrays, facts)
    # The published models were extended from 8192 tokens; this tiny one from 32.
    with pytest.raises(UserError, match="rope_freqs"):
        source_config(open_tensors(path))
    arrays["rope_freqs.weight"][3] = np.nan
    _write_gguf(path, "llama", arrays, facts)
    with pytest.raises(UserError, match="rope_freqs"):
        source_config(open_tensors(path))
    scaled = RopeConfig(500000.0, "llama3", 8.0)
    plain = frequencies(RopeConfig(500000.0), 16)
    arrays["rope_freqs.weight"] = plain / frequencies(scaled, 16)
    _write_gguf(path, "llama", arrays, facts)
    source = open_tensors(path)
    config = source_config(source)
    assert config.tied and config.head_dim == 16 and config.rope == scaled
    loaded = load_arrays(make_plan(source, config))
    got = np.asarray(loaded["layers.attention.query.kernel"])[1]
    want = theirs.model.layers[1].self_attn.q_proj.weight.detach().numpy().T
    np.testing.assert_array_equal(got, want)


def test_gguf_gemma_norms_and_logits(tmp_path):
    theirs = reference("gemma3")
    names = {
        **_GGUF, "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
    }  # fmt: skip
    arrays = _renamed(theirs, names, "blk.", False)
    arrays = {k: v + 1 if "norm" in k else v for k, v in arrays.items()}
    path = tmp_path / "m.gguf"
    facts = {
        "add_rope_freq_base": 1e6, "add_layer_norm_rms_eps": 1e-6, "add_key_length": 16,
        "add_sliding_window": 4,
    }  # fmt: skip
    _write_gguf(path, "gemma3", arrays, facts)
    source = open_tensors(path)
    config = source_config(source)
    assert config.norm_offset and config.window == 4 and config.sliding == (True,) * 3
    loaded = load_arrays(make_plan(source, config))
    want = ours(theirs).layers.attention_post_norm.weight[...]
    np.testing.assert_allclose(loaded["layers.attention_post_norm.weight"], want, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "step"), [("F16", 1e-3), ("Q8_0", 0.01), ("Q4_0", 0.15), ("Q4_1", 0.15)]
)
def test_gguf_types(tmp_path, name, step):
    kind = gguf.GGMLQuantizationType[name]
    value = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    path = tmp_path / "m.gguf"
    _write_gguf(path, "llama", {"x": value}, {}, {"x": kind})
    source = open_tensors(path)
    assert source.info["x"].dtype == name and source.info["x"].shape == (6, 64)
    error = np.abs(source.read("x") - value).max() / np.abs(value).max()
    assert 0 < error < step


def _q4_k(block):
    """One super-block of 256 values: 8 groups with 6-bit scales and minima."""
    d, least = np.frombuffer(block[:4].tobytes(), np.float16).astype(np.float32)
    packed, values = block[4:16].astype(int), block[16:].reshape(4, 32)
    out = np.empty(256, np.float32)
    for group in range(8):
        if group < 4:
            scale, low = packed[group] & 63, packed[group + 4] & 63
        else:
            scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6 << 4)
            low = (packed[group + 4] >> 4) | (packed[group] >> 6 << 4)
        nibbles = values[group // 2] >> (4 * (group % 2)) & 15
        out[32 * group : 32 * group + 32] = d * scale * nibbles - least * low
    return out


def _q6_k(block):
    """One super-block of 256 values: 4 low and 2 high bits, 16 signed scales."""
    low, high = block[:128].astype(int), block[128:192].astype(int)
    scales = block[192:208].view(np.int8).astype(np.float32)
    d = np.frombuffer(block[208:].tobytes(), np.float16).astype(np.float32)[0]
    out = np.empty(256, np.float32)
    for n in range(256):
        half, rest = divmod(n, 128)
        quarter, i = divmod(rest, 32)
        nibble = low[64 * half + 32 * (quarter % 2) + i] >> (4 * (quarter // 2)) & 15
        top = high[32 * half + i] >> (2 * quarter) & 3
        out[n] = d * scales[n // 16] * ((nibble | top << 4) - 32)
    return out


@pytest.mark.parametrize(
    ("name", "size", "halves", "unpack"),
    [("Q4_K", 144, (0, 2), _q4_k), ("Q6_K", 210, (208,), _q6_k)],
)
def test_gguf_k_types(tmp_path, name, size, halves, unpack):
    kind = gguf.GGMLQuantizationType[name]
    raw = np.random.default_rng(0).integers(0, 256, size=(3, 2 * size)).astype(np.uint8)
    for row in raw.reshape(-1, size):
        for start in halves:
            row[start : start + 2] = np.frombuffer(np.float16(0.013).tobytes(), np.uint8)
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("x", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    want = np.stack([unpack(block) for block in raw.reshape(-1, size)]).reshape(3, 512)
    np.testing.assert_allclose(open_tensors(path).read("x"), want, rtol=1e-6)


@pytest.fixture
def folder(tmp_path):
    theirs = reference("llama")
    theirs.save_pretrained(tmp_path / "in")
    return tmp_path / "in"


def _edit(folder, change):
    path = folder / "model.safetensors"
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)


KEY = "model.layers.2.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop(KEY), f"1 keys missing: {KEY}"),
        (lambda a: a.update({KEY: a[KEY][:3].copy()}), f"wrong shape: {KEY} has .3, 32."),
        (lambda a: a.update({"odd": a[KEY]}), "1 keys unexpected: odd"),
        (lambda a: a.pop("model.embed_tokens.weight"), "no language model"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, tmp_path, monkeypatch, change, message):
    _edit(folder, change)
    with pytest.raises(UserError, match=message):
        _run(monkeypatch, "--input", folder, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_or_broken_config(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        source_config(open_tensors(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="no config.json"):
        source_config(open_tensors(folder))


def test_unconverted_folders_and_unknown_names_are_refused(folder):
    with pytest.raises(UserError, match="convert it with weights_conversion"):
        load_language_model(folder)
    with pytest.raises(UserError, match="builtin:smollm2"):
        load_language_model("builtin:other")
