"""Reconstruction of the held-out clips during training: PSNR and SSIM, and pictures."""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, UInt8
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.partition import Arrays, Partition
from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.data.heldout import HeldoutClip, heldout_clips
from pyratok_jax.data.padding import Padding, crop_clip
from pyratok_jax.errors import UserError
from pyratok_jax.metrics.image import quality
from pyratok_jax.nn.partitioning import over_devices
from pyratok_jax.training.distributed.compile_barrier import AheadOfTime
from pyratok_jax.training.distributed.sharding import batch_shardings, row_groups, split_of
from pyratok_jax.training.distributed.transfer import host_to_mesh
from pyratok_jax.training.loop.contracts import Evaluation, ModelView, Task

S_contra = TypeVar("S_contra", bound=nnx.Module, contravariant=True)


@runtime_checkable
class ReconstructionTask(Protocol[S_contra]):
    """What a task must have besides, for its held-out clips to be reconstructed."""

    captions: CaptionTokenizer

    def pad(self, video: UInt8[np.ndarray, "t h w 3"]) -> tuple[np.ndarray, Padding]:
        """A clip of any size, padded to one that the model takes."""

    def reconstruct(
        self,
        system: S_contra,
        video: UInt8[Array, "b t h w 3"],
        text_ids: Int[Array, "b l"],
        text_mask: Bool[Array, "b l"],
    ) -> UInt8[Array, "b t h w 3"]:
        """What the model makes of padded clips and their captions; jittable."""


class HeldoutReconstruction:
    """An evaluator (`contracts.Evaluator`): quality on `config.data.heldout`, as the report has it.

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
        self._task, self._pictures = task, pictures
        shapes = tuple(buckets or config.report.buckets)
        self._clips = heldout_clips(config.data, shapes, clips)
        self._program: AheadOfTime[Array] | None = None

    def run(self, view: ModelView[nnx.Module], step: int) -> Evaluation:
        """See `contracts.Evaluator`."""
        if self._program is None:
            self._program = AheadOfTime(self._jit(view.partition, view.mesh))
        rebuilt: dict[str, np.ndarray] = {}
        for clips, paddings, arrays in self._batches(view.mesh):
            videos = np.asarray(self._program(view.params, view.frozen, arrays))
            for clip, padding, video in zip(clips, paddings, videos, strict=False):
                rebuilt[clip.name] = crop_clip(video, padding)
        if jax.process_index():
            return Evaluation({}, {})
        found = quality([c.video for c in self._clips], [rebuilt[c.name] for c in self._clips])
        metrics = {name: value for name, value in found.items() if value is not None}
        return Evaluation(metrics, self._shown(rebuilt))

    def _jit(self, partition: Partition[nnx.Module], mesh: Mesh) -> jax.stages.Wrapped:
        def reconstruct(params: Arrays, frozen: Arrays, batch: Arrays) -> Array:
            with over_devices(split_of(len(batch["video"]))):
                return self._task.reconstruct(partition.merge(params, frozen), **batch)

        # Every process gets all of it: the result can then be read by process 0.
        return jax.jit(reconstruct, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def _batches(self, mesh: Mesh) -> Iterator[tuple[list[HeldoutClip], list[Padding], Arrays]]:
        """Clips of one padded shape with a row for each group of devices, the last one repeated."""
        rows = row_groups(mesh) * mesh.shape["spatial"]
        alike: dict[tuple[int, ...], list[tuple[HeldoutClip, np.ndarray, Padding]]] = {}
        for clip in self._clips:
            padded, padding = self._task.pad(clip.video)
            alike.setdefault(padded.shape, []).append((clip, padded, padding))
        for group in alike.values():
            for first in range(0, len(group), rows):
                clips, videos, paddings = map(list, zip(*group[first : first + rows], strict=True))
                repeats = rows - len(clips)
                captions = [clip.caption for clip in clips] + [clips[-1].caption] * repeats
                ids, mask = self._task.captions(captions)
                batch = {
                    "video": np.stack(videos + [videos[-1]] * repeats),
                    "text_ids": np.asarray(ids, np.int32),
                    "text_mask": np.asarray(mask, bool),
                }
                yield clips, paddings, host_to_mesh(batch, batch_shardings(batch, mesh))

    def _shown(self, rebuilt: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Middle frame and its reconstruction, side by side."""
        return {
            clip.name: np.concatenate(
                [video[len(video) // 2] for video in (clip.video, rebuilt[clip.name])], axis=1
            )
            for clip in self._clips[: self._pictures]
        }
