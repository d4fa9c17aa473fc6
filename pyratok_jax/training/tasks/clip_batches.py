"""The loader of tasks that train on clips: dictionaries of the pipeline to `contracts.Batch`."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from pyratok_jax.data.pipeline import ClipLoader
from pyratok_jax.io import Json
from pyratok_jax.training.loop.contracts import Batch, LoaderState


class Stream(Protocol):
    """A resumable stream (`data.resumable.ResumableLoader`), whatever its elements are."""

    broken: dict[str, str]

    def get_state(self) -> LoaderState:
        """Where the stream is."""

    def set_state(self, state: LoaderState) -> None:
        """Continue from there."""

    def close(self) -> None:
        """End threads and processes."""


class Clips(Stream, Protocol):
    """`data.pipeline.ClipLoader`, or another resumable stream of such dictionaries.

    A batch holds arrays with a row per clip of this process, among them `video`, and the name of
    its `bucket` where batches differ.
    """

    def __next__(self) -> Mapping[str, Json]:
        """The next batch of this process."""


class StreamLoader:
    """What a `contracts.Loader` that makes its batches of a stream's elements hands through."""

    def __init__(self, stream: Stream):
        self._stream = stream

    @property
    def broken(self) -> dict[str, str]:
        """Paths or names of what was skipped so far, and why."""
        return self._stream.broken

    def get_state(self) -> LoaderState:
        """Where the stream is."""
        return self._stream.get_state()

    def set_state(self, state: LoaderState) -> None:
        """Continue from there."""
        self._stream.set_state(state)

    def close(self) -> None:
        """End the stream's threads and processes."""
        self._stream.close()


class ClipBatches(StreamLoader):
    """A `contracts.Loader` that keeps the arrays of each batch that a step reads."""

    def __init__(self, clips: Clips, names: Sequence[str], rows: Mapping[str, int] | None = None):
        """Wrap a stream.

        Args:
            clips: the stream of this process.
            names: of the arrays that the step reads, where a batch holds them.
            rows: of the global batch of each bucket; None: this process reads all rows.
        """
        super().__init__(clips)
        self._clips, self._names, self._rows = clips, names, rows

    def __next__(self) -> Batch:
        """The next batch; see `contracts.Loader`."""
        read = next(self._clips)
        arrays = {name: read[name] for name in self._names if name in read}
        bucket = read.get("bucket", "")
        return Batch(
            arrays, len(read["video"]) if self._rows is None else self._rows[bucket], bucket
        )


def pipeline_batches(clips: ClipLoader, names: Sequence[str], batch_size: int) -> ClipBatches:
    """Batches of the data pipeline; `batch_size` holds for buckets that do not state their own."""
    rows = {bucket.name: bucket.clips or batch_size for bucket in clips.buckets}
    return ClipBatches(clips, names, rows)
