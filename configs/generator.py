"""A prior over the tokens of a trained tokenizer: text (or classes) to video.

    python -m pyratok_jax.export_tokens --checkpoint RUN --input VIDEOS --output TOKENS
    python -m pyratok_jax.train --config configs/generator.py:blocks --workdir runs/generator \
        --config.tokenizer=RUN --config.tokens.path=TOKENS
    python -m pyratok_jax.generate --checkpoint runs/generator --prompt "..." --output samples

| argument | order | sizes |
|---|---|---|
| blocks | causal over latent frames, levels unmasked in parallel | 24 layers of 1,024 |
| raster | next token, level after level | 24 layers of 1,024 |
| masked | whole clip, levels unmasked in parallel | 24 layers of 1,024 |
| blocks-1b, raster-1b, masked-1b | the same, a billion parameters | 23 layers of 2,048 |
| demo | as blocks; `--config.model.order` changes it | 6 layers of 192, for two CPU cores |
| smoke | demo, a few steps | |

Class-conditional: `--config.conditioning.kind=classes` and the names in `conditioning.classes`; the
captions of the tokens must be those names.
"""

from ml_collections import ConfigDict

from pyratok_jax.training.config import generator_training_config

ORDERS = ("blocks", "raster", "masked")
LARGE = "-1b"
SMALL = ("demo", "smoke")
ARGUMENTS = (*ORDERS, *(order + LARGE for order in ORDERS), *SMALL)


def get_config(argument: str = "blocks") -> ConfigDict:
    """One order at base or pod size, or a small one."""
    argument = argument or "blocks"
    if argument not in ARGUMENTS:
        raise ValueError(f"generator.py:{argument}: expected one of {', '.join(ARGUMENTS)}")
    small, smoke, large = argument in SMALL, argument == "smoke", argument.endswith(LARGE)
    config = generator_training_config(
        steps=4 if smoke else 600 if small else 300_000,
        batch_size=2 if smoke else 8 if small else 256,
        checkpoint={"every": 200 if small else 2000, "keep": 2, "keep_every": 0},
        log_every=1 if smoke else 10 if small else 50,
        dtype="float32" if small else "bfloat16",
        ema_decay=0.0 if small else 0.9999,
        remat="none" if small else "layers",
    )
    config.optimizer.update(
        {"learning_rate": 1e-3 if small else 1e-4, "warmup": 1 if smoke else 30 if small else 5000,
         "final_share": 0.1, "b2": 0.95, "weight_decay": 0.05}
    )  # fmt: skip
    config.model.order = "blocks" if small else argument.removesuffix(LARGE)
    if small:
        config.model.update({"width": 192, "layers": 6, "heads": 3, "kv_heads": 1})
    else:
        width, layers = (2048, 23) if large else (1024, 24)
        config.model.update({"width": width, "layers": layers, "heads": 16, "kv_heads": 4})
        # Infinity's range; the context of finished frames is what it is for.
        config.objective.flip = 0.1
    if large:
        # Parameters, moments and averages are 16 GB in float32.
        config.mesh.fsdp = 16
    if config.model.order == "masked":
        config.objective.tasks = 0.2
    return config
