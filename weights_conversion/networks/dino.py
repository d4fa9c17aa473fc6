"""DINOv2 and DINOv3: layouts of their files, sizes out of the tensors, and the plan."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from pyratok_jax.checkpoints.conversion import (
    ConversionPlan,
    Entry,
    conv2d,
    flat,
    identity,
    linear,
    match,
)
from pyratok_jax.checkpoints.foreign.sources import TensorSource
from pyratok_jax.checkpoints.partition import module_shapes
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.documents import WRONG_VALUE, checked, read_json
from pyratok_jax.models.dino import Dino, DinoConfig

KIND = "dino"
_HEAD_WIDTH = 64  # of every published model but DINOv3 ViT-7B, whose config.json says 128


class Layout(NamedTuple):
    """How one family of files names its tensors; `{}` is the layer's number.

    Attributes:
        layer: prefix of a layer.
        top: our name -> theirs, outside the layers.
        inside: our name in a block -> theirs after the prefix (without weight / bias).
        scales: LayerScale, as for `inside` but a bare tensor.
        fused: name of the joint query, key and value projection, or None.
    """

    layer: str
    top: dict[str, str]
    inside: dict[str, str]
    scales: dict[str, str]
    fused: str | None = None


_TOP = {
    "class_token": "embeddings.cls_token",
    "registers": "embeddings.register_tokens",
    "positions": "embeddings.position_embeddings",
}
_SCALES = {"scale1": "layer_scale1.lambda1", "scale2": "layer_scale2.lambda1"}
_NORMS = {"norm1": "norm1", "norm2": "norm2"}
_SPLIT = {
    "attention.query": "attention.q_proj",
    "attention.key": "attention.k_proj",
    "attention.value": "attention.v_proj",
    "attention.out": "attention.o_proj",
}
_HUB_V2 = {
    "attention.query": "attention.attention.query",
    "attention.key": "attention.attention.key",
    "attention.value": "attention.attention.value",
    "attention.out": "attention.output.dense",
}
_UP_DOWN = {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
_FC = {"gate": "mlp.gate_proj", "up": "mlp.fc1", "down": "mlp.fc2"}


def _transformers_v3(layer: str) -> Layout:
    top = _TOP | {"embed": "embeddings.patch_embeddings", "norm": "norm"}
    return Layout(layer, top, _NORMS | _SPLIT | _UP_DOWN, _SCALES)


def _transformers_v2(attention: dict[str, str]) -> Layout:
    top = _TOP | {"embed": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    return Layout("encoder.layer.{}.", top, _NORMS | attention | _FC, _SCALES)


def _original(registers: str) -> Layout:
    top = {
        "class_token": "cls_token",
        "registers": registers,
        "positions": "pos_embed",
        "embed": "patch_embed.proj",
        "norm": "norm",
    }
    inside = _NORMS | {"attention.out": "attn.proj"} | _FC
    scales = {"scale1": "ls1.gamma", "scale2": "ls2.gamma"}
    return Layout("blocks.{}.", top, inside, scales, "attn.qkv")


def find_layout(source: TensorSource) -> Layout:
    """Tell the layout from the names.

    Raises:
        UserError: when the names are of no known DINO file.
    """
    if "cls_token" in source:
        return _original("storage_tokens" if "storage_tokens" in source else "register_tokens")
    if "encoder.layer.0.attention.attention.query.weight" in source:
        return _transformers_v2(_HUB_V2)
    if "encoder.layer.0.attention.q_proj.weight" in source:
        return _transformers_v2(_SPLIT)
    for layer in ("layer.{}.", "model.layer.{}."):
        if layer.format(0) + "attention.q_proj.weight" in source:
            return _transformers_v3(layer)
    raise UserError(
        f"{source.path}: its names are of no known DINO checkpoint; expected a transformers "
        "DINOv2 / DINOv3 folder or an original .pth of the backbone"
    )


def _shape(source: TensorSource, name: str) -> tuple[int, ...]:
    if name not in source:
        raise UserError(f"{source.path}: holds no {name}; is it a whole DINO backbone?")
    return source.info[name].shape


def infer_config(source: TensorSource, layout: Layout, **changes: Any) -> DinoConfig:
    """Sizes from the tensors; `changes` win over what tensors do not tell.

    Raises:
        UserError: when tensors are missing or the sizes do not go together.
    """
    first = layout.layer.format(0)
    width = _shape(source, layout.top["class_token"])[-1]
    gated = first + layout.inside["gate"] + ".weight" in source
    up = "mlp.up_proj" if gated else layout.inside["up"]
    numbered = re.compile(re.escape(layout.layer).replace(r"\{\}", r"(\d+)"))
    layers = {int(m.group(1)) for key in source.keys() if (m := numbered.match(key))}  # noqa: SIM118
    registers = layout.top["registers"]
    positions = layout.top["positions"]
    learned = positions in source
    count = _shape(source, registers)[1] if registers in source else 0
    side = round((_shape(source, positions)[1] - 1) ** 0.5) if learned else 0
    values: dict[str, Json] = {
        "width": width,
        "layers": len(layers),
        "heads": width // _HEAD_WIDTH,
        "hidden": _shape(source, f"{first}{up}.weight")[0],
        "patch": _shape(source, layout.top["embed"] + ".weight")[-1],
        "registers": count,
        "gated": gated,
        "key_bias": learned,
        "epsilon": 1e-6 if learned else 1e-5,
        "rope_theta": None if learned else 100.0,
        "positions": side,
        "antialias": learned and count > 0,
    }
    try:
        return DinoConfig(**(values | changes))
    except WRONG_VALUE as error:
        raise UserError(f"{source.path}: {error}; give the number of heads with --heads") from error


def read_facts(path: Path) -> dict[str, Json]:
    """Heads and epsilon from a transformers `config.json` beside the weights, if there is one."""
    folder = path if path.is_dir() else path.parent
    file = folder / "config.json"
    if not file.is_file():
        return {}
    record = read_json(file, dict[str, Json])
    facts = {"num_attention_heads": ("heads", int), "layer_norm_eps": ("epsilon", float)}
    return {
        ours: checked(record[theirs], kind, f"{file}: {theirs}")
        for theirs, (ours, kind) in facts.items()
        if theirs in record
    }


def make_entries(config: DinoConfig, layout: Layout) -> list[Entry]:
    """Where every array of the module comes from."""
    top = layout.top
    entries = [Entry(top["class_token"], "class_token", flat)]
    if config.registers:
        entries.append(Entry(top["registers"], "registers", _drop_first))
    if config.positions:
        entries.append(Entry(top["positions"], "positions", _drop_first))
    entries += [Entry(f"{top['embed']}.weight", "embed.kernel", conv2d)]
    entries += [Entry(f"{top['embed']}.bias", "embed.bias")]
    entries += _norm(top["norm"], "norm")
    for i in range(config.layers):
        entries += _block_entries(config, layout, layout.layer.format(i), f"blocks.{i}.")
    return entries


def _block_entries(config: DinoConfig, layout: Layout, theirs: str, ours: str) -> list[Entry]:
    entries = [Entry(theirs + name, ours + key) for key, name in layout.scales.items()]
    for key, name in layout.inside.items():
        if key.startswith("norm"):
            entries += _norm(theirs + name, ours + key)
        elif key != "gate" or config.gated:
            # The gated MLP has one naming in all transformers files.
            name = _UP_DOWN[key] if config.gated and key in _UP_DOWN else name
            bias = key != "attention.key" or config.key_bias
            entries += _linear(theirs + name, ours + key, bias)
    if layout.fused:
        for part, key in enumerate(("query", "key", "value")):
            source, target = f"{theirs}{layout.fused}", f"{ours}attention.{key}"
            entries.append(Entry(f"{source}.weight", f"{target}.kernel", _third(part, linear)))
            if key != "key" or config.key_bias:
                entries.append(Entry(f"{source}.bias", f"{target}.bias", _third(part, identity)))
    return entries


def _norm(theirs: str, ours: str) -> list[Entry]:
    return [Entry(f"{theirs}.weight", f"{ours}.scale"), Entry(f"{theirs}.bias", f"{ours}.bias")]


def _linear(theirs: str, ours: str, bias: bool) -> list[Entry]:
    entries = [Entry(f"{theirs}.weight", f"{ours}.kernel", linear)]
    return entries + ([Entry(f"{theirs}.bias", f"{ours}.bias")] if bias else [])


def _drop_first(x: np.ndarray) -> np.ndarray:
    return x.reshape(x.shape[1:])


def _third(part: int, then: Callable[[np.ndarray], np.ndarray]) -> Callable:
    """One of the three equal parts of a fused projection's rows."""
    return lambda x: then(np.split(x, 3)[part])


def _skip(key: str) -> str | None:
    if key.endswith("mask_token"):
        return "mask token, used in pretraining only"
    if key.endswith(("rope_embed.periods", "attn.qkv.bias_mask")):
        return "constant, computed from the configuration"
    return None


def make_plan(source: TensorSource, **changes: Any) -> tuple[DinoConfig, ConversionPlan]:
    """The configuration that a source has, and its match against the module.

    Raises:
        UserError: when the file is of no known layout.
    """
    layout = find_layout(source)
    config = infer_config(source, layout, **changes)
    shapes = module_shapes(lambda: Dino(config, rngs=nnx.Rngs(0)))
    return config, match(source, make_entries(config, layout), shapes, skip=_skip)
