"""Batches of flat token sequences for whoever trains on tokens, such as a prior over them.

Sequences of a batch have equal grids, hence one length: every set of grids in the dataset is a
bucket, drawn in proportion to its records. The stream of batches is a function of (dataset, seed,
step): it resumes exactly at any step, with any number of threads, worker processes and hosts, each
of which reads its own rows of every batch. Within a bucket all records come once per epoch, in
another order each time.

    loader = make_sequence_loader("tokens/", seed=0, batch_size=32, tokenize=captions)
    batch = next(loader)                     # batch.sequences (b, n), batch.text_ids (b, l), ...
    state = loader.get_state()               # plain JSON; loader.set_state(state) resumes there
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grain
import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int

from pyratok_jax.data.pipeline import Embed, ShareOf, Tokenize
from pyratok_jax.data.resumable import ENDLESS, ResumableLoader, in_processes
from pyratok_jax.data.sampling import Place, SamplingPlan
from pyratok_jax.errors import UserError
from pyratok_jax.tokens.dataset import TokenDataset, flatten, unflatten
from pyratok_jax.tokens.schema import DamagedRecordError, Grids, TokenRecord, decode_grids

BatchSize = int | Callable[[Grids], int]
_ATTEMPTS = 32
_SCAN_THREADS = 8


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """This host's rows of one batch.

    Attributes:
        sequences: SOI, level 1, Q-SEP, level 2, ..., int32 (int64 where ids do not fit); n is
            `sequence_length(grids)`, SOI is `vocabulary` + 1 and Q-SEP `vocabulary`.
        grids: (t, h, w) of every level, the same for all rows.
        vocabulary: number of valid token ids.
        captions: of each row; None where missing or dropped.
        ids: of the records.
        rows: of the batch over all hosts.
        text_ids, text_mask: the captions through `tokenize`; None without it.
        text_embeddings: the captions through `embed`, with `text_mask`; None without it.
        classes: the captions' classes, -1 where there is no caption; None without `classes`.
        read: as `sequences`, of what is read in their place where bits were flipped during the
            export (`TokenRecord.read`); None where none were.
    """

    sequences: Int[np.ndarray, "b n"]
    grids: Grids
    vocabulary: int
    captions: tuple[str | None, ...]
    ids: tuple[str, ...]
    rows: int
    text_ids: Int[np.ndarray, "b l"] | None = None
    text_mask: Bool[np.ndarray, "b l"] | None = None
    text_embeddings: Float[np.ndarray, "b l d"] | None = None
    classes: Int[np.ndarray, " b"] | None = None
    read: Int[np.ndarray, "b n"] | None = None

    @property
    def bucket(self) -> str:
        """Name of the batch's shape, the same on all hosts at a step."""
        return grids_name(self.grids)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a training step takes: the arrays, by name, and `has_text` (b,)."""
        named = {"sequences": self.sequences, "text_ids": self.text_ids,
                 "text_mask": self.text_mask, "text_embeddings": self.text_embeddings,
                 "classes": self.classes, "read": self.read}  # fmt: skip
        arrays = {key: value for key, value in named.items() if value is not None}
        return arrays | {"has_text": np.array([text is not None for text in self.captions])}

    def levels(self, row: int) -> tuple[np.ndarray, ...]:
        """The levels (t, h, w) of a row, coarse to fine."""
        return unflatten(self.sequences[row], self.grids, self.vocabulary)


def grids_name(grids: Grids) -> str:
    """For example `1x2x2+2x4x4`."""
    return "+".join("x".join(map(str, grid)) for grid in grids)


@dataclass(frozen=True)
class GridBucket:
    """The records of equal grids; see `sampling.SampledBucket`.

    Attributes:
        grids: (t, h, w) of every level.
        weight: batches of an epoch, so that every record is drawn equally often.
        clips: rows of a batch over all hosts.
    """

    grids: Grids
    weight: float
    clips: int

    @property
    def name(self) -> str:
        """For messages."""
        return grids_name(self.grids)


@dataclass(frozen=True, eq=False)
class GridIndex:
    """Which records have which grids.

    Attributes:
        records: of each set of grids, the numbers of its records, ascending.
        vocabulary: number of valid token ids, the same for all records.
        damaged: (where, reason) of records that are not read.
        flipped: whether the records hold what was read (`TokenRecord.read`): all or none.
    """

    records: dict[Grids, Int[np.ndarray, " n"]]
    vocabulary: int
    damaged: tuple[tuple[str, str], ...] = ()
    flipped: bool = False


def index_grids(dataset: TokenDataset) -> GridIndex:
    """Read the grids of all records, without decoding their tokens.

    Raises:
        UserError: no readable record, records of different vocabularies, or flipped ones among
            others.
    """

    def grids_of(number: int) -> tuple[Grids, int, bool] | DamagedRecordError:
        try:
            return decode_grids(*dataset.read_bytes(number))
        except DamagedRecordError as error:
            return error

    numbers: dict[Grids, list[int]] = {}
    vocabularies: set[int] = set()
    flipped: set[bool] = set()
    damaged = []
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        for number, found in enumerate(pool.map(grids_of, range(len(dataset)))):
            if isinstance(found, DamagedRecordError):
                damaged.append((found.where, found.reason))
            else:
                numbers.setdefault(found[0], []).append(number)
                vocabularies.add(found[1])
                flipped.add(found[2])
    if len(vocabularies) != 1:
        what = "different vocabularies" if vocabularies else "no readable record"
        raise UserError(f"{dataset.path} holds {what}; give a dataset of one tokenizer")
    if len(flipped) != 1:
        raise UserError(
            f"{dataset.path} holds records with flipped bits (--flip) and others; give one export"
        )
    records = {grids: np.array(numbers[grids], np.int64) for grids in sorted(numbers)}
    return GridIndex(records, vocabularies.pop(), tuple(damaged), flipped.pop())


class BatchSource:
    """Random access to the batches of one host: element i is its rows of step i."""

    def __init__(
        self,
        dataset: TokenDataset,
        plan: SamplingPlan,
        buckets: Sequence[GridBucket],
        vocabulary: int,
        caption_dropout: float,
        share_of: ShareOf,
    ) -> None:
        self.dataset, self.plan, self.buckets = dataset, plan, tuple(buckets)
        self._vocabulary, self._dropout = vocabulary, caption_dropout
        self._own: list[range] = []
        for bucket in buckets:
            index, count = share_of(bucket.clips)
            if bucket.clips < 1 or bucket.clips % count:
                raise UserError(
                    f"a batch of {bucket.clips} sequences of {bucket.name} cannot be shared out to "
                    f"{count} hosts; batch_size must be a multiple of them"
                )
            rows = bucket.clips // count
            self._own.append(range(index * rows, (index + 1) * rows))

    def __len__(self) -> int:
        return ENDLESS

    def __repr__(self) -> str:
        return f"BatchSource({len(self.dataset)} records, {len(self.buckets)} buckets)"

    def __getitem__(self, step: int) -> tuple[TokenBatch | None, list[tuple[str, str]]]:
        """This host's rows of a step, None if there is no readable record; what was skipped."""
        number = self.plan.bucket(int(step))
        skipped: list[tuple[str, str]] = []
        places = [self.plan.place(int(step), row) for row in self._own[number]]
        found = [self._record(place, skipped) for place in places]
        records = [record for record, _ in found if record is not None]
        if len(records) < len(places):
            return None, skipped
        flipped = all(record.read for record in records)
        batch = TokenBatch(
            sequences=np.stack([flatten(r.tokens, self._vocabulary) for r in records]),
            read=np.stack([flatten(r.read, self._vocabulary) for r in records])
            if flipped
            else None,
            grids=self.buckets[number].grids,
            vocabulary=self._vocabulary,
            captions=tuple(caption for _, caption in found),
            ids=tuple(record.id for record in records),
            rows=self.buckets[number].clips,
        )
        return batch, skipped

    def _record(
        self, place: Place, skipped: list[tuple[str, str]]
    ) -> tuple[TokenRecord | None, str | None]:
        """A place's record, or the first of its substitutes that is whole, and the caption."""
        for attempt in range(_ATTEMPTS):
            _, number = self.plan.clip(place, attempt)
            try:
                record = self.dataset[number]
            except DamagedRecordError as error:
                skipped.append((error.where, error.reason))
                continue
            dropped = self.plan.rng(place, attempt).random() < self._dropout
            return record, None if dropped else record.caption or None
        return None, None


