"""The paper's recipe at full size, for TPU v5 pods: stages 1, 2 and 3.

    python -m pyratok_jax.train --config configs/tpu_v5.py:stage1 \
        --workdir /mnt/BUCKET/stage1 --config.multi_host=true

Each stage starts from the one before: `:stage2 --config.init_from=/mnt/BUCKET/stage1`. Convert the
frozen weights first (`weights_conversion.wan_vae`, `weights_conversion.language_model`, and for
stage 3 `weights_conversion.dino`) and point `--config.model.backbone`, `--config.language.spec` and
`--config.vision.spec` at them.

`:stage1-v5e` and so on are the same for slices of v5e chips (v5e:16x16), which have a sixth of the
memory: smaller frames, and split earlier.

| stage | steps | what | sides | frames |
|---|---|---|---|---|
| 1 | 30,000 | language-aligned pretraining, no autoregressive loss | 512 .. 2048 | 17 .. 97 |
| 2 | 60,000 | autoregressive alignment through Qwen2.5-VL-3B | 512 .. 2048 | 17 .. 97 |
| 3 | 180,000 | all losses | 128 .. 4096 | 17 .. 97 (4096: 17) |

Batches shrink as clips grow, so that a step has about as many pixels whatever its bucket, down to
one clip for each group of chips that share frames. Clips of up to 17x512x512 (v5e: 17x256x256) lie
whole on a chip; larger ones have their height split over the mesh axis spatial. Lengths, sides and
aspects above a number of pixels are left out. `docs/pods.md` has what compiling them says: the
largest bucket of every stage fits v5p:4x4x4, and with -v5e v5e:16x16.

AdamW, learning rate 1e-5, cosine, batch 512 (256 in stage 3) of the smallest clips, bfloat16
compute over float32 parameters. Inputs of the levels, hidden captions and the pooling of the text
term are those that put words into the tokens of the world (`docs/proof.md`), not the paper's; at
this size they are unproven. The paper does not state the weights of stage 3's two DINOv3 terms;
these are ours.
"""

import math

from ml_collections import ConfigDict

from pyratok_jax.data.buckets import ASPECTS
from pyratok_jax.data.config import data_config
from pyratok_jax.training.config import tokenizer_training_config

STAGES = {"stage1": 30_000, "stage2": 60_000, "stage3": 180_000}
SIDES = {"stage1": (512, 1024, 2048), "stage2": (512, 1024, 2048), "stage3": (128, 512, 2048, 4096)}
# Weight of the text-codebook term: what has been learned stays in the codes at a smaller one.
TEXT = {"stage1": 0.4, "stage2": 0.2, "stage3": 0.12}
FRAMES = (17, 49, 97)
# Sizes of the mesh, parts of a batch, pixels of the largest clip that lies whole on a chip, and of
# the largest clip at all.
CHIPS = {
    "v5p": {"fsdp": 4, "spatial": 16, "parts": 4, "whole": 17 * 512**2, "largest": 49 * 2048**2},
    "v5e": {"fsdp": 16, "spatial": 16, "parts": 2, "whole": 17 * 256**2, "largest": 17 * 1024**2},
}
# Stage 3 has frames of 4096 pixels.
LARGE = {"fsdp": 2, "spatial": 32, "largest": 17 * 4096**2}


def _buckets(sides: tuple[int, ...], batch: int, chip: dict[str, int]) -> tuple[str, ...]:
    """Every side, length and aspect that fits, with its clips: FRAMESxHEIGHTxWIDTH*CLIPS."""
    names: dict[str, None] = {}
    for frames in FRAMES:
        for side in sides:
            if frames * side**2 > chip["largest"]:
                continue
            split = frames * side**2 > chip["whole"]
            # Tokens of the coarsest level have 32 pixels a side; of a split frame each chip has
            # whole rows of them.
            rows = 32 * chip["spatial"] if split else 32
            for aspect in ASPECTS:
                height = max(round(side / math.sqrt(aspect) / rows), 1) * rows
                width = max(round(height * aspect / 32), 1) * 32
                pixels = frames * height * width
                clips = f"*{_clips(pixels, batch, chip)}" if split else ""
                if pixels <= chip["largest"]:
                    names[f"{frames}x{height}x{width}{clips}"] = None
    return tuple(names)


