"""Runs of ablations: one training per name and seed, measured alike, each result a JSON file."""

import contextlib
import gc
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.data.heldout import HeldoutClip, heldout_clips
from pyratok_jax.data.padding import to_model_range
from pyratok_jax.errors import UserError, require, short
from pyratok_jax.evaluation.language_check import check_language
from pyratok_jax.evaluation.task import BrokenItemError
from pyratok_jax.evaluation.world_tasks import world_videos, zero_shot
from pyratok_jax.io import Json
from pyratok_jax.io.atomic import atomic_path, write_json
from pyratok_jax.io.documents import read_json, read_npz, refusing
from pyratok_jax.metrics.code_usage import code_usage
from pyratok_jax.metrics.image import PROTOCOL, Perceptual, quality
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.tokenizer import mean_bits_per_pixel, to_pixels
from pyratok_jax.training.loop.loop import train
from pyratok_jax.training.run_record import changed_keys
from pyratok_jax.training.tasks.run import check_frozen, first_weights
from pyratok_jax.training.tasks.tokenizer import TokenizerTask

RESULT = "result.json"
_CALIBRATED = "tokenizer."
_TASKS_SEED = 5  # of the videos of the zero-shot tasks, on which nothing was chosen


def run_one(
    config: ConfigDict, folder: Path, *, starts: Path, facts: dict[str, Json]
) -> dict[str, Json] | None:
    """Train once and measure on the held-out clips; a finished run is read, not repeated.

    Args:
        config: with the ablation's changes and the seed.
        folder: of this run alone; an interrupted run resumes from its checkpoint.
        starts: folder of calibrated levels, which runs of the same model and seed share.
        facts: written beside the figures; a result with other facts is of another experiment.

    Returns:
        The result, or None when the training was interrupted.

    Raises:
        UserError: the folder holds a result of other settings, or a package is missing that
            `report.tasks` needs.
    """
    path = folder / RESULT
    if path.exists():
        return _finished(path, config, facts)
    if config.report.tasks:
        # Now, not after hours of training.
        require("pycocotools", "trackeval")
    begin = time.perf_counter()
    task = TokenizerTask(config)
    clips = heldout_clips(config.data, tuple(config.report.buckets), config.report.clips)
    start: dict[str, Json] = {}
    frozen = task.backbone.sha256, task.language.sha256
    check_frozen(folder, *frozen)
    kept = starts / f"{start_key(config, *frozen)}.npz"

    def on_start(partition: Partition) -> None:
        # So that other commands can open the run.
        task.describe(folder)
        if config.init_from:
            first_weights(task, partition)
            return
        if kept.exists():
            start["psnr_before_step_1"] = take_start(partition, kept)
            return
        task.calibrate(partition)
        start["psnr_before_step_1"] = measure(task, partition, clips, None)["psnr"]
        keep_start(partition, start["psnr_before_step_1"], kept)

    trained = train(config, folder, task, on_start=on_start)
    if not trained.finished:
        return None
    # Moving averages where there are any, as every reader of a checkpoint takes them.
    trained.partition.trainable.update(trained.state.ema or trained.state.params)
    networks = _lpips(config)
    figures = measure(task, trained.partition, clips, networks)
    result = {
        **facts,
        **figures,
        **words_in_tokens(task, trained.partition, starts.parent / "videos"),
        **(start or _start_of_resumed(config, kept)),
        "skipped_steps": int(trained.state.skipped),
        "seconds": time.perf_counter() - begin,
        "protocol": PROTOCOL,
    }
    write_json(path, result)
    del task, trained
    gc.collect()
    jax.clear_caches()
    return result


def _finished(path: Path, config: ConfigDict, facts: Mapping[str, Json]) -> dict[str, Json]:
    """The result in a file, if it is of these facts."""
    advice = f"remove the folder {path.parent} to run this ablation again"
    found = read_json(path, dict[str, Json], advice=advice)
    names = [key for key, value in facts.items() if found.get(key) != value]
    if "config" in names:
        with contextlib.suppress(UserError):  # Without a record of it the keys stay unknown.
            names += [f"config.{key}" for key in changed_keys(path.parent, config)]
    if names:
        told = short(", ".join(names), 200)
        raise UserError(f"{path} is of other settings ({told}); name another --workdir")
    return found


def _start_of_resumed(config: ConfigDict, kept: Path) -> dict[str, Json]:
    """What was measured before the first step of a run that did not begin in this process."""
    if config.init_from or not kept.exists():
        return {}
    # A damaged file is no reason to lose the other figures.
    with contextlib.suppress(UserError):
        return {"psnr_before_step_1": _psnr_of(read_npz(kept), kept)}
    return {}


