"""CLIP: sizes out of a transformers folder, names of tensors, and the plan."""

from pathlib import Path

from flax import nnx

from pyratok_jax.checkpoints.conversion import ConversionPlan, Entry, conv2d, linear, match
from pyratok_jax.checkpoints.foreign.sources import TensorSource
from pyratok_jax.checkpoints.partition import module_shapes
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.documents import read_json, refusing
from pyratok_jax.models.perceptual.clip import Clip, ClipConfig, TowerConfig

_BLOCK = {
    "norm1": "layer_norm1", "norm2": "layer_norm2", "query": "self_attn.q_proj",
    "key": "self_attn.k_proj", "value": "self_attn.v_proj", "out": "self_attn.out_proj",
    "up": "mlp.fc1", "down": "mlp.fc2",
}  # fmt: skip
# Sizes that a config.json leaves out are those of openai/clip-vit-base-patch32.
_VISION = {"width": ("hidden_size", 768), "layers": ("num_hidden_layers", 12),
           "heads": ("num_attention_heads", 12), "hidden": ("intermediate_size", 3072)}  # fmt: skip
_TEXT = {"width": ("hidden_size", 512), "layers": ("num_hidden_layers", 12),
         "heads": ("num_attention_heads", 8), "hidden": ("intermediate_size", 2048)}  # fmt: skip


def read_sizes(path: Path) -> ClipConfig:
    """The sizes in a transformers `config.json`.

    Raises:
        UserError: another model's, or impossible sizes.
    """
    record = read_json(path, dict[str, Json])
    if record.get("model_type") != "clip":
        raise UserError(f"{path}: model_type {record.get('model_type')!r}, expected clip")

    def tower(part: str, fields: dict[str, tuple[str, int]]) -> TowerConfig:
        said = record.get(part) or {}
        return TowerConfig(**{k: said.get(name, default) for k, (name, default) in fields.items()})

    with refusing(str(path)):
        vision, text = (record.get(f"{part}_config") or {} for part in ("vision", "text"))
        return ClipConfig(
            tower("vision_config", _VISION), tower("text_config", _TEXT),
            side=vision.get("image_size", 224), patch=vision.get("patch_size", 32),
            vocabulary=text.get("vocab_size", 49408),
            length=text.get("max_position_embeddings", 77), end=text.get("eos_token_id", 49407),
            projection=record.get("projection_dim", 512),
            activation=vision.get("hidden_act", "quick_gelu"),
        )  # fmt: skip


def make_entries(config: ClipConfig) -> list[Entry]:
    """Where every array of the module comes from."""
    vision, text = "vision_model.", "text_model."
    entries = [
        Entry(f"{vision}embeddings.class_embedding", "class_token"),
        Entry(f"{vision}embeddings.position_embedding.weight", "patch_positions"),
        Entry(f"{vision}embeddings.patch_embedding.weight", "embed.kernel", conv2d),
        Entry("visual_projection.weight", "vision_out.kernel", linear),
        Entry(f"{text}embeddings.token_embedding.weight", "words.embedding"),
        Entry(f"{text}embeddings.position_embedding.weight", "word_positions"),
        Entry("text_projection.weight", "text_out.kernel", linear),
        *_norm(f"{vision}pre_layrnorm", "vision_before"),  # The published spelling.
        *_norm(f"{vision}post_layernorm", "vision_after"),
        *_norm(f"{text}final_layer_norm", "text_after"),
    ]
    for tower, layers in (("vision", config.vision.layers), ("text", config.text.layers)):
        for number in range(layers):
            theirs = f"{tower}_model.encoder.layers.{number}."
            entries += _block(theirs, f"{tower}_blocks.{number}.")
    return entries


def _block(theirs: str, ours: str) -> list[Entry]:
    entries = []
    for name, other in _BLOCK.items():
        if name.startswith("norm"):
            entries += _norm(theirs + other, ours + name)
        else:
            entries.append(Entry(f"{theirs}{other}.weight", f"{ours}{name}.kernel", linear))
            entries.append(Entry(f"{theirs}{other}.bias", f"{ours}{name}.bias"))
    return entries


def _norm(theirs: str, ours: str) -> list[Entry]:
    return [Entry(f"{theirs}.weight", f"{ours}.scale"), Entry(f"{theirs}.bias", f"{ours}.bias")]


def _skip(key: str) -> str | None:
    if key.endswith("position_ids"):
        return "constant, 0, 1, 2, ..."
    return "temperature, used in pretraining only" if key == "logit_scale" else None


def make_plan(source: TensorSource, config: ClipConfig) -> ConversionPlan:
    """Match a source against the module."""
    shapes = module_shapes(lambda: Clip(config, rngs=nnx.Rngs(0)))
    return match(source, make_entries(config), shapes, skip=_skip)
