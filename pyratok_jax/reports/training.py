"""What a tokenizer's training leaves for people: held-out clips measured, shown and tabulated."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyratok_jax.data.heldout import HeldoutClip
from pyratok_jax.data.padding import crop_clip, pad_clip
from pyratok_jax.io.atomic import write_json
from pyratok_jax.metrics.code_usage import code_usage
from pyratok_jax.metrics.image import PROTOCOL, quality
from pyratok_jax.metrics.rate import bits_per_pixel, token_count
from pyratok_jax.reports.report import ReportClip, token_maps, write_report
from pyratok_jax.tokenizer import Tokenizer

TRAINED, CEILING = "trained", "frozen VAE, no quantisation (ceiling)"
START, CALIBRATED = "same model at step 0", "after calibration, before step 1"
_ROLES = {TRAINED: "model", CEILING: "ceiling", START: "step0", CALIBRATED: ""}


def tokens_of(tokenizer: Tokenizer, clip: HeldoutClip) -> tuple[np.ndarray, ...]:
    """Token ids of every level, (1, t, h, w), of a clip with its caption."""
    padded, _ = pad_clip(clip.video, spatial_multiple=tokenizer.config.spatial_multiple)
    return tokenizer.encode(padded[None], [clip.caption])


def rebuild(tokenizer: Tokenizer, clip: HeldoutClip, ids: Sequence[np.ndarray]) -> np.ndarray:
    """The clip decoded from its tokens, cropped to its true size."""
    _, padding = pad_clip(clip.video, spatial_multiple=tokenizer.config.spatial_multiple)
    return crop_clip(tokenizer.decode(ids)[0], padding)


def rebuild_all(tokenizer: Tokenizer, clips: Sequence[HeldoutClip]) -> dict[str, np.ndarray]:
    """Reconstructions by name."""
    return {c.name: rebuild(tokenizer, c, tokens_of(tokenizer, c)) for c in clips}


def ceiling_all(tokenizer: Tokenizer, clips: Sequence[HeldoutClip]) -> dict[str, np.ndarray]:
    """What the frozen VAE alone makes of each clip."""
    found = {}
    for clip in clips:
        padded, padding = pad_clip(clip.video, spatial_multiple=tokenizer.config.spatial_multiple)
        found[clip.name] = crop_clip(tokenizer.reconstruct_continuous(padded[None])[0], padding)
    return found


def report_training(
    tokenizer: Tokenizer,
    clips: Sequence[HeldoutClip],
    before: Mapping[str, Mapping[str, np.ndarray]],
    workdir: Path,
    *,
    curves: Mapping[str, Any],
    settings: Mapping[str, Any],
    lpips: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
) -> dict[str, Path]:
    """Measure the trained tokenizer and its baselines; write metrics.json, report and pictures.

    Args:
        tokenizer: as loaded from the checkpoint.
        clips: held-out clips.
        before: reconstructions of the untrained stages by `START` and `CALIBRATED`, then by clip.
        workdir: where to write.
        curves: (step, value) points of the training by name.
        settings: the training config, for the page.
        lpips: networks by name; None leaves LPIPS out.
        facts: steps, seconds and the like, for metrics.json.

    Returns:
        the files written, by what they are.
    """
    ids = {clip.name: tokens_of(tokenizer, clip) for clip in clips}
    versions = {
        TRAINED: {c.name: rebuild(tokenizer, c, ids[c.name]) for c in clips},
        CEILING: ceiling_all(tokenizer, clips),
        **before,
    }
    originals = [clip.video for clip in clips]
    rows = []
    for name, videos in versions.items():
        measured = quality(originals, [videos[c.name] for c in clips], lpips)
        rows.append({"name": name, "role": _ROLES[name], **measured})
    rows[0] |= _rate(tokenizer, clips, ids)
    shown = [_shown(tokenizer, clip, ids[clip.name], versions) for clip in clips]
    outputs = write_report(
        workdir,
        title="PyraTok training",
        clips=shown,
        curves=curves,
        table=rows,
        settings=settings,
    )
    metrics = {"heldout": rows, "protocol": PROTOCOL, "checkpoint": tokenizer.checkpoint_hash}
    outputs["metrics"] = workdir / "metrics.json"
    write_json(outputs["metrics"], metrics | dict(facts))
    return outputs


def _rate(
    tokenizer: Tokenizer,
    clips: Sequence[HeldoutClip],
    ids: Mapping[str, Sequence[np.ndarray]],
) -> dict[str, Any]:
    config = tokenizer.config
    tokens = [token_count([x.shape[1:] for x in ids[clip.name]]) for clip in clips]
    pixels = [int(np.prod(clip.video.shape[:3])) for clip in clips]
    levels = code_usage(ids.values(), config.vocabulary or 2**config.bits)
    return {
        "bpp": bits_per_pixel(sum(tokens), config.bits, sum(pixels), 1, 1),
        "tokens": sum(tokens),
        "levels": levels,
        "utilisation": [level["utilisation"] for level in levels],
        "perplexity": [level["perplexity"] for level in levels],
    }


def _shown(
    tokenizer: Tokenizer,
    clip: HeldoutClip,
    ids: Sequence[np.ndarray],
    versions: Mapping[str, Mapping[str, np.ndarray]],
) -> ReportClip:
    frames, height, width = clip.video.shape[:3]
    embeddings = tuple(x[0] for x in tokenizer.code_embeddings(ids))
    _, padding = pad_clip(clip.video, spatial_multiple=tokenizer.config.spatial_multiple)
    maps = token_maps(
        embeddings, padding.padded_frames, padding.padded_height, padding.padded_width
    )
    grids = tokenizer.config.grids
    return ReportClip(
        name=clip.name,
        caption=clip.caption,
        fps=clip.fps,
        original=clip.video,
        reconstruction=versions[TRAINED][clip.name],
        ceiling=versions[CEILING][clip.name],
        step0=versions[START][clip.name] if START in versions else None,
        token_maps=[crop_clip(video, padding) for video in maps],
        levels=[f"level {i} (1:{dt} frames, {ds} px)" for i, (dt, ds) in enumerate(grids, start=1)],
    )