def start_key(config: ConfigDict, *frozen: str) -> str:
    """Hash of everything that the calibrated levels depend on, with the frozen weights' hashes."""
    parts = ("model", "language", "data", "calibration", "report", "seed", "dtype", "batch_size")
    values = {part: config.to_dict()[part] for part in parts} | {"frozen": frozen}
    described = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def keep_start(partition: Partition, psnr: float, path: Path) -> None:
    """Store the tokenizer's trainable arrays; those of losses are not calibrated."""
    arrays: dict[str, Any] = {
        name: np.asarray(value)
        for name, value in partition.trainable.items()
        if name.startswith(_CALIBRATED)
    }
    with atomic_path(path) as scratch:
        np.savez(scratch, **arrays, psnr=np.float64(psnr))


def take_start(partition: Partition, path: Path) -> float:
    """Put stored arrays into the partition; returns the PSNR measured when they were made.

    Raises:
        UserError: the file is damaged.
    """
    kept = read_npz(path, advice="remove it to calibrate again")
    with refusing(os.fspath(path), "remove it to calibrate again"):
        for name in partition.trainable:
            if name.startswith(_CALIBRATED):
                partition.trainable[name] = jnp.asarray(kept[name])
    return _psnr_of(kept, path)


def _psnr_of(kept: Mapping[str, Any], path: Path) -> float:
    with refusing(os.fspath(path), "remove it to calibrate again"):
        return float(kept["psnr"])


def _lpips(config: ConfigDict) -> dict[str, Perceptual] | None:
    if not config.report.lpips:
        return None
    from pyratok_jax.checkpoints.foreign.lpips import load_lpips

    return {"vgg": load_lpips("vgg")}


def measure(
    task: TokenizerTask,
    partition: Partition,
    clips: Sequence[HeldoutClip],
    lpips: Mapping[str, Perceptual] | None,
) -> dict[str, Json]:
    """Quality, rate and use of the codes on held-out clips.

    Decoded from token ids as everywhere; the continuous latent, which has none, as it is.
    """
    system = partition.merge(partition.trainable, partition.frozen)
    tokenizer = task.wrap(system)
    has_tokens = system.tokenizer.quantizer.makes_tokens
    continuous = None if has_tokens else _continuous(system.tokenizer)
    videos, encoded = [], []
    for clip in clips:
        if continuous is not None:
            size = tokenizer.padding(*clip.video.shape[:3])
            videos.append(size.crop(continuous(size.pad(clip.video)[None])[0]))
        else:
            encoded.append(tokenizer.encode(clip.video, clip.caption))
            videos.append(tokenizer.decode(encoded[-1]))
    figures: dict[str, Json] = dict(quality([clip.video for clip in clips], videos, lpips))
    if encoded:
        used = code_usage([clip.ids for clip in encoded], tokenizer.config.vocabulary_size)
        figures["bpp"] = mean_bits_per_pixel(encoded)
        figures["utilisation"] = [level["utilisation"] for level in used]
        figures["perplexity"] = [level["perplexity"] for level in used]
    return figures


def words_in_tokens(task: TokenizerTask, partition: Partition, videos: Path) -> dict[str, Json]:
    """What the tokens of held-out videos of the world say, made without a caption.

    Args:
        task, partition: of the training.
        videos: folder in which runs share the videos of the tasks.

    Returns:
        "names": right names of `report.world` videos in percent, "names_chance";
        "nats/own/level_1", ... where the head that predicts tokens is trained; and the figures of
        `zero_shot` on `report.tasks` videos of each task. Empty without tokens or such videos.
    """
    system = partition.merge(partition.trainable, partition.frozen)
    if not system.tokenizer.quantizer.makes_tokens:
        return {}
    tokenizer = task.wrap(system)
    if tokenizer.text is None or tokenizer.alignment is None:
        return {}
    figures: dict[str, Json] = {}
    # Levels that have diverged say nothing; the training's other figures stay.
    with contextlib.suppress(BrokenItemError):
        found = check_language(
            tokenizer,
            task.config.report.world,
            read=task.predicts_codes,
            layers=task.loss.language_layers,
        )
        if found is not None:
            figures |= {"names": found.top1, "names_chance": found.chance}
            figures |= {f"nats/{name}": value for name, value in found.nats.items()}
    if task.config.report.tasks:
        data = world_videos(videos, task.config.report.tasks, _TASKS_SEED)
        figures |= zero_shot(tokenizer, data)
    return figures


def _continuous(model: PyraTok) -> Callable[[np.ndarray], np.ndarray]:
    graph, state = nnx.split(model)

    @jax.jit
    def run(state: nnx.State, video: Array) -> Array:
        merged = nnx.merge(graph, state)
        return to_pixels(merged.decode(merged.encode(to_model_range(video)).latent))

    return lambda video: np.asarray(run(state, video))
