"""A complete small world for trainings: random frozen weights in our format, videos, a config."""

from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.conversion import Entry, match, write_checkpoint
from pyratok_jax.checkpoints.foreign.sources import sources_from_arrays
from pyratok_jax.checkpoints.partition import module_arrays
from pyratok_jax.data.config import data_config
from pyratok_jax.models.dino import Dino, DinoConfig
from pyratok_jax.models.language.config import LanguageConfig
from pyratok_jax.models.language.model import LanguageModel
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.model import WanVAE
from pyratok_jax.training.config import tokenizer_training_config
from tests.data.synthetic import numbered_frames, write_video

WORDS = ["a", "red", "green", "blue", "square", "moves", "left", "right", "up", "down"]
VAE = WanVAEConfig(
    base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4
)
DINO = DinoConfig(width=8, layers=1, heads=2, hidden=16, registers=1)
LANGUAGE = LanguageConfig(
    vocabulary=32, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_width=32
)


def write_module(folder: Path, kind: str, config: dict, module: nnx.Module, copy=()) -> None:
    """A module in the converters' output format."""
    arrays = {name: np.asarray(value) for name, value in module_arrays(module).items()}
    source = sources_from_arrays(arrays)
    entries = [Entry(name, name) for name in arrays]
    plan = match(source, entries, {name: x.shape for name, x in arrays.items()})
    write_checkpoint(folder, kind=kind, config=config, plan=plan, copy=copy)


def write_tokenizer_files(folder: Path) -> list[Path]:
    """A word-level tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    )
    wrapped.save_pretrained(folder)
    return [folder / "tokenizer.json", folder / "tokenizer_config.json"]


def random_vae(sizes: WanVAEConfig = VAE) -> WanVAE:
    """Random weights, biases too: a hidden patch must not give the zero vector to a norm."""
    vae = WanVAE(sizes, rngs=nnx.Rngs(1))
    for number, (path, variable) in enumerate(nnx.to_flat_state(nnx.state(vae, nnx.Param))):
        if path[-1] == "bias":
            noise = jax.random.normal(jax.random.key(number), variable.shape)
            variable[...] = 0.3 * noise
    return vae


def make_world(folder: Path, vae: WanVAEConfig = VAE) -> Path:
    """Write `vae`, `dino`, `language`, `videos` (six captioned clips), `heldout` (one)."""
    write_module(folder / "vae", "wan_vae", vae.to_dict(), random_vae(vae))
    write_module(folder / "dino", "dino", DINO.to_dict(), Dino(DINO, rngs=nnx.Rngs(3)))
    scratch = folder / "tokenizer"
    scratch.mkdir()
    write_module(
        folder / "language",
        "language_model",
        LANGUAGE.to_dict(),
        LanguageModel(LANGUAGE, rngs=nnx.Rngs(2)),
        copy=write_tokenizer_files(scratch),
    )
    for split, count in (("videos", 6), ("heldout", 1)):
        (folder / split).mkdir()
        for i in range(count):
            video = numbered_frames(16, 32, 32)
            video[:, 8:24, 4 * i : 4 * i + 12, i % 3] = 220
            write_video(folder / split / f"clip{i}.mp4", video)
            text = f"a {WORDS[1 + i % 3]} square moves {WORDS[6 + i % 4]}"
            (folder / split / f"clip{i}.txt").write_text(text)
    return folder


def tiny_config(world: Path, **changes) -> ConfigDict:
    """A training of the whole method in that world, every loss on but LPIPS (its weights are big).

    Tests share its compiled step as long as they leave steps, seed and optimizer alone.
    """
    config = tokenizer_training_config(
        **{"steps": 20, "batch_size": 2, "log_every": 5, **changes}  # fmt: skip
    )
    config.checkpoint.every = 8
    config.optimizer.update({"learning_rate": 2e-2})
    config.model.backbone = str(world / "vae")
    config.model.tokenizer.update(
        {"bits": 6, "width": 16, "heads": 2, "synthesis_width": 8, "lora_rank": 2,
         # Every level has every input, so that tests reach all of a block.
         "inputs": "residual-everywhere"}
    )  # fmt: skip
    with config.ignore_type():
        config.model.tokenizer.grids = ((1, 16), (2, 16), (4, 16), (4, 8))
    config.language.update({"spec": str(world / "language"), "length": 8})
    config.vision.update({"spec": str(world / "dino"), "projection": 8})
    config.loss.weights.update({"lpips": 0.0, "drift_dinov3": 1.0, "retention": 1.0})
    config.loss.token_budget = 24
    config.calibration.update({"batches": 1, "steps": 2, "refine_steps": 2})
    config.report.update({"buckets": ("5x32x32",), "lpips": False})
    config.data = data_config(
        sources=(str(world / "videos"),),
        heldout=(str(world / "heldout"),),
        buckets=("5x32x32",),
        threads=1,
        decode_time_limit=0.0,
    )
    return config


def arrays_equal(a: dict, b: dict) -> bool:
    """Whether two dictionaries hold the same bits."""
    return a.keys() == b.keys() and all(
        np.array_equal(np.asarray(a[name]), np.asarray(b[name])) for name in a
    )


def clip(seed: int, batch: int = 1) -> np.ndarray:
    """Random pixels, uint8 (b, 5, 32, 32, 3)."""
    key = jax.random.key(seed)
    return np.asarray(jax.random.randint(key, (batch, 5, 32, 32, 3), 0, 256), np.uint8)