class SequenceLoader(ResumableLoader[TokenBatch]):
    """The endless iterator of one host's batches; see `make_sequence_loader`."""

    def __init__(
        self,
        source: BatchSource,
        damaged: Sequence[tuple[str, str]],
        fingerprint: str,
        tokenize: Tokenize | None,
        embed: Embed | None,
        classes: Mapping[str, int] | None,
        reading: "Reading",
    ) -> None:
        super().__init__(source.plan.seed)
        self.buckets, self.vocabulary = source.buckets, source._vocabulary
        self._source, self._fingerprint, self._reading = source, fingerprint, reading
        self._condition = functools.partial(_conditioned, tokenize, embed, classes)
        self._note_broken(damaged, "record")

    def _stream(self, step: int) -> grain.IterDataset:
        r = self._reading
        threads = grain.ReadOptions(r.threads, max(r.threads, r.ahead))
        batches = grain.MapDataset.source(self._source)[step:].to_iter_dataset(threads)
        if r.workers:
            batches = in_processes(batches, r.workers, r.ahead)
        batches = batches.map(self._condition)
        return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=r.ahead)

    def _take(self, element: tuple[TokenBatch | None, list[tuple[str, str]]]) -> TokenBatch:
        batch, skipped = element
        self._note_broken(skipped, "record")
        if batch is None:
            where, reason = next(reversed(self.broken.items()))
            raise UserError(
                f"no readable record in {_ATTEMPTS} attempts; the last: {where}: {reason}"
            )
        return batch

    def get_state(self) -> dict[str, int | str]:  # type: ignore[override]
        """Step, seed and the dataset's fingerprint; plain JSON."""
        return {**super().get_state(), "dataset": self._fingerprint}

    def set_state(self, state: Mapping[str, int | str]) -> None:
        """Resume at a saved step.

        Raises:
            UserError: the state is of another seed or dataset.
        """
        if state.get("dataset", self._fingerprint) != self._fingerprint:
            raise UserError(
                f"the data state was saved on other shards than those of "
                f"{self._source.dataset.path}; resume with the same dataset"
            )
        super().set_state({key: int(state[key]) for key in ("step", "seed") if key in state})


