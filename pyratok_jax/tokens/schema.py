"""What a record of tokens holds, and how it is stored in a tf.train.Example.

A record is one block of a video: a window of its frames, or a tile of such a window. All keys are
listed here; token arrays are little-endian uint16 for up to 16 bits, and uint32 above.

Where bits were flipped during the export, what was read of every level lies beside its tokens,
under the same keys with `read_` before them. Readers that do not know of it see the record without.
"""

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

# Not where it is used: while TFDS is imported, imports in other threads fail.
import tensorflow_datasets as tfds

from pyratok_jax.data.padding import Padding
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.records import ExampleSchema, Features, parse_example
from pyratok_jax.tokens.coding import pack, unpack

SCHEMA_VERSION = 1

TOKEN_SCHEMA = ExampleSchema(
    texts=("id", "video", "path", "caption", "text_encoder", "code", "checkpoint"),
    floats=("fps", "start", "end"),
    integers=(
        "schema", "block", "blocks", "first_frame", "top", "left", "overlap", "frames", "height",
        "width", "padded_frames", "padded_height", "padded_width", "video_frames", "video_height",
        "video_width", "bits", "vocabulary", "levels",
    ),
)  # fmt: skip
CHECKSUM_KEY = "checksum"
_STORED = replace(TOKEN_SCHEMA, integers=(*TOKEN_SCHEMA.integers, CHECKSUM_KEY))
READ = "read_"  # Before the keys of levels, and of the checksum, of what was read.
MAX_LEVELS = 64
# (t, h, w) of every level, coarse to fine.
Grids = tuple[tuple[int, int, int], ...]


class DamagedRecordError(UserError):
    """A record that is not one of tokens, or whose content is not what was written.

    `where` names the shard and the record in it; `reason` says what is wrong.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}; export that shard again or leave it out")
        self.where, self.reason = where, reason

    def __reduce__(self) -> tuple:
        return type(self), (self.where, self.reason)


class SchemaError(UserError):
    """A record that a newer version of this project has written.

    `where` names the shard and the record in it; `reason` says which version it is.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where} {reason}; update pyratok-jax, or force it")
        self.where, self.reason = where, reason

    def __reduce__(self) -> tuple:
        return type(self), (self.where, self.reason)


@dataclass(frozen=True, eq=False)
class TokenRecord:
    """One block of a video as tokens.

    Attributes:
        tokens: ids of every level, coarse to fine, each (t, h, w), uint16 or uint32.
        id: unique in the dataset.
        video: the id of the clip in the source; its blocks share it.
        path: the source's file.
        caption: "" where there was none.
        text_encoder: what embedded the captions; "" where the null embedding was used.
        code: hash of the encoder's source code.
        checkpoint: hash of the tokenizer's weights.
        fps: frames per second of the frames that were encoded.
        start, end: seconds of the clip within its file, -1 for the file's beginning and end.
        block, blocks: this block's number within the video, and how many there are.
        first_frame, top, left: where the block begins in the video.
        overlap: pixels that neighbouring tiles share.
        frames, height, width: the block's true size.
        padded_frames, padded_height, padded_width: its size when it was encoded.
        video_frames, video_height, video_width: the video's size.
        bits, vocabulary: bits per token, and the number of valid ids.
        levels: number of levels.
        schema: version of this layout.
        read: ids of every level as the finer ones saw them, bits of `tokens` flipped; () where
            none were (`export_tokens --flip`).
    """

    tokens: tuple[np.ndarray, ...]
    id: str
    video: str
    path: str
    caption: str
    text_encoder: str
    code: str
    checkpoint: str
    fps: float
    start: float
    end: float
    block: int
    blocks: int
    first_frame: int
    top: int
    left: int
    overlap: int
    frames: int
    height: int
    width: int
    padded_frames: int
    padded_height: int
    padded_width: int
    video_frames: int
    video_height: int
    video_width: int
    bits: int
    vocabulary: int
    levels: int
    schema: int = SCHEMA_VERSION
    read: tuple[np.ndarray, ...] = ()

    @property
    def padding(self) -> Padding:
        """The block's true and padded size."""
        return Padding(
            self.frames, self.height, self.width,
            self.padded_frames, self.padded_height, self.padded_width,
        )  # fmt: skip

    @property
    def grids(self) -> Grids:
        """(t, h, w) of every level."""
        return tuple((t, h, w) for t, h, w in (level.shape for level in self.tokens))

    @property
    def count(self) -> int:
        """Number of tokens, all levels together."""
        return sum(level.size for level in self.tokens)

    @property
    def bits_per_pixel(self) -> float:
        """Raw token bits over the true pixels of the block."""
        return self.count * self.bits / (self.frames * self.height * self.width)


