"""The training pipeline: records -> decoded clips -> batches, on grain, seekable and exact.

The stream of batches is a function of (config, seed, step). `ClipSource` is a grain random-access
source whose element i is one example; grain supplies threads, worker processes, shared memory and
prefetching. The iterator's whole state is the step, so that it resumes with any number of workers
or hosts.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict, cast

import grain
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from pyratok_jax.data.buckets import Bucket, assign_buckets, parse_buckets
from pyratok_jax.data.resumable import ENDLESS, ResumableLoader, in_processes
from pyratok_jax.data.sampling import Place, SamplingPlan
from pyratok_jax.data.sources.index import Shape, index_clips, shape_of
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.data.video.cutting import Cut, DecodedCache, cut_clip
from pyratok_jax.data.video.decoding import Decoder
from pyratok_jax.data.video.files import BrokenVideoError
from pyratok_jax.data.world.films import WorldRecords
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json

# Captions to (ids, mask); and to (embeddings, mask), for embeddings that were stored.
Tokenize = Callable[[list[str | None]], tuple[np.ndarray, np.ndarray]]
Embed = Callable[[list[str | None]], tuple[np.ndarray, np.ndarray]]
# For a batch of n clips: this host reads part `index` of `count` equal ones.
ShareOf = Callable[[int], tuple[int, int]]
_ATTEMPTS = 32


class ClipBatch(TypedDict, total=False):
    """What one host reads of a step, or the report of a failure.

    Attributes:
        video: uint8.
        has_text: which clips have a caption.
        text_ids, text_mask: of the captions; with `tokenize` only.
        text_embeddings: of the captions; with `embed` only.
        captions: None where missing or dropped.
        ids: of the clips.
        bucket: name of the shape that all hosts have at this step.
        skipped: (path, reason) of unreadable clips.
        failed: whether no clip could be read.
    """

    video: UInt8[np.ndarray, "b t h w 3"]
    has_text: Bool[np.ndarray, "b"]
    text_ids: Int[np.ndarray, "b l"]
    text_mask: Bool[np.ndarray, "b l"]
    text_embeddings: Float[np.ndarray, "b l d"]
    captions: list[str | None]
    ids: list[str]
    bucket: str
    skipped: list[tuple[str, str]]
    failed: bool


class _Example(TypedDict, total=False):
    """One row of a `ClipBatch`; `absent` where a host reads fewer rows of this bucket."""

    video: UInt8[np.ndarray, "t h w 3"]
    caption: str | None
    id: str
    bucket: int
    skipped: list[tuple[str, str]]
    failed: bool
    absent: bool


class ClipSource:
    """Random access to the examples of one host: element i is row i % rows of step i // rows.

    `rows` is that of the largest batch; of a step with fewer clips the last elements are absent.

    An unreadable clip is replaced by the next of its place's substitutes; what was skipped
    travels with the example, as does, after too many attempts, the failure itself.
    """

    def __init__(
        self,
        records: Sequence[Sequence[ClipRecord]],
        shapes: Sequence[Mapping[int, Shape]],
        plan: SamplingPlan,
        buckets: tuple[Bucket, ...],
        config: Mapping[str, Json],
        share_of: ShareOf,
    ) -> None:
        self.records, self.shapes, self.plan, self.buckets = records, shapes, plan, buckets
        # Of each bucket's batch: this host's first row, and how many it has.
        self._own: list[tuple[int, int]] = []
        for bucket, clips in zip(buckets, plan.clips, strict=True):
            index, count = share_of(clips)
            if clips < 1 or clips % count:
                raise UserError(
                    f"a batch of {clips} clips of bucket {bucket.name} cannot be shared out to "
                    f"{count} hosts; batch_size, and *CLIPS of a bucket, must be multiples of it"
                )
            self._own.append((index * (clips // count), clips // count))
        self.rows = max(rows for _, rows in self._own)
        self._cut = Cut(config["fps"], config["crop"], config["zoom"], config["mirror"])
        self._dropout = config["caption_dropout"]
        self._decoder = _decoder(config)
        self._cache = DecodedCache(buckets, self._cut.zoom) if config["cache_decoded"] else None

    def __len__(self) -> int:
        return ENDLESS

    def __repr__(self) -> str:
        return f"ClipSource({[len(r) for r in self.records]} clips, {len(self.buckets)} buckets)"

    def __getitem__(self, index: int) -> _Example:
        step, row = divmod(int(index), self.rows)
        first, rows = self._own[self.plan.bucket(step)]
        if row >= rows:
            return {"skipped": [], "absent": True}
        place = self.plan.place(step, first + row)
        skipped: list[tuple[str, str]] = []
        for attempt in range(_ATTEMPTS):
            dataset, number = self.plan.clip(place, attempt)
            try:
                example = self._example(place, attempt, dataset, number)
            except BrokenVideoError as error:
                if (error.path, error.reason) not in skipped:
                    skipped.append((error.path, error.reason))
                continue
            example["skipped"] = skipped
            return example
        return {"skipped": skipped, "failed": True}

    def _example(self, place: Place, attempt: int, dataset: int, number: int) -> _Example:
        bucket = self.buckets[place.bucket]
        record = self.records[dataset][number]
        rng = self.plan.rng(place, attempt)
        dropped = rng.random() < self._dropout
        shape = self.shapes[dataset].get(number) or shape_of(record, self._decoder)
        video = cut_clip(record, shape, bucket, self._cut, rng, self._decoder, self._cache)
        caption = None if dropped else record.caption
        return {"video": video, "caption": caption, "id": record.id, "bucket": place.bucket}


def _decoder(config: Mapping[str, Json]) -> Decoder:
    return Decoder(config["decode_time_limit"], config["retries"], config["retry_delay"])


def _collate(buckets: tuple[Bucket, ...], examples: Sequence[_Example]) -> ClipBatch:
    """A batch of one host; a failed example turns the batch into the report of its failure."""
    examples = [example for example in examples if not example.get("absent")]
    skipped = [item for example in examples for item in example["skipped"]]
    if any(example.get("failed") for example in examples):
        return {"failed": True, "skipped": skipped}
    captions = [example["caption"] for example in examples]
    return {
        "video": np.stack([example["video"] for example in examples]),
        "has_text": np.array([caption is not None for caption in captions]),
        "captions": captions,
        "ids": [example["id"] for example in examples],
        "bucket": buckets[examples[0]["bucket"]].name,
        "skipped": skipped,
    }


def _owned(batch: ClipBatch) -> ClipBatch:
    """Copy the arrays out of the shared memory of worker processes, which is thereby released."""
    copied = {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in batch.items()}
    return cast(ClipBatch, copied)


def _tokenized(tokenize: Tokenize, batch: ClipBatch) -> ClipBatch:
    if "captions" not in batch:
        return batch
    ids, mask = tokenize(batch["captions"])
    return batch | {"text_ids": np.asarray(ids, np.int32), "text_mask": np.asarray(mask, bool)}


def _embedded(embed: Embed, batch: ClipBatch) -> ClipBatch:
    if "captions" not in batch:
        return batch
    return batch | {"text_embeddings": np.asarray(embed(batch["captions"])[0], np.float32)}


class ClipLoader(ResumableLoader[ClipBatch]):
    """The endless iterator of batches; see `make_loader` for what a batch holds.

    `broken` maps the path of every clip skipped so far to the reason. `step` is the number of the
    next batch.
    """

    def __init__(
        self,
        source: ClipSource,
        broken: Sequence[tuple[str, str]],
        config: Mapping[str, Json],
        tokenize: Tokenize | None,
        embed: Embed | None = None,
    ) -> None:
        super().__init__(source.plan.seed)
        self._source, self._config, self._tokenize = source, config, tokenize
        self._embed = embed
        self._clips = sum(len(records) for records in source.records)
        self.buckets = source.buckets
        self._count(broken)

    def some_captions(self, count: int = 64) -> list[str | None]:
        """Captions of at most `count` clips, evenly spread over all sources; no pixel is read."""
        found: list[str | None] = []
        each = max(count // max(len(self._source.records), 1), 1)
        for records in self._source.records:
            for number in np.unique(np.linspace(0, len(records) - 1, each).astype(int)):
                try:
                    found.append(records[int(number)].caption)
                except BrokenVideoError:
                    continue
        return found

    def _take(self, batch: ClipBatch) -> ClipBatch:
        """Raises: UserError, when more clips are unreadable than the config allows."""
        self._count(batch.pop("skipped"))
        if batch.get("failed"):
            path, reason = next(reversed(self.broken.items()))
            raise UserError(
                f"no readable clip was found in {_ATTEMPTS} attempts at step {self.step}; "
                f"the last was {path}: {reason}; check the sources of the data config"
            )
        return batch

    def _count(self, skipped: Sequence[tuple[str, str]]) -> None:
        self._note_broken(skipped, "clip")
        if len(self.broken) > self._config["max_broken_share"] * self._clips:
            path, reason = next(iter(self.broken.items()))
            raise UserError(
                f"{len(self.broken)} of {self._clips} clips are unreadable, more than "
                f"max_broken_share = {self._config['max_broken_share']:g} allows; the first is "
                f"{path}: {reason}; repair or remove them, or raise max_broken_share"
            )

    def _stream(self, step: int) -> grain.IterDataset:
        rows, threads = self._source.rows, max(self._config["threads"], 1)
        ahead = max(self._config["prefetch"], 1)
        # Whole batches are grain's elements: worker processes take every n-th element.
        collate = functools.partial(_collate, self.buckets)
        steps = grain.MapDataset.source(self._source).batch(
            rows, drop_remainder=True, batch_fn=collate
        )
        read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads))
        batches = steps[step:].to_iter_dataset(read)
        if self._config["workers"]:
            batches = in_processes(batches, self._config["workers"], ahead).map(_owned)
        if self._tokenize is not None:
            batches = batches.map(functools.partial(_tokenized, self._tokenize))
        if self._embed is not None:
            batches = batches.map(functools.partial(_embedded, self._embed))
        return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=ahead)


def make_loader(
    config: Mapping[str, Json],
    *,
    seed: int,
    batch_size: int,
    tokenize: Tokenize | None = None,
    embed: Embed | None = None,
    process_index: int = 0,
    process_count: int = 1,
    split: str = "train",
    share_of: ShareOf | None = None,
) -> ClipLoader:
    """The batches of one host.

    Args:
        config: the data part of a config, see `config.data_config`.
        seed: of the whole stream.
        batch_size: examples of a step over all hosts, where its bucket does not say; a multiple of
            `process_count`.
        tokenize: captions (None where missing or dropped) to (ids (b, l), mask (b, l)).
        embed: captions to stored embeddings (b, l, d), see `caption_embeddings`.
        process_index: this host.
        process_count: all hosts.
        split: "train" reads config.sources, "heldout" config.heldout without dropout.
        share_of: what this host reads of a batch of n clips, where that depends on their
            number: hosts whose devices hold parts of the same frames read the same clips.

    Returns:
        An endless iterator with `get_state` and `set_state` (a `grain.DatasetIterator`) of
        `ClipBatch`es.

    Raises:
        UserError: nothing readable, too much broken, or an impossible setting.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size {batch_size} is no positive multiple of the {process_count} processes"
        )
    heldout = split == "heldout"
    if heldout:
        config = dict(config) | {"caption_dropout": 0.0, "weights": ()}
    specs = config["heldout"] if heldout else config["sources"]
    if not specs:
        raise UserError(f"the data config names no source for the split {split}; add one")
    buckets = parse_buckets(config["buckets"])
    records = [load_source(spec) for spec in specs]
    eligible, shapes, broken = _fitting(records, buckets, config)
    total = sum(len(r) for r in records)
    if not any(len(numbers) for lists in eligible for numbers in lists):
        path, reason = broken[0]
        raise UserError(
            f"none of the {total} clips of {', '.join(map(str, specs))} is readable; "
            f"the first is {path}: {reason}"
        )
    plan = SamplingPlan(buckets, eligible, tuple(config["weights"]), seed, batch_size)
    whole = (process_index, process_count)
    source = ClipSource(
        records, shapes, plan, buckets, dict(config), share_of or (lambda clips: whole)
    )
    return ClipLoader(source, broken, config, tokenize, embed)


def _fitting(
    records: Sequence[Sequence[ClipRecord]], buckets: tuple[Bucket, ...], config: Mapping[str, Json]
) -> tuple[list[list[np.ndarray]], list[Mapping[int, Shape]], list[tuple[str, str]]]:
    """Per source: the clips of each bucket, the known shapes; and what is broken."""
    if config["any_bucket"]:
        everything = [[np.arange(len(r))] * len(buckets) for r in records]
        return everything, [{} for _ in records], []
    decoder = _decoder(config)
    eligible: list[list[np.ndarray]] = []
    shapes: list[Mapping[int, Shape]] = []
    broken: list[tuple[str, str]] = []
    for clips in records:
        if isinstance(clips, WorldRecords):  # Drawn at whatever size and length is asked for.
            eligible.append([np.arange(len(clips))] * len(buckets))
            shapes.append({})
            continue
        index = index_clips(clips, decoder)
        fits = assign_buckets(
            buckets, index.height, index.width, index.seconds, index.fps, config["fps"]
        )
        eligible.append([index.number[fits[:, b]] for b in range(len(buckets))])
        shapes.append(index.shapes())
        broken += index.broken
    return eligible, shapes, broken
