"""The held-out clips during training: PSNR and SSIM, nats per code by caption, and pictures."""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.partition import Arrays, Partition
from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.data.heldout import HeldoutClip, heldout_clips, other_caption
from pyratok_jax.data.padding import ClipSizes, Padding
from pyratok_jax.errors import UserError
from pyratok_jax.metrics.image import quality
from pyratok_jax.nn.partitioning import over_devices
from pyratok_jax.training.distributed.coordinator import AheadOfTime
from pyratok_jax.training.distributed.sharding import batch_shardings, row_groups, split_of
from pyratok_jax.training.distributed.transfer import host_to_mesh
from pyratok_jax.training.loop.contracts import CaptionedClips, Evaluation, ModelView, Task

S_contra = TypeVar("S_contra", bound=nnx.Module, contravariant=True)


@runtime_checkable
class ReconstructionTask(Protocol[S_contra]):
    """What a task must have besides, for its held-out clips to be reconstructed."""

    captions: CaptionTokenizer

    @property
    def clip_sizes(self) -> ClipSizes:
        """Which clips the model takes, and how others are padded."""

    def reconstruct(self, system: S_contra, clips: CaptionedClips) -> UInt8[Array, "b t h w 3"]:
        """What the model makes of padded clips and their captions; jittable."""


@runtime_checkable
class LanguageTask(Protocol[S_contra]):
    """What a task must have besides, for the language in its tokens to be measured."""

    @property
    def predicts_codes(self) -> bool:
        """Whether the training teaches the head that predicts codes from captions."""

    def caption_nats(
        self, system: S_contra, clips: CaptionedClips, others: CaptionedClips
    ) -> dict[str, Float[Array, "b"]]:
        """Nats per code of each clip (`losses.autoregressive.clip_nats`); jittable.

        Args:
            system: the model.
            clips: with their own captions.
            others: the same clips, each with another's caption.
        """


# What a program gives of one batch: reconstructions, and nats by name.
Measured = tuple[Array, dict[str, Array]]


class HeldoutReconstruction:
    """An evaluator (`contracts.Evaluator`): quality on `config.data.heldout`, as the report has it.

    Where the task predicts codes from captions (`LanguageTask`), nats per code of each level are
    measured too, under each clip's own caption, none, and that of another clip: `nats/own/level_1`
    and so on. `nats/gain/level_1`, another's less own, is the amount of language in the tokens.

    Clips are reconstructed in the compute dtype of the training, one on each group of devices that
    share parameters, and measured on process 0 (`metrics.image.quality`).
    """

    def __init__(
        self,
        config: ConfigDict,
        task: Task[nnx.Module],
        *,
        name: str,
        every: int,
        buckets: Sequence[str] = (),
        clips: int = 8,
        pictures: int = 2,
    ):
        """Read the clips, in every process.

        Args:
            config: of the training.
            task: also a `ReconstructionTask`.
            name: prefix of the metrics.
            every: steps between two runs.
            buckets: shapes that clips are cut to; empty: those of `config.report`.
            clips: how many, at most.
            pictures: of how many clips the middle frame is shown beside its reconstruction.

        Raises:
            UserError: a task that reconstructs nothing, or no readable held-out clip.
        """
        if not isinstance(task, ReconstructionTask):
            raise UserError(
                f"config.evaluators: {name} measures reconstructions of held-out clips, and "
                f"config.task {config.task} makes none"
            )
        self.name, self.every = name, every
        self._task, self._sizes, self._pictures = task, task.clip_sizes, pictures
        shapes = tuple(buckets or config.report.buckets)
        self._clips = heldout_clips(config.data, shapes, clips)
        self._language = isinstance(task, LanguageTask) and task.predicts_codes
        self._program: AheadOfTime[Measured] | None = None

    def run(self, view: ModelView[nnx.Module], step: int) -> Evaluation:
        """See `contracts.Evaluator`."""
        if self._program is None:
            self._program = AheadOfTime(self._jit(view.partition, view.mesh))
        rebuilt: dict[str, np.ndarray] = {}
        nats: dict[str, list[float]] = {}
        for clips, paddings, arrays in self._batches(view.mesh):
            videos, found = self._program(view.params, view.frozen, arrays)
            values = {name: np.asarray(value) for name, value in found.items()}
            for clip, padding, video in zip(clips, paddings, np.asarray(videos), strict=False):
                rebuilt[clip.name] = padding.crop(video)
            for row, clip in enumerate(clips):
                for name, value in values.items():
                    # Without a caption there is none to compare with.
                    if clip.caption and (
                        other_caption(self._clips, clip) or name.startswith(("own", "none"))
                    ):
                        nats.setdefault(f"nats/{name}", []).append(float(value[row]))
        if jax.process_index():
            return Evaluation({}, {})
        measured = quality([c.video for c in self._clips], [rebuilt[c.name] for c in self._clips])
        metrics = {name: value for name, value in measured.items() if value is not None}
        metrics |= {name: float(np.mean(values)) for name, values in nats.items()}
        return Evaluation(metrics, self._shown(rebuilt))

    def _jit(self, partition: Partition[nnx.Module], mesh: Mesh) -> jax.stages.Wrapped:
        def measure(params: Arrays, frozen: Arrays, batch: Arrays) -> Measured:
            with over_devices(split_of(len(batch["video"]))):
                system = partition.merge(params, frozen)
                clips = _captioned(batch, "text")
                rebuilt = self._task.reconstruct(system, clips)
                if not self._language or not isinstance(self._task, LanguageTask):
                    return rebuilt, {}
                others = _captioned(batch, "other")
                return rebuilt, self._task.caption_nats(system, clips, others)

        # Every process gets all of it: the result can then be read by process 0.
        return jax.jit(measure, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def _batches(self, mesh: Mesh) -> Iterator[tuple[list[HeldoutClip], list[Padding], Arrays]]:
        """Clips of one padded shape with a row for each group of devices, the last one repeated."""
        rows = row_groups(mesh) * mesh.shape["spatial"]
        alike: dict[tuple[int, ...], list[tuple[HeldoutClip, np.ndarray, Padding]]] = {}
        for clip in self._clips:
            padded, padding = self._sizes.pad(clip.video)
            alike.setdefault(padded.shape, []).append((clip, padded, padding))
        for group in alike.values():
            for first in range(0, len(group), rows):
                clips, videos, paddings = map(list, zip(*group[first : first + rows], strict=True))
                repeats = rows - len(clips)
                rows_of = clips + [clips[-1]] * repeats
                batch = {"video": np.stack(videos + [videos[-1]] * repeats)}
                given = {"text": [clip.caption for clip in rows_of]}
                if self._language:
                    given["other"] = [other_caption(self._clips, clip) for clip in rows_of]
                for name, captions in given.items():
                    ids, mask = self._task.captions(captions)
                    batch[f"{name}_ids"] = np.asarray(ids, np.int32)
                    batch[f"{name}_mask"] = np.asarray(mask, bool)
                yield clips, paddings, host_to_mesh(batch, batch_shardings(batch, mesh))

    def _shown(self, rebuilt: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Middle frame and its reconstruction, side by side."""
        return {
            clip.name: np.concatenate(
                [video[len(video) // 2] for video in (clip.video, rebuilt[clip.name])], axis=1
            )
            for clip in self._clips[: self._pictures]
        }


def _captioned(batch: Arrays, captions: str) -> CaptionedClips:
    """A batch's clips with one of its two sets of captions."""
    return CaptionedClips(batch["video"], batch[f"{captions}_ids"], batch[f"{captions}_mask"])