def token_dtype(bits: int) -> np.dtype:
    """The stored dtype of ids with that many bits, little-endian."""
    return np.dtype("<u2") if bits <= 16 else np.dtype("<u4")


def checksum(record: TokenRecord) -> int:
    """CRC-32 of a record's content, however it is stored.

    It runs over the texts, floats and integers of `TOKEN_SCHEMA` in that order, then the levels'
    arrays: texts as UTF-8, numbers as little-endian float32 and int64, tokens as little-endian
    integers in raster order; each item is preceded by its length in bytes as int64.
    """
    parts = [getattr(record, key).encode("utf-8", "replace") for key in TOKEN_SCHEMA.texts]
    parts += [struct.pack("<f", getattr(record, key)) for key in TOKEN_SCHEMA.floats]
    parts += [struct.pack("<q", getattr(record, key)) for key in TOKEN_SCHEMA.integers]
    return _crc(parts + _level_bytes(record.tokens, record.bits))


def _level_bytes(levels: Sequence[np.ndarray], bits: int) -> list[bytes]:
    return [np.ascontiguousarray(level, token_dtype(bits)).tobytes() for level in levels]


def _crc(parts: Sequence[bytes]) -> int:
    value = 0
    for part in parts:
        value = zlib.crc32(part, zlib.crc32(struct.pack("<q", len(part)), value))
    return value


def encode_record(record: TokenRecord, packed: bool = False) -> bytes:
    """A serialised tf.train.Example; equal content gives equal bytes.

    Args:
        record: what to store.
        packed: entropy-code the tokens.
    """
    values = {key: getattr(record, key) for key in _FIELDS} | {CHECKSUM_KEY: checksum(record)}
    arrays = _level_arrays("", record.tokens, record.bits, packed)
    if record.read:
        arrays |= _level_arrays(READ, record.read, record.bits, packed)
        arrays[READ + CHECKSUM_KEY] = [_crc(_level_bytes(record.read, record.bits))]
    return _STORED.encode(values, arrays)


def _level_arrays(
    prefix: str, levels: Sequence[np.ndarray], bits: int, packed: bool
) -> dict[str, Sequence[bytes] | Sequence[int]]:
    arrays: dict[str, Sequence[bytes] | Sequence[int]] = {}
    for number, level in enumerate(levels, start=1):
        if packed:
            arrays[f"{prefix}packed_{number}"] = [pack(level, bits)]
            arrays[f"{prefix}grid_{number}"] = level.shape
        elif bits <= 16:
            # As tfds.features.Tensor(shape=(None,) * 3, encoding="bytes") stores it.
            data = np.ascontiguousarray(level, token_dtype(bits)).tobytes()
            arrays[f"{prefix}tokens_{number}/value"] = [data]
            arrays[f"{prefix}tokens_{number}/shape"] = level.shape
        else:
            # TensorFlow decodes no raw uint32.
            arrays[f"{prefix}tokens_{number}"] = level.ravel().tolist()
            arrays[f"{prefix}grid_{number}"] = level.shape
    return arrays


def decode_record(
    data: bytes, where: str, any_schema: bool = False, *, spooled: bool = False
) -> TokenRecord:
    """The record in a serialised Example.

    Args:
        data: its bytes.
        where: names it in messages.
        any_schema: read other versions of the schema as if they were this one.
        spooled: the running export wrote it, before the size of its video was known.

    Raises:
        DamagedRecordError: not a record of tokens, or its checksum is wrong.
        SchemaError: written in a schema that is not known here.
    """
    try:
        feature = parse_example(data)
    except ValueError as error:
        raise DamagedRecordError(where, f"it is {error}") from error
    if "schema" not in feature or not feature["schema"].int64_list.value:
        raise DamagedRecordError(where, "it has no key schema, so it is not a record of tokens")
    version = feature["schema"].int64_list.value[0]
    if not any_schema and not 1 <= version <= SCHEMA_VERSION:
        raise SchemaError(
            where,
            f"is written in version {version} of the token schema, this program reads up to "
            f"{SCHEMA_VERSION}",
        )
    try:
        values = _scalars(feature)
        if not spooled:
            check_numbers(values)
        tokens = tuple(_level(feature, n, values) for n in range(1, values["levels"] + 1))
        if not spooled:
            check_ids(tokens, values["vocabulary"])
        record = TokenRecord(tokens=tokens, **values, read=_read_levels(feature, values, tokens))
        stored = feature[CHECKSUM_KEY].int64_list.value[0]
    except (IndexError, KeyError, ValueError, OverflowError, AssertionError) as error:
        raise DamagedRecordError(where, f"a key is missing or malformed ({error})") from error
    if checksum(record) != stored:
        raise DamagedRecordError(where, "its checksum is wrong")
    return record


