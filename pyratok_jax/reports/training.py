"""What a tokenizer's training leaves for people: held-out clips measured, shown and tabulated."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from pyratok_jax.data.heldout import HeldoutClip, other_caption
from pyratok_jax.io.atomic import write_json
from pyratok_jax.io.progress import Stopwatch
from pyratok_jax.io.remote import AnyPath
from pyratok_jax.metrics.code_usage import code_usage
from pyratok_jax.metrics.image import PROTOCOL, quality
from pyratok_jax.reports.report import ReportClip, token_maps, write_report
from pyratok_jax.tokenizer import EncodedClip, Tokenizer, mean_bits_per_pixel

TRAINED, CEILING = "trained", "frozen VAE, no quantisation (ceiling)"
START, CALIBRATED = "same model at step 0", "calibrated or taken over, before step 1"
_ROLES = {TRAINED: "model", CEILING: "ceiling", START: "step0", CALIBRATED: "calibrated"}
NO_CAPTION, OTHER_CAPTION = "trained, no caption", "trained, another clip's caption"


def reconstruct_all(tokenizer: Tokenizer, clips: Sequence[HeldoutClip]) -> dict[str, np.ndarray]:
    """Reconstructions by name."""
    return {clip.name: tokenizer.reconstruct(clip.video, clip.caption) for clip in clips}


def report_training(
    tokenizer: Tokenizer,
    clips: Sequence[HeldoutClip],
    before: Mapping[str, Mapping[str, np.ndarray]],
    workdir: AnyPath,
    *,
    curves: Mapping[str, Any],
    settings: Mapping[str, Any],
    lpips: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
    language: Markup | None = None,
    clock: Stopwatch | None = None,
) -> dict[str, AnyPath]:
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
        language: of the page, on the words in the tokens (`evaluation.language_check`).
        clock: of the run so far, for the page and metrics.json.

    Returns:
        the files written, by what they are.
    """
    encoded = {clip.name: tokenizer.encode(clip.video, clip.caption) for clip in clips}
    versions = {
        TRAINED: {name: tokenizer.decode(clip) for name, clip in encoded.items()},
        CEILING: {c.name: tokenizer.reconstruct_continuous(c.video) for c in clips},
        **before,
    }
    built = _built_up(tokenizer, encoded)
    versions |= built | _other_captions(tokenizer, clips, versions[TRAINED])
    originals = [clip.video for clip in clips]
    rows = []
    for name, videos in versions.items():
        measured = quality(originals, [videos[c.name] for c in clips], lpips)
        rows.append({"name": name, "role": _ROLES.get(name, ""), **measured})
    rows[0] |= _rate(list(encoded.values()), tokenizer.config.vocabulary_size)
    extra = [*built, OTHER_CAPTION] if OTHER_CAPTION in versions else list(built)
    shown = [_shown(tokenizer, clip, encoded[clip.name], versions, extra) for clip in clips]
    if clock is not None:
        clock.lap("held-out clips measured")
    outputs = write_report(
        workdir,
        title="PyraTok training",
        clips=shown,
        curves=curves,
        table=rows,
        settings=settings,
        language=language,
        seconds=clock.seconds if clock else None,
    )
    metrics = {"heldout": rows, "protocol": PROTOCOL, "checkpoint": tokenizer.checkpoint_hash}
    outputs["metrics"] = workdir / "metrics.json"
    times = {"seconds": clock.seconds} if clock else {}
    write_json(outputs["metrics"], metrics | dict(facts) | times)
    return outputs


def _built_up(
    tokenizer: Tokenizer, encoded: Mapping[str, EncodedClip]
) -> dict[str, dict[str, np.ndarray]]:
    """Reconstructions from the first levels alone, all but the last added one by one."""
    if not tokenizer.builds_up:
        return {}
    found = {}
    for levels in range(1, len(tokenizer.config.grids)):
        name = "level 1 alone" if levels == 1 else f"levels 1 to {levels}"
        found[name] = {
            clip: tokenizer.decode_first(tokens, levels) for clip, tokens in encoded.items()
        }
    return found


def _other_captions(
    tokenizer: Tokenizer, clips: Sequence[HeldoutClip], trained: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """Reconstructions of clips that were encoded with no caption, and with another clip's.

    A clip for which there is no other caption keeps its reconstruction. Nothing where the levels
    do not read captions, or no two captions differ.
    """
    others = {clip.name: other_caption(clips, clip) for clip in clips}
    if tokenizer.text is None or not tokenizer.config.text_guidance or not any(others.values()):
        return {}
    swapped = {
        clip.name: tokenizer.reconstruct(clip.video, others[clip.name])
        if others[clip.name]
        else trained[clip.name]
        for clip in clips
    }
    return {NO_CAPTION: {c.name: tokenizer.reconstruct(c.video) for c in clips},
            OTHER_CAPTION: swapped}  # fmt: skip


def _rate(encoded: Sequence[EncodedClip], vocabulary: int) -> dict[str, Any]:
    levels = code_usage([clip.ids for clip in encoded], vocabulary)
    return {
        "bpp": mean_bits_per_pixel(encoded),
        "tokens": sum(clip.tokens for clip in encoded),
        "levels": levels,
        "utilisation": [level["utilisation"] for level in levels],
        "perplexity": [level["perplexity"] for level in levels],
    }


def _shown(
    tokenizer: Tokenizer,
    clip: HeldoutClip,
    encoded: EncodedClip,
    versions: Mapping[str, Mapping[str, np.ndarray]],
    extra: Sequence[str],
) -> ReportClip:
    embeddings = tuple(x[0] for x in tokenizer.code_embeddings(encoded.batch))
    padding = encoded.padding
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
        token_maps=[padding.crop(video) for video in maps],
        more={name: versions[name][clip.name] for name in extra},
        levels=[f"level {i} (1:{dt} frames, {ds} px)" for i, (dt, ds) in enumerate(grids, start=1)],
    )
