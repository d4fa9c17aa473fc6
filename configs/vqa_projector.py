"""The projector of video question answering, for the demo's tokenizer.

    python -m pyratok_jax.train --config configs/vqa_projector.py --config.tokenizer=runs/demo

Tokenizer and language model stay frozen; the projector learns to make the language model say the
caption of a clip. For a real run set `data.sources` to captioned videos and raise `steps`.
"""

from ml_collections import ConfigDict

from pyratok_jax.data.config import data_config
from pyratok_jax.training.config import training_config


def get_config(argument: str = "") -> ConfigDict:
    """Defaults for the demo; `smoke` runs a few steps."""
    smoke = argument == "smoke"
    config = training_config(
        task="projector",
        steps=2 if smoke else 300,
        batch_size=2,
        checkpoint={"every": 100, "keep": 2, "keep_every": 0},
        data=data_config(
            sources=("builtin:demo",),
            buckets=("9x96x96",),
            zoom=1.3,
            mirror=True,
            cache_decoded=True,
            caption_dropout=0.0,
        ),
    )
    config.optimizer.update({"learning_rate": 1e-3, "warmup": 20, "schedule": "cosine"})
    config.tokenizer = "runs/demo"
    config.projector = ConfigDict({"hidden": 1024, "most": (4, 4, 4)})
    return config
