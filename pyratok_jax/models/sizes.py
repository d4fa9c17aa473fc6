"""Sizes by name, published and the demo's, for programs that are compiled without the weights."""

from pyratok_jax.models.cogvideox import COGVIDEOX_2B, COGVIDEOX_5B
from pyratok_jax.models.dino import DinoConfig
from pyratok_jax.models.hunyuan_video import HUNYUAN_VIDEO
from pyratok_jax.models.language.config import LanguageConfig, RopeConfig
from pyratok_jax.models.mochi import MOCHI
from pyratok_jax.models.svd import SVD
from pyratok_jax.models.vae_config import VideoVAEConfig
from pyratok_jax.models.wan_vae.config import DEMO, WAN21, WAN22

VAES: dict[str, VideoVAEConfig] = {
    "wan2.1": WAN21,
    "wan2.2-ti2v": WAN22,
    "cogvideox-2b": COGVIDEOX_2B,
    "cogvideox-5b": COGVIDEOX_5B,
    "hunyuan-video": HUNYUAN_VIDEO,
    "mochi": MOCHI,
    "svd": SVD,
    "demo": DEMO,
}
LANGUAGE_MODELS: dict[str, LanguageConfig] = {
    "qwen2.5-vl-3b": LanguageConfig(
        family="qwen2_5_vl",
        vocabulary=151936, max_length=128000, bos=151643, eos=(151645,),
        width=2048, layers=36, heads=16, kv_heads=2, head_dim=128, mlp_width=11008,
        rope=RopeConfig(theta=1e6), mrope_section=(16, 24, 24), tokens_per_second=2.0,
        tied=True, qkv_bias=True,
    ),
    "smollm2-135m": LanguageConfig(
        vocabulary=49152,
        width=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp_width=1536,
        rope=RopeConfig(theta=1e5), norm_eps=1e-5,
    ),
}  # fmt: skip
VISION_MODELS: dict[str, DinoConfig] = {
    "dinov3-vits16": DinoConfig(width=384, heads=6, hidden=1536),
    "dinov3-vitb16": DinoConfig(),
    "dinov3-vitl16": DinoConfig(width=1024, layers=24, heads=16, hidden=4096),
    "demo": DinoConfig(width=128, layers=6, heads=4, hidden=512),
}
