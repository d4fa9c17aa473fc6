"""One tokenizer training from config to report: the `Run` of `config.task` "tokenizer".

The report compares the trained model with itself before training. That is measured before the first
step and kept in `before.npz`, since a run that is interrupted and resumed no longer has that model.
"""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.checkpoints.working_folder import newest_step
from pyratok_jax.data.heldout import HeldoutClip, heldout_clips
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.language_check import check_language, language_section
from pyratok_jax.io.atomic import atomic_path
from pyratok_jax.io.documents import read_npz, refusing
from pyratok_jax.io.progress import PlainConsole, Stopwatch
from pyratok_jax.io.remote import AnyPath
from pyratok_jax.reports.training import CALIBRATED, START, reconstruct_all, report_training
from pyratok_jax.tokenizer import DESCRIPTION, load_tokenizer
from pyratok_jax.tokenizer.loading import read_description
from pyratok_jax.training.init.previous_stage import check_alike, report_handover, start_from
from pyratok_jax.training.loop.loop import Trained, train
from pyratok_jax.training.loop.metrics_log import curves
from pyratok_jax.training.tasks.tokenizer import TokenizerTask

BEFORE = "before.npz"
_MAX_BEFORE_BYTES = 16 << 30


def run(config: ConfigDict, workdir: AnyPath) -> dict[str, AnyPath] | None:
    """Train and report; None when the training was interrupted (and saved).

    Raises:
        UserError: a mistake in the config, the data or the working folder.
    """
    clock = Stopwatch()
    task = TokenizerTask(config)
    if jax.process_index():
        # Every process initialises the levels, from the same clips; process 0 measures and writes.
        trained = train(config, workdir, task, on_start=lambda p: first_weights(task, p))
        return {} if trained.finished else None
    # Read now, not after the last step: what is damaged is to be said before hours of training.
    _read_before(workdir)
    clips = heldout_clips(config.data, tuple(config.report.buckets), config.report.clips)
    check_frozen(workdir, task.backbone.sha256, task.language.sha256)
    console = PlainConsole()
    clock.lap("frozen networks and held-out clips read")

    def start(partition: Partition) -> None:
        """Measure the model at random initialisation and, where that follows, as it begins."""
        task.describe(workdir)
        before = {START: _rebuilt(task, partition, clips)}
        clock.lap("random levels measured")
        left = first_weights(task, partition)
        clock.lap("levels calibrated or taken over")
        if left:
            shares = ", ".join(f"{share:.2f}" for share in left)
            console.print(
                f"levels calibrated; share of the latent's variance left after each: {shares}",
                soft_wrap=True,
            )
        if left or config.init_from:
            before[CALIBRATED] = _rebuilt(task, partition, clips)
        _write_before(workdir, before)
        clock.lap("these measured")

    trained = train(config, workdir, task, on_start=start)
    clock.lap("steps", of_these={"step compiled": trained.compiling})
    return _report(task, trained, clips, workdir, clock) if trained.finished else None


def first_weights(task: TokenizerTask, partition: Partition) -> list[float]:
    """Initialise from a previous stage, or from data (`TokenizerTask.calibrate`).

    Returns:
        what `calibrate` does; empty where levels were not fitted.
    """
    if task.config.init_from:
        tokenizer, folder = task.system.tokenizer, task.config.init_from
        levels, parts = task.config.init_levels, tokenizer.quantizer.level_parts
        check_alike(folder, task.backbone.sha256, task.language.sha256, tokenizer.config)
        report_handover(folder, start_from(folder, partition, levels=levels, level_parts=parts))
        return task.calibrate(partition, kept=levels) if levels else []
    return task.calibrate(partition)


def check_frozen(workdir: AnyPath, backbone: str, language: str) -> None:
    """Refuse to resume with other frozen weights than the run in `workdir` began with.

    Raises:
        UserError: a hash differs from the one in `tokenizer.json`.
    """
    path = workdir / DESCRIPTION
    if newest_step(workdir) is None or not path.exists():
        return
    description = read_description(workdir)
    for key, found in (("backbone", backbone), ("language_model", language)):
        said = description[key]
        if said["sha256"] != found:
            raise UserError(
                f"{workdir} was trained with other weights of the {key} ({said['spec']}, SHA-256 "
                f"{said['sha256'][:16]}, now {found[:16]}); give it those, or name another "
                "--workdir"
            )


def _rebuilt(
    task: TokenizerTask, partition: Partition, clips: list[HeldoutClip]
) -> dict[str, np.ndarray]:
    system = partition.merge(partition.trainable, partition.frozen)
    return reconstruct_all(task.wrap(system), clips)


def _report(
    task: TokenizerTask,
    trained: Trained,
    clips: list[HeldoutClip],
    workdir: AnyPath,
    clock: Stopwatch,
) -> dict[str, AnyPath]:
    lpips = None
    if task.config.report.lpips:
        from pyratok_jax.checkpoints.foreign.lpips import load_lpips

        lpips = {"vgg": load_lpips("vgg")}
    # Read back, not taken from memory: the report is of the artefact that others will load
    # (in its dtype, with its hash), and arrays of a run on many hosts are not all on this one.
    tokenizer = load_tokenizer(workdir)
    found = check_language(
        tokenizer,
        task.config.report.world,
        read=task.predicts_codes,
        layers=task.loss.language_layers,
    )
    clock.lap("words in the tokens measured")
    outputs = report_training(
        tokenizer,
        clips,
        _of_these(_read_before(workdir), clips),
        workdir,
        curves=curves(workdir / "metrics.jsonl"),
        settings=task.config.to_dict(),
        lpips=lpips,
        facts={
            "steps": int(trained.state.step),
            "skipped_steps": int(trained.state.skipped),
            "steps_of_this_run": trained.steps_run,
            "seconds_of_these_steps": trained.seconds,
            "seconds_waited_for_data": trained.waited,
            **({"language": found.summary()} if found else {}),
        },
        language=language_section(found) if found else None,
        clock=clock,
    )
    return {"checkpoint": workdir / "checkpoints", **outputs, "TensorBoard events": workdir}


def _write_before(workdir: AnyPath, before: dict[str, dict[str, np.ndarray]]) -> None:
    arrays: dict[str, Any] = {
        f"{stage}|{name}": video
        for stage, videos in before.items()
        for name, video in videos.items()
    }
    with atomic_path(workdir / BEFORE) as scratch:
        np.savez_compressed(scratch, **arrays)


def _of_these(
    before: dict[str, dict[str, np.ndarray]], clips: list[HeldoutClip]
) -> dict[str, dict[str, np.ndarray]]:
    """What was measured before training, where it is of all these clips (`report` may change)."""
    kept = {
        stage: videos
        for stage, videos in before.items()
        if all(c.name in videos and videos[c.name].shape == c.video.shape for c in clips)
    }
    if len(kept) < len(before):
        lost = ", ".join(name for name in before if name not in kept)
        said = f"{BEFORE} is of other clips or sizes than config.report: the report has no {lost!r}"
        PlainConsole().print(said, soft_wrap=True)
    return kept


def _read_before(workdir: AnyPath) -> dict[str, dict[str, np.ndarray]]:
    """Reconstructions before training by stage and clip; empty where there is no such file."""
    found: dict[str, dict[str, np.ndarray]] = {}
    path = workdir / BEFORE
    if path.exists():
        advice = "remove it: the report is then made without the model before training"
        with refusing(str(path), advice):
            for key, video in read_npz(path, max_bytes=_MAX_BEFORE_BYTES, advice=advice).items():
                stage, name = key.split("|", 1)
                found.setdefault(stage, {})[name] = video
    return found
