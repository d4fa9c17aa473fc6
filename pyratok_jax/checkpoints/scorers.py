"""Networks that score generated videos, from folders that `weights_conversion` wrote."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flax import nnx

from pyratok_jax.checkpoints.foreign.language_tokenizer import load_tokenizer_files
from pyratok_jax.checkpoints.hub import local_folder
from pyratok_jax.checkpoints.partition import build_module, module_shapes
from pyratok_jax.checkpoints.weights import load_checkpoint, read_config
from pyratok_jax.io.documents import refusing
from pyratok_jax.models.perceptual.c3d import C3D
from pyratok_jax.models.perceptual.clip import Clip, ClipConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLIP_KIND, C3D_KIND = "clip", "c3d"


class ClipWithWords(NamedTuple):
    """CLIP and its word tokenizer."""

    model: Clip
    words: "PreTrainedTokenizerBase"


def load_clip(path: str | Path) -> ClipWithWords:
    """The network and word tokenizer of a folder written by `weights_conversion.clip`.

    Raises:
        UserError: no such folder, one of another kind, or a damaged one.
    """
    folder = local_folder(path)
    with refusing(f"{folder}/config.json"):
        config = ClipConfig.from_dict(read_config(folder, CLIP_KIND)["config"])
    arrays = load_checkpoint(folder, module_shapes(lambda: Clip(config, rngs=nnx.Rngs(0))))
    model = build_module(lambda: Clip(config, rngs=nnx.Rngs(0)), arrays)
    return ClipWithWords(model, load_tokenizer_files(folder))


def load_c3d(path: str | Path) -> C3D:
    """The network of a folder written by `weights_conversion.c3d`.

    Raises:
        UserError: no such folder, one of another kind, or a damaged one.
    """
    folder = local_folder(path)
    read_config(folder, C3D_KIND)
    arrays = load_checkpoint(folder, module_shapes(lambda: C3D(rngs=nnx.Rngs(0))))
    return build_module(lambda: C3D(rngs=nnx.Rngs(0)), arrays)