def _read_levels(
    feature: Features, values: Mapping[str, Json], tokens: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, ...]:
    """What was read of every level; () where nothing was flipped."""
    if not _has_read(feature):
        return ()
    read = tuple(_level(feature, n, values, READ) for n in range(1, values["levels"] + 1))
    check_ids(read, values["vocabulary"])
    if [level.shape for level in read] != [level.shape for level in tokens]:
        raise ValueError("the grids of what was read differ from those of the tokens")
    if _crc(_level_bytes(read, values["bits"])) != feature[READ + CHECKSUM_KEY].int64_list.value[0]:
        raise ValueError("the checksum of what was read is wrong")
    return read


def _has_read(feature: Features) -> bool:
    # Any of them: one that is damaged must not make the others unseen.
    return any(key.startswith(READ) for key in feature)


def decode_grids(data: bytes, where: str) -> tuple[Grids, int, bool]:
    """(t, h, w) of every level of a serialised record, its vocabulary, and whether it was flipped.

    No token is decoded.

    Raises:
        DamagedRecordError: not a record of tokens.
    """
    try:
        feature = parse_example(data)
        levels = feature["levels"].int64_list.value[0]
        vocabulary = feature["vocabulary"].int64_list.value[0]
        bits = feature["bits"].int64_list.value[0]
        if not (1 <= bits <= 32 and 1 <= levels <= MAX_LEVELS):
            raise ValueError(f"{levels} levels of {bits} bits")
        raw = bits <= 16 and "packed_1" not in feature
        names = [f"tokens_{n}/shape" if raw else f"grid_{n}" for n in range(1, levels + 1)]
        shapes = [tuple(feature[name].int64_list.value) for name in names]
        grids = tuple((int(t), int(h), int(w)) for t, h, w in shapes)
    except (IndexError, ValueError) as error:
        raise DamagedRecordError(where, f"it is no record of tokens ({error})") from error
    return grids, vocabulary, _has_read(feature)


def _scalars(features: Features) -> dict[str, Json]:
    values = TOKEN_SCHEMA.scalars(features)
    if not (1 <= values["bits"] <= 32 and 1 <= values["levels"] <= MAX_LEVELS):
        raise ValueError(f"{values['levels']} levels of {values['bits']} bits")
    return values


def _level(
    feature: Features, number: int, values: Mapping[str, Json], prefix: str = ""
) -> np.ndarray:
    bits = values["bits"]
    dtype = token_dtype(bits)
    packed, tokens = f"{prefix}packed_{number}", f"{prefix}tokens_{number}"
    raw = packed not in feature and bits <= 16
    name = f"{tokens}/shape" if raw else f"{prefix}grid_{number}"
    grid = tuple(feature[name].int64_list.value)
    check_grid(grid, values)
    if packed in feature:
        return unpack(feature[packed].bytes_list.value[0], grid, bits)
    if raw:
        data = feature[f"{tokens}/value"].bytes_list.value[0]
        return np.frombuffer(data, dtype).reshape(grid)
    return np.array(feature[tokens].int64_list.value, dtype).reshape(grid)


def tfds_features(
    bits: int, levels: int, packed: bool, flipped: bool = False
) -> dict[str, tfds.features.FeatureConnector]:
    """TFDS's feature connectors of such records, by key."""
    features = _stored(flipped).tfds_features()
    for prefix, number in _level_names(levels, flipped):
        if packed:
            features[f"{prefix}packed_{number}"] = tfds.features.Tensor(shape=(), dtype=np.object_)
        elif bits <= 16:
            features[f"{prefix}tokens_{number}"] = tfds.features.Tensor(
                shape=(None, None, None), dtype=np.uint16, encoding="bytes"
            )
        else:
            features[f"{prefix}tokens_{number}"] = tfds.features.Tensor(
                shape=(None,), dtype=np.uint32
            )
        if packed or bits > 16:
            features[f"{prefix}grid_{number}"] = tfds.features.Tensor(shape=(3,), dtype=np.int64)
    return features


def feature_spec(bits: int, levels: int, packed: bool, flipped: bool = False) -> dict[str, str]:
    """The feature spec for `tf.io.parse_single_example`, as source text by key."""
    spec = _stored(flipped).parsing_spec()
    for prefix, number in _level_names(levels, flipped):
        if packed:
            spec[f"{prefix}packed_{number}"] = "tf.io.FixedLenFeature([], tf.string)"
        elif bits <= 16:
            spec[f"{prefix}tokens_{number}/value"] = "tf.io.FixedLenFeature([], tf.string)"
            spec[f"{prefix}tokens_{number}/shape"] = "tf.io.FixedLenFeature([3], tf.int64)"
        else:
            spec[f"{prefix}tokens_{number}"] = "tf.io.VarLenFeature(tf.int64)"
        if packed or bits > 16:
            spec[f"{prefix}grid_{number}"] = "tf.io.FixedLenFeature([3], tf.int64)"
    return spec


