"""Language models: the configuration beside published weights, or inside them."""

from pyratok_jax.checkpoints.foreign import language_model
from pyratok_jax.checkpoints.foreign.language_config import parse_config, parse_gguf, parse_meta
from pyratok_jax.checkpoints.foreign.sources import TensorSource
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.documents import read_json
from pyratok_jax.models.language.config import LanguageConfig


def source_config(source: TensorSource) -> LanguageConfig:
    """The configuration beside the weights, or inside them (GGUF).

    Raises:
        UserError: when there is none, or it describes another kind of model.
    """
    layout = language_model.layout_of(source)
    if layout == "gguf":
        return parse_gguf(source)
    folder = source.path if source.path.is_dir() else source.path.parent
    name = "params.json" if layout == "meta" else "config.json"
    if not (folder / name).is_file():
        raise UserError(f"{folder}: no {name}; fetch it into the folder of the weights")
    values = read_json(folder / name, dict[str, Json])
    if layout == "meta":
        return parse_meta(values, source)
    if values.get("eos_token_id") is None and (folder / "generation_config.json").is_file():
        generation = read_json(folder / "generation_config.json", dict[str, Json])
        values["eos_token_id"] = generation.get("eos_token_id")
    return parse_config(values, has_head=language_model.head_key(source) is not None)
