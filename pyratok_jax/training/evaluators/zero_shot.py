"""Zero-shot accuracy during training: which class name, or which caption, a clip's codes mean."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.partition import Arrays, Partition
from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.data.heldout import heldout_clips
from pyratok_jax.data.padding import ClipSizes
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.labelled import (
    load_classes,
    load_labelled,
    read_labelled,
    spoken,
)
from pyratok_jax.evaluation.task import BrokenItemError
from pyratok_jax.evaluation.tasks.classification import label_ranks
from pyratok_jax.nn.partitioning import over_devices
from pyratok_jax.training.distributed.coordinator import AheadOfTime
from pyratok_jax.training.distributed.sharding import batch_shardings, row_groups, split_of
from pyratok_jax.training.distributed.transfer import host_to_mesh
from pyratok_jax.training.loop.contracts import Evaluation, ModelView, Task

S_contra = TypeVar("S_contra", bound=nnx.Module, contravariant=True)
_TEXTS = 64  # That are embedded at a time.


@runtime_checkable
class TextSpaceTask(Protocol[S_contra]):
    """What a task must have besides, for its codes to be compared with texts."""

    captions: CaptionTokenizer

    @property
    def clip_sizes(self) -> ClipSizes:
        """Which clips the model takes, and how others are padded."""

    def video_features(
        self, system: S_contra, video: UInt8[Array, "b t h w 3"]
    ) -> Float[Array, "b d"]:
        """Unit vectors of padded clips that were encoded without captions; jittable."""

    def text_features(
        self, system: S_contra, ids: Int[Array, "n l"], mask: Bool[Array, "n l"]
    ) -> Float[Array, "n d"]:
        """Unit vectors of texts; jittable."""


class LabelledClip(NamedTuple):
    """A clip, padded, uint8 (t, h, w, 3), and the number of its text."""

    video: np.ndarray
    label: int


class ZeroShot:
    """An evaluator (`contracts.Evaluator`): accuracy of the text that is nearest to a clip.

    The texts are class names in a template, for a folder of videos per class (`data`); without one
    the different captions of the held-out clips, whose clip is to be found by its caption. Clips
    are encoded without captions, and compared by cosine. The metrics are `top1` and, with more than
    five texts, `top5`, in percent; `chance_top1`; `margin`, the cosine of the right text less the
    mean of the others; and `videos`. A saved tokenizer is measured by the published protocols with
    `python -m pyratok_jax.evaluate --task classification`.
    """

    def __init__(
        self,
        config: ConfigDict,
        task: Task[nnx.Module],
        *,
        name: str,
        every: int,
        data: str = "",
        table: str = "",
        classes: str = "",
        template: str = "a video of {}.",
        buckets: Sequence[str] = (),
        frames: int = 17,
        side: int = 256,
        clips: int = 64,
    ):
        """Read the clips, in every process.

        Args:
            config: of the training.
            task: also a `TextSpaceTask`.
            name: prefix of the metrics.
            every: steps between two runs.
            data: a folder of videos per class; empty: the held-out clips.
            table: see `evaluation.data.labelled.load_labelled`.
            classes: a file of class names; empty: the labels that occur.
            template: with {} for a class name.
            buckets: shapes of held-out clips; empty: those of `config.report`.
            frames: of each labelled video, sampled evenly.
            side: of labelled videos, the longest shorter side.
            clips: how many, at most; of labelled videos, evenly spread over the list.

        Raises:
            UserError: a task without a text space, a template without {}, no readable clip, or
                fewer than two texts.
        """
        if not isinstance(task, TextSpaceTask):
            raise UserError(
                f"config.evaluators: {name} compares codes with texts, and config.task "
                f"{config.task} has no space for both"
            )
        if template.count("{}") != 1:
            raise UserError(f"config.evaluators: {name}: template {template!r} needs {{}} once")
        self.name, self.every, self._task = name, every, task
        if data:
            found = _labelled(data, table, classes, template, frames, side, clips)
        else:
            shapes = tuple(buckets or config.report.buckets)
            found = _captioned(config, shapes, clips)
        self._texts, pairs = found
        if len(self._texts) < 2 or not pairs:
            raise UserError(
                f"config.evaluators: {name} needs clips of at least two classes or captions, and "
                f"{data or 'config.data.heldout'} has {len(self._texts)}"
            )
        self._clips = [LabelledClip(task.clip_sizes.pad(v)[0], label) for v, label in pairs]
        self._programs: tuple[AheadOfTime[Array], AheadOfTime[Array]] | None = None

    def run(self, view: ModelView[nnx.Module], step: int) -> Evaluation:
        """See `contracts.Evaluator`."""
        if self._programs is None:
            videos, texts = self._jit(view.partition, view.mesh)
            self._programs = AheadOfTime(videos), AheadOfTime(texts)
        of_videos, of_texts = self._programs
        queries = self._embedded(of_texts, view)
        scores, labels = [], []
        for clips, batch in self._batches(view.mesh):
            features = np.asarray(of_videos(view.params, view.frozen, batch))[: len(clips)]
            scores.append(features @ queries.T)
            labels += [clip.label for clip in clips]
        return Evaluation(_accuracy(np.concatenate(scores), np.array(labels)), {})

    def _embedded(self, program: AheadOfTime[Array], view: ModelView[nnx.Module]) -> np.ndarray:
        """Unit vectors of all texts, `_TEXTS` at a time; the last ones are repeated."""
        found = []
        for first in range(0, len(self._texts), _TEXTS):
            texts = self._texts[first : first + _TEXTS]
            filled = texts + [texts[-1]] * (min(_TEXTS, len(self._texts)) - len(texts))
            ids, mask = self._task.captions(filled)
            batch = {"ids": np.asarray(ids, np.int32), "mask": np.asarray(mask, bool)}
            whole = NamedSharding(view.mesh, PartitionSpec())
            arrays = host_to_mesh(batch, dict.fromkeys(batch, whole))
            found.append(np.asarray(program(view.params, view.frozen, arrays))[: len(texts)])
        return np.concatenate(found)

    def _jit(
        self, partition: Partition[nnx.Module], mesh: Mesh
    ) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
        def videos(params: Arrays, frozen: Arrays, batch: Arrays) -> Array:
            with over_devices(split_of(len(batch["video"]))):
                system = partition.merge(params, frozen)
                return self._task.video_features(system, batch["video"])

        def texts(params: Arrays, frozen: Arrays, batch: Arrays) -> Array:
            system = partition.merge(params, frozen)
            return self._task.text_features(system, batch["ids"], batch["mask"])

        whole = NamedSharding(mesh, PartitionSpec())
        return jax.jit(videos, out_shardings=whole), jax.jit(texts, out_shardings=whole)

    def _batches(self, mesh: Mesh) -> Iterator[tuple[list[LabelledClip], Arrays]]:
        """Clips of one shape with a row for each group of devices, the last one repeated."""
        rows = row_groups(mesh) * mesh.shape["spatial"]
        alike: dict[tuple[int, ...], list[LabelledClip]] = {}
        for clip in self._clips:
            alike.setdefault(clip.video.shape, []).append(clip)
        for group in alike.values():
            for first in range(0, len(group), rows):
                clips = group[first : first + rows]
                filled = [clip.video for clip in clips + [clips[-1]] * (rows - len(clips))]
                batch = {"video": np.stack(filled)}
                yield clips, host_to_mesh(batch, batch_shardings(batch, mesh))


Found = tuple[list[str], list[tuple[np.ndarray, int]]]


def _labelled(
    data: str, table: str, classes: str, template: str, frames: int, side: int, limit: int
) -> Found:
    """Texts of the classes, and (video, class) of readable videos."""
    rows = load_labelled(Path(data), table)
    names = load_classes(classes, rows)
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(int))
    pairs = []
    for number in chosen:
        try:
            video = read_labelled(rows[number], frames, side)
        except BrokenItemError:
            continue  # Their reasons are what `evaluate` lists.
        pairs.append((video, names.index(rows[number].label)))
    return [template.format(spoken(name)) for name in names], pairs


def _captioned(config: ConfigDict, buckets: tuple[str, ...], limit: int) -> Found:
    """The different captions of held-out clips, and (video, caption) of those that have one."""
    clips = [c for c in heldout_clips(config.data, buckets, limit) if c.caption]
    texts = list(dict.fromkeys(str(clip.caption) for clip in clips))
    return texts, [(clip.video, texts.index(str(clip.caption))) for clip in clips]


def _accuracy(scores: Float[np.ndarray, "n texts"], labels: np.ndarray) -> dict[str, float]:
    ranks, (videos, texts) = label_ranks(scores, labels), scores.shape
    own = scores[np.arange(videos), labels]
    others = (scores.sum(axis=1) - own) / (texts - 1)
    found = {"top1": 100 * float((ranks < 1).mean())}
    if texts > 5:
        found["top5"] = 100 * float((ranks < 5).mean())
    return found | {
        "chance_top1": 100 / texts,
        "margin": float((own - others).mean()),
        "videos": float(videos),
    }