def _stored(flipped: bool) -> ExampleSchema:
    more = (READ + CHECKSUM_KEY,) if flipped else ()
    return replace(_STORED, integers=(*_STORED.integers, *more))


def _level_names(levels: int, flipped: bool) -> list[tuple[str, int]]:
    """(prefix, number) of the keys of all levels."""
    prefixes = ("", READ) if flipped else ("",)
    return [(prefix, number) for prefix in prefixes for number in range(1, levels + 1)]


_FIELDS = {field.name for field in fields(TokenRecord)} - {"tokens", "read"}
assert {*TOKEN_SCHEMA.texts, *TOKEN_SCHEMA.floats, *TOKEN_SCHEMA.integers} == _FIELDS


MAX_SIDE = 1 << 15  # Pixels.
MAX_FRAMES = 1 << 24
MAX_PIXELS = 1 << 27  # Of a frame, as readers of media accept them.
MAX_BLOCK_PIXELS = 1 << 30
MIN_FPS, MAX_FPS = 1e-3, 1e5
# A block is at least one part in so many of its frames, where these have more pixels.
_LEAST_SHARE, _FREE_PIXELS = 1000, 1 << 27
# Padding repeats edges up to a multiple of the tokenizer's strides, never by more than this.
_MOST_PADDING = 1 << 12


def check_numbers(values: Mapping[str, Json]) -> None:
    """Refuse numbers of a record that no export writes.

    Args:
        values: fields of a `TokenRecord` by name.

    Raises:
        ValueError: naming the field and its value.
    """
    if not 1 <= values["bits"] <= 32:
        raise ValueError(f"bits is {values['bits']}, not within 1 .. 32")
    for name, least, most in (
        ("video_frames", 1, MAX_FRAMES),
        ("video_height", 1, MAX_SIDE),
        ("video_width", 1, MAX_SIDE),
        ("first_frame", 0, values["video_frames"] - 1),
        ("frames", 1, values["video_frames"] - values["first_frame"]),
        ("top", 0, values["video_height"] - 1),
        ("height", 1, values["video_height"] - values["top"]),
        ("left", 0, values["video_width"] - 1),
        ("width", 1, values["video_width"] - values["left"]),
        ("padded_frames", values["frames"], values["frames"] + _MOST_PADDING),
        ("padded_height", values["height"], values["height"] + _MOST_PADDING),
        ("padded_width", values["width"], values["width"] + _MOST_PADDING),
        ("overlap", 0, MAX_SIDE),
        ("blocks", 1, 1 << 40),
        ("block", 0, values["blocks"] - 1),
        ("vocabulary", 1, 1 << values["bits"]),
    ):
        if not least <= values[name] <= most:
            raise ValueError(f"{name} is {values[name]}, not within {least} .. {most}")
    for sides, most in (
        (("video_height", "video_width"), MAX_PIXELS),
        (("frames", "video_height", "video_width"), MAX_BLOCK_PIXELS),
        (("padded_frames", "padded_height", "padded_width"), MAX_BLOCK_PIXELS),
    ):
        if (pixels := math.prod(values[name] for name in sides)) > most:
            raise ValueError(f"{' x '.join(sides)} is {pixels}, not within 1 .. {most}")
    # A small file must not stand for a large picture of which it holds next to nothing.
    parts = math.prod(values[name] for name in ("height", "width"))
    whole = values["video_height"] * values["video_width"]
    if values["frames"] * whole > max(_FREE_PIXELS, _LEAST_SHARE * values["frames"] * parts):
        raise ValueError(f"a block of {parts} pixels in frames of {whole}, expected a larger one")
    if not (math.isfinite(values["fps"]) and MIN_FPS <= values["fps"] <= MAX_FPS):
        raise ValueError(f"fps is {values['fps']}, not within {MIN_FPS} .. {MAX_FPS}")


def check_ids(tokens: Sequence[np.ndarray], vocabulary: int) -> None:
    """Refuse ids beyond the vocabulary.

    Raises:
        ValueError: naming the level and the largest id.
    """
    for number, level in enumerate(tokens, start=1):
        if (largest := int(level.max())) >= vocabulary:
            raise ValueError(f"level {number} holds the id {largest}, expected below {vocabulary}")


def check_grid(grid: tuple[int, ...], values: Mapping[str, Json]) -> None:
    """Refuse a level's grid that is empty, or finer than the padded block.

    Raises:
        ValueError: naming the grid.
    """
    size = values["padded_frames"], values["padded_height"], values["padded_width"]
    if len(grid) != 3 or not all(1 <= n <= m for n, m in zip(grid, size, strict=True)):
        raise ValueError(f"a grid of {grid} for a padded block of {size}")