def _clips(pixels: int, batch: int, chip: dict[str, int]) -> int:
    """Clips of a batch of split frames: a power of two for each group of chips that share them.

    Fewer than there are chips, or the frames would not be split.
    """
    share = batch * chip["whole"] / pixels / chip["fsdp"]
    share = min(max(share, 1), chip["spatial"] / 2)
    return chip["fsdp"] * 2 ** int(math.log2(share))


def get_config(argument: str = "stage1") -> ConfigDict:
    """One stage of the recipe, for one kind of chip."""
    stage, _, kind = (argument or "stage1").partition("-")
    kind = kind or "v5p"
    if stage not in STAGES or kind not in CHIPS:
        raise ValueError(
            f"tpu_v5.py:{argument}: expected one of {', '.join(STAGES)}, with -v5e for v5e chips"
        )
    chip, batch = CHIPS[kind], 256 if stage == "stage3" else 512
    if stage == "stage3" and kind == "v5p":
        chip = chip | LARGE
    sides = (*SIDES[stage], *([256] if kind == "v5e" else []))
    config = tokenizer_training_config(
        # Another order of the clips than the stage before it had.
        seed=list(STAGES).index(stage),
        steps=STAGES[stage],
        batch_size=batch,
        dtype="bfloat16",
        accumulate=chip["parts"],
        remat="auto",
        ema_decay=0.9999,
        checkpoint={"every": 500, "keep": 3, "keep_every": 10_000},
        log_every=50,
        mesh={
            "data": -1,
            "fsdp": chip["fsdp"],
            "spatial": chip["spatial"],
            "tensor": 1,
            "slices": 1,
        },
    )
    config.optimizer.update({"learning_rate": 1e-5, "warmup": 500, "schedule": "cosine"})
    # Fresh text modules at 3e-4; everything else at the published rate. Attention and the null
    # caption of later stages are not fresh, and faster than the levels they would drown what these
    # read of the level before (docs/proof.md).
    fast = (r"^alignment\.|\.attention\.|\.text_prior\.|null_text", 30.0)
    slow = () if stage == "stage1" else ((r"\.attention\.|null_text", 1.0),)
    config.optimizer.groups = (*slow, fast)
    # One cosine of spatial masking over all three stages.
    done = sum(n for name, n in STAGES.items() if name < stage)
    total = sum(STAGES.values())
    config.masking.update({"start": done / total, "end": (done + STAGES[stage]) / total})
    config.model.update({"backbone": "weights/wan21_vae", "vae": "wan2.1"})
    config.language.update({"spec": "weights/qwen25_vl_3b", "size": "qwen2.5-vl-3b"})
    config.loss.weights.autoregressive = 0.0 if stage == "stage1" else 1.5
    if stage == "stage3":
        config.loss.weights.update({"drift_dinov3": 1.0, "retention": 1.0})
    config.vision.update({"spec": "weights/dinov3_vitb16", "size": "dinov3-vitb16"})
    # Attention over the 65,536 patches of a whole 4K frame fits no chip.
    config.vision.largest_side = 768
    config.loss.settings.dino_frames = 4
    config.loss.token_budget = 4096
    # As the shipped tokenizer was trained: a level that sees the caption can copy it into its
    # codes, so most must learn from the video; what is small in it is found by its peaks.
    config.loss.hidden_captions = 0.9
    config.loss.settings.text_pooling = "peaks"
    # Level 1 learns words first, as in `configs/world.py`, whose stages are measured.
    config.loss.weights.text_codebook = TEXT[stage]
    config.loss.settings.text_levels = (1.0, 0.02, 0.02, 0.1)
    config.loss.settings.lpips_frames = 8
    config.calibration.batches = 0
    config.data = data_config(
        sources=("data/droplet10m_hd", "data/openvid1m_hd", "data/ultravideo"),
        heldout=("data/openvid1m_test",),
        buckets=_buckets(sides, batch, chip),
        workers=16,
        threads=8,
        prefetch=4,
    )
    return config