def _conditioned(
    tokenize: Tokenize | None,
    embed: Embed | None,
    classes: Mapping[str, int] | None,
    element: tuple[TokenBatch | None, list[tuple[str, str]]],
) -> tuple[TokenBatch | None, list[tuple[str, str]]]:
    """Add what the captions become for the model."""
    batch, skipped = element
    if batch is None:
        return element
    if tokenize is not None:
        ids, mask = tokenize(list(batch.captions))
        batch = dataclasses.replace(
            batch, text_ids=np.asarray(ids, np.int32), text_mask=np.asarray(mask, bool)
        )
    if embed is not None:
        values, mask = embed(list(batch.captions))
        batch = dataclasses.replace(
            batch, text_embeddings=np.asarray(values, np.float32), text_mask=np.asarray(mask, bool)
        )
    if classes is not None:
        unknown = [text for text in batch.captions if text is not None and text not in classes]
        if unknown:
            raise UserError(f"the caption {unknown[0][:60]!r} names none of the classes")
        numbers = [-1 if text is None else classes[text] for text in batch.captions]
        batch = dataclasses.replace(batch, classes=np.array(numbers, np.int32))
    return batch, skipped


@dataclass(frozen=True)
class Reading:
    """How records are read, which does not change the batches.

    Attributes:
        threads: that read at the same time, in each process.
        workers: worker processes; 0: read in this one.
        ahead: batches that are kept ready.
    """

    threads: int = 2
    workers: int = 0
    ahead: int = 2


def make_sequence_loader(
    dataset: str | TokenDataset,
    *,
    seed: int,
    batch_size: BatchSize,
    tokenize: Tokenize | None = None,
    embed: Embed | None = None,
    classes: Mapping[str, int] | None = None,
    caption_dropout: float = 0.0,
    process_index: int = 0,
    process_count: int = 1,
    share_of: ShareOf | None = None,
    reading: Reading = Reading(),
) -> SequenceLoader:
    """The batches of one host.

    Args:
        dataset: folder or shard of tokens, or an opened one.
        seed: of the whole stream.
        batch_size: rows over all hosts, a multiple of `process_count`; or a function that gives
            them for the grids of a bucket, such as `lambda grids: 2**20 // sequence_length(grids)`.
        tokenize: captions to (ids (b, l), mask (b, l)), such as a `data.captions.CaptionTokenizer`.
        embed: captions to (embeddings (b, l, d), mask (b, l)), such as a
            `data.caption_embeddings.StoredCaptions`.
        classes: numbers of the captions, where these are names of classes.
        caption_dropout: share of rows whose caption is left out, for classifier-free guidance.
        process_index: this host.
        process_count: all hosts.
        share_of: (index, count) of the equal shards of a batch of n rows that this host reads,
            where it is not (process_index, process_count).
        reading: threads and processes.

    Raises:
        UserError: no readable record, different vocabularies, or an impossible setting.
    """
    tokens = dataset if isinstance(dataset, TokenDataset) else TokenDataset(dataset)
    index = index_grids(tokens)
    sizes = batch_size if callable(batch_size) else lambda grids: batch_size
    buckets = [
        GridBucket(grids, len(numbers) / max(sizes(grids), 1), sizes(grids))
        for grids, numbers in index.records.items()
    ]
    plan = SamplingPlan(buckets, [list(index.records.values())], (), seed, batch_size=1)
    whole = (process_index, process_count)
    source = BatchSource(
        tokens, plan, buckets, index.vocabulary, caption_dropout, share_of or (lambda rows: whole)
    )
    return SequenceLoader(
        source, index.damaged, _fingerprint(tokens, index), tokenize, embed, classes, reading
    )


def _fingerprint(dataset: TokenDataset, index: GridIndex) -> str:
    """Hash of the names of the shards and of which records have which grids."""
    digest = hashlib.sha256("\n".join(epath.Path(file).name for file in dataset.files).encode())
    for grids, numbers in index.records.items():
        digest.update(grids_name(grids).encode() + numbers.tobytes())
    return digest.hexdigest()[:16]
