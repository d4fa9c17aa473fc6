"""The published ablations as changes of a base config, each with what it asks.

Rates in the comments are in bits per pixel for clips of 17 frames, where the full method has .141
(9,792 tokens of 16 bits at 256x256). Quantisers of the final latent have one grid, 5 token frames
at the latent's resolution (5,120 tokens a level); bits are chosen so that rates are as equal as
whole numbers allow.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from ml_collections import ConfigDict

from pyratok_jax.errors import UserError
from pyratok_jax.io import Json

SCALES = ("demo", "world", "full")  # of base configs
LATENT = ((4, 8),)
# Codes that are indices of vectors have no bit distributions.
_NO_BIT_TERMS = {
    "loss.weights.entropy": 0.0,
    "loss.weights.hierarchy": 0.0,
    "loss.weights.text": 0.0,
}
_NO_TEXT = {
    "model.tokenizer.text_guidance": False,
    "loss.weights.text": 0.0,
    "loss.weights.text_codebook": 0.0,
}


@dataclasses.dataclass(frozen=True)
class Ablation:
    """One row of a table.

    Attributes:
        group: table it belongs to.
        label: of the row.
        changes: config keys (dotted) and values.
        published: PSNR on COCO val and WebVid-10M in the paper at full scale, where it states them.
        scales: those of `SCALES` at which it can be run.
        world: further changes at the scale "world", whose full method has .130 bpp at 9x64x64.
    """

    group: str
    label: str
    changes: Mapping[str, Json] = dataclasses.field(default_factory=dict)
    published: tuple[float | None, float | None] = (None, None)
    scales: tuple[str, ...] = SCALES
    world: Mapping[str, Json] = dataclasses.field(default_factory=dict)


def _quantizer(name: str, levels: int, bits: int, **more: Json) -> dict[str, Json]:
    return {
        "model.tokenizer.quantizer": name,
        "model.tokenizer.grids": LATENT * levels,
        "model.tokenizer.bits": bits,
        **{key.replace("__", "."): value for key, value in more.items()},
    }


def _bits(bits: int) -> dict[str, Json]:
    return {"model.tokenizer.bits": bits}


def _without(*terms: str) -> dict[str, Json]:
    return {f"loss.weights.{term}": 0.0 for term in terms}


def _blocks(grids: tuple[tuple[int, int], ...], bits: int) -> dict[str, Json]:
    return {"model.tokenizer.grids": grids, "model.tokenizer.bits": bits}


def _vae(
    label: str,
    weights: str,
    sizes: str,
    published: float | None = None,
    more: Mapping[str, Json] = MappingProxyType({}),
) -> Ablation:
    """Another backbone, which needs converted weights and so the full scale."""
    backbone = {"model.backbone": f"weights/{weights}", "model.vae": sizes}
    return Ablation("VAEs", label, backbone | dict(more), (published, None), scales=("full",))


_LANGUAGE = {
    "demo": {"language_gemma3_270m": "builtin:gemma3-270m"},
    "full": {
        "language_llama3_8b": "weights/llama3_8b",
        "language_gemma3_4b": "weights/gemma3_4b",
        "language_qwen25_vl_7b": "weights/qwen25_vl_7b",
    },
}
_PUBLISHED_LANGUAGE = {
    "language_llama3_8b": (35.62, 35.34),
    "language_gemma3_4b": (35.29, 35.92),
}

ABLATIONS: dict[str, Ablation] = {
    # Components.
    "full": Ablation("components", "full method", {}, (35.72, 36.05)),
    "continuous": Ablation(
        "components",
        "no LaPQ: continuous latent (no tokens)",
        {"model.tokenizer.quantizer": "none", "model.tokenizer.grids": LATENT, **_NO_TEXT}
        | _without("autoregressive", "codebook"),
        (31.41, 31.47),
    ),
    "single_lfq": Ablation(  # .142 bpp; the batch entropy of 2^31 codes cannot be held
        "components",
        "no LaPQ: one LFQ at equal bpp (31 bits, no entropy term)",
        _quantizer("lfq", 1, 31) | _without("entropy"),
        world=_bits(25),  # .130 bpp
    ),
    "no_text": Ablation("components", "no text guidance", _NO_TEXT, (33.43, 36.02)),
    "no_pyramid": Ablation(  # .147 bpp
        "components",
        "no pyramid: four equal grids of 8 bits",
        _blocks(LATENT * 4, 8),
        (34.02, 34.02),
        world=_bits(6),  # .125 bpp
    ),
    "residual": Ablation(  # .147 bpp
        "components",
        "residual LFQ on the final latent (2 x 16 bits)",
        _quantizer("residual", 2, 16),
        world=_bits(12),  # .125 bpp
    ),
    # Blocks, at equal bpp.
    "blocks_2": Ablation(  # .138 bpp
        "blocks",
        "2 blocks (24 bits)",
        _blocks(((4, 16), (4, 8)), 24),
        (33.21, 33.98),
        world=_bits(20),  # .130 bpp
    ),
    "blocks_3": Ablation(  # .141 bpp
        "blocks",
        "3 blocks (18 bits)",
        _blocks(((2, 16), (4, 16), (4, 8)), 18),
        (34.78, 35.14),
        world=_blocks(((4, 16), (4, 16), (4, 8)), 17),  # .133 bpp
    ),
    # Presets: the rate changes.
    "uniform": Ablation(
        "presets", "preset uniform", {"model.tokenizer.grids": "uniform"}, scales=("demo", "full")
    ),
    "compact": Ablation(
        "presets", "preset compact", {"model.tokenizer.grids": "compact"}, scales=("demo", "full")
    ),
    # Losses.
    "no_drift": Ablation("losses", "no drift", _without("drift"), (33.48, 34.52)),
    "no_autoregressive": Ablation(
        "losses", "no autoregressive loss", _without("autoregressive"), (33.42, 34.01)
    ),
    "no_drift_no_autoregressive": Ablation(
        "losses", "neither drift nor AR", _without("drift", "autoregressive"), (32.17, 32.32)
    ),
    "no_ssim": Ablation("losses", "no SSIM", _without("ssim")),
    "no_lpips": Ablation("losses", "no LPIPS", _without("lpips")),
    "no_retention": Ablation("losses", "no DINO retention", _without("retention")),
    "no_dino_drift": Ablation("losses", "no drift from DINO", _without("drift_dinov3")),
    "no_vae_drift": Ablation("losses", "no drift from the VAE", _without("drift_vae")),
    "no_masking": Ablation(
        "losses", "no masking", {"masking.frame_ratio": 0.0, "masking.spatial_ratio": 0.0}
    ),
    # Codebook terms.
    "no_commitment": Ablation(
        "codebook terms", "no commitment", _without("commitment"), (32.88, 33.45)
    ),
    "no_entropy": Ablation("codebook terms", "no entropy", _without("entropy")),
    "no_hierarchy": Ablation("codebook terms", "no hierarchy KL", _without("hierarchy")),
    "no_text_alignment": Ablation(
        "codebook terms", "no text-conditioned alignment", _without("text"), (33.27, 34.12)
    ),
    "no_text_codebook": Ablation(
        "codebook terms", "no text-codebook alignment", _without("text_codebook"), (34.11, 34.78)
    ),
    # Quantisers.
    "vq": Ablation(  # .055 bpp
        "quantisers",
        "VQ 4096, vectors of 256",
        _quantizer("vq", 1, 12, model__tokenizer__code_width=256) | _NO_BIT_TERMS,
        (31.45, 32.91),
    ),
    "gvq": Ablation(  # .110 bpp
        "quantisers",
        "GVQ 2 x 4096, vectors of 256",
        _quantizer("gvq", 2, 12, model__tokenizer__code_width=256) | _NO_BIT_TERMS,
        (32.25, 33.34),
    ),
    # .074 bpp; published with 32,800 codes.
    "lfq": Ablation("quantisers", "LFQ 2^16", _quantizer("lfq", 1, 16), (34.22, 33.92)),
    "rvq": Ablation(  # .138 bpp
        "quantisers",
        "RVQ 3 x 1024 (equal bpp)",
        _quantizer("rvq", 3, 10) | _NO_BIT_TERMS,
        world=_bits(8),  # .125 bpp
    ),
    "rvq_8000": Ablation(  # .119 bpp
        "quantisers",
        "RVQ 2 x 8000, vectors of 512",
        _quantizer(
            "rvq", 2, 13, model__tokenizer__vocabulary=8000, model__tokenizer__code_width=512
        )
        | _NO_BIT_TERMS,
        (33.92, 34.22),
    ),
    "rvq_32800": Ablation(  # .147 bpp
        "quantisers",
        "RVQ 2 x 32800, vectors of 16",
        _quantizer("rvq", 2, 16, model__tokenizer__vocabulary=32800) | _NO_BIT_TERMS,
        (34.78, None),
    ),
    "lapq_8000": Ablation(
        "quantisers",
        "LaPQ 8000, 512 channels in a level",
        {
            "model.tokenizer.bits": 13,
            "model.tokenizer.vocabulary": 8000,
            "model.tokenizer.width": 512,
        },
    ),
    # Codebook sizes of LaPQ.
    "vocabulary_4096": Ablation("codebook sizes", "LaPQ 4096", {"model.tokenizer.bits": 12}),
    "vocabulary_32800": Ablation(
        "codebook sizes", "LaPQ 32800", {"model.tokenizer.vocabulary": 32800}
    ),
    "vocabulary_48000": Ablation(
        "codebook sizes", "LaPQ 48000", {"model.tokenizer.vocabulary": 48000}, (35.72, None)
    ),
    "vocabulary_20000": Ablation(
        "codebook sizes",
        "LaPQ 20000",
        {"model.tokenizer.bits": 15, "model.tokenizer.vocabulary": 20000},
    ),
    "vocabulary_100000": Ablation(
        "codebook sizes",
        "LaPQ 100000",
        {"model.tokenizer.bits": 17, "model.tokenizer.vocabulary": 100_000},
    ),
    # Inputs of a level. The default has the residual in every level's logits.
    "paper_inputs": Ablation(
        "inputs", "Eq. 1 as printed: no residual", {"model.tokenizer.inputs": "paper"}
    ),
    "residual_fine": Ablation(
        "inputs",
        "the residual in fine levels alone, as a feature",
        {"model.tokenizer.inputs": "residual-fine"},
    ),
    "residual_dropped": Ablation(
        "inputs",
        "the residual as a feature, dropped at random in coarse levels",
        {"model.tokenizer.inputs": "residual-dropped"},
    ),
    # Text, autoregression: ours against the formulas as printed.
    "text_kl": Ablation("language", "text-codebook as a KL", {"loss.settings.text_form": "kl"}),
    "text_words": Ablation(
        "language", "contrast by words too", {"loss.settings.text_pooling": "both"}
    ),
    "raw_text": Ablation(
        "language",
        "text features not standardised",
        {"model.tokenizer.standardised_text": False},
    ),
    "fixed_targets": Ablation(
        "language", "autoregression with fixed targets", {"loss.targets": "fixed"}
    ),
    "paper_formulas": Ablation("language", "terms of Eq. 2 as printed", {"loss.formulas": "paper"}),
    "paper_weights": Ablation("language", "unit weights inside Eq. 2", {"loss.preset": "paper"}),
    # Backbones, at full scale. 3D-MBQ-VAE (35.01) has not been published.
    "vae_cogvideox": _vae("CogVideoX (4x8x8)", "cogvideox_vae", "cogvideox-2b", 34.92),
    "vae_hunyuan_video": _vae("HunyuanVideo (4x8x8)", "hunyuan_video_vae", "hunyuan-video"),
    # .114 bpp. Its clips have 6k+1 frames.
    "vae_mochi": _vae(
        "Mochi (6x8x8)", "mochi_vae", "mochi", 34.95, {"data.buckets": ("19x256x256",)}
    ),
    # .098 bpp. Sides are multiples of 64.
    "vae_svd": _vae(
        "Stable Video Diffusion (1x8x8)",
        "svd_vae",
        "svd",
        34.18,
        {"model.tokenizer.grids": "compact", "data.buckets": ("17x256x256",)},
    ),
    "vae_wan22": _vae("Wan 2.2 (4x16x16)", "wan22_vae", "wan2.2-ti2v"),
    **{
        name: Ablation(
            "language models",
            name.removeprefix("language_"),
            {"language.spec": spec},
            _PUBLISHED_LANGUAGE.get(name, (None, None)),
            (scale,),
        )
        for scale, models in _LANGUAGE.items()
        for name, spec in models.items()
    },
}
# What the comparison of components needs; the order of the table.
DEFAULT_NAMES = (
    "full", "continuous", "single_lfq", "residual", "rvq", "no_text", "no_pyramid", "blocks_2",
    "blocks_3", "no_drift", "no_dino_drift", "no_autoregressive", "no_ssim", "no_lpips",
    "no_retention", "no_commitment", "no_entropy", "no_hierarchy", "no_text_alignment",
    "no_text_codebook",
)  # fmt: skip


def find(name: str, scale: str) -> Ablation:
    """The ablation of a name.

    Raises:
        UserError: there is none, or not at this scale.
    """
    if name not in ABLATIONS:
        raise UserError(f"ablation {name!r} is not one of {', '.join(ABLATIONS)}")
    if scale not in ABLATIONS[name].scales:
        raise UserError(f"ablation {name} needs the scale {ABLATIONS[name].scales[0]}, not {scale}")
    return ABLATIONS[name]


def changes_of(name: str, scale: str) -> dict[str, Json]:
    """What an ablation changes at a scale: config keys (dotted) and values.

    Raises:
        UserError: see `find`.
    """
    found = find(name, scale)
    return dict(found.changes) | (dict(found.world) if scale == "world" else {})


def apply(config: ConfigDict, name: str, scale: str = "demo") -> ConfigDict:
    """The base config with an ablation's changes, in place.

    Raises:
        UserError: see `find`.
    """
    for key, value in changes_of(name, scale).items():
        *path, last = key.split(".")
        part = config
        for step in path:
            part = part[step]
        if last not in part:
            raise KeyError(f"ablation {name}: the config has no key {key}")
        with part.ignore_type():
            part[last] = value
    return config
