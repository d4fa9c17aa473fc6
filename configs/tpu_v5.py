"""The paper's recipe at full size, for TPU v5 pods: stages 1, 2 and 3.

    python -m pyratok_jax.train --config configs/tpu_v5.py:stage1 \
        --workdir gs://BUCKET/stage1 --config.multi_host=true

Each stage starts from the one before: `:stage2 --config.init_from=gs://BUCKET/stage1`. Convert the
frozen weights first (`weights_conversion.wan_vae`, `weights_conversion.language_model`, and for
stage 3 `weights_conversion.dino`) and point `--config.model.backbone`, `--config.language.spec` and
`--config.vision.spec` at them.

| stage | steps | what | sides | frames |
|---|---|---|---|---|
| 1 | 30,000 | language-aligned pretraining, no autoregressive loss | 512 .. 2048 | 17 .. 97 |
| 2 | 60,000 | autoregressive alignment through Qwen2.5-VL-3B | 512 .. 2048 | 17 .. 97 |
| 3 | 180,000 | all losses, frame retention in DINOv3 too | 128 .. 4096 | 17 .. 97 |

AdamW, learning rate 1e-5, cosine, global batch 512 (256 in stage 3), bfloat16 compute over float32
parameters. The paper does not state the weights of stage 3's two DINOv3 terms; these are ours.
"""

from ml_collections import ConfigDict

from pyratok_jax.data.buckets import resolution_buckets
from pyratok_jax.data.config import data_config
from pyratok_jax.training.config import tokenizer_training_config

STAGES = {"stage1": 30_000, "stage2": 60_000, "stage3": 180_000}
FRAMES = (17, 49, 97)
SIDES = {"stage1": (512, 1024, 2048), "stage2": (512, 1024, 2048), "stage3": (128, 512, 2048, 4096)}


def get_config(argument: str = "stage1") -> ConfigDict:
    """One stage of the recipe."""
    stage = argument or "stage1"
    if stage not in STAGES:
        raise ValueError(f"tpu_v5.py:{argument}: expected one of {', '.join(STAGES)}")
    config = tokenizer_training_config(
        steps=STAGES[stage],
        batch_size=256 if stage == "stage3" else 512,
        dtype="bfloat16",
        # One clip of 17x512x512 for each chip of 64 at a time.
        accumulate=8,
        remat="stages",
        ema_decay=0.9999,
        checkpoint={"every": 500, "keep": 3, "keep_every": 10_000},
        log_every=50,
        mesh={"data": -1, "fsdp": 4, "spatial": 16, "tensor": 1, "slices": 1},
    )
    config.optimizer.update({"learning_rate": 1e-5, "warmup": 500, "schedule": "cosine"})
    config.model.update({"backbone": "weights/wan21_vae", "vae": "wan2.1"})
    config.language.update({"spec": "weights/qwen25_vl_3b", "size": "qwen2.5-vl-3b"})
    config.loss.weights.autoregressive = 0.0 if stage == "stage1" else 1.5
    if stage == "stage3":
        config.loss.weights.update({"drift_dinov3": 1.0, "retention": 1.0})
    config.vision.update({"spec": "weights/dinov3_vitb16", "size": "dinov3-vitb16"})
    config.loss.settings.dino_frames = 4
    config.loss.token_budget = 4096
    config.loss.settings.lpips_frames = 8
    config.calibration.batches = 0
    config.data = data_config(
        sources=("data/droplet10m_hd", "data/openvid1m_hd", "data/ultravideo"),
        heldout=("data/openvid1m_test",),
        # Multiples of 32: the coarsest level of the pyramid.
        buckets=resolution_buckets(FRAMES, SIDES[stage], multiple=32),
        workers=16,
        threads=8,
        prefetch=4,
    )
    return config
