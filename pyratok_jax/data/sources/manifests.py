"""Manifests: tables of clips in .json, .jsonl, .csv or .parquet, in our columns or published ones.

Ours: `path`, `caption`, optionally `start`, `end` (seconds), `id`, and `width`, `height`,
`seconds`, `fps` of the file. Published column layouts are recognised by their names:

- OpenVid-1M: `video`, `caption`, `seconds`, `fps`, `frame`, scores.
- WebVid: `videoid`, `name` (the caption), `page_dir`, `duration` (ISO 8601); the file is
  `page_dir/videoid.mp4`, as the published downloader writes it.
- Droplet-10M: `video` or `video_path`, `text` or `caption`, `start_time`, `end_time` or frame
  indices `start_frame`, `end_frame` with `fps`.
- COCO captions (`captions_val2017.json`): images as clips of one frame.
- UltraVideo: `clip_id` and `Summarized Description` beside longer captions.
"""

import dataclasses
import io
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated

from etils import epath
from pydantic import Field

from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.decoding import with_back_off
from pyratok_jax.data.video.files import MAX_TEXT_BYTES, BrokenVideoError, check_regular
from pyratok_jax.errors import UserError, quoted, short, storage_reason
from pyratok_jax.io import Json
from pyratok_jax.io.documents import checked, csv_rows, parse_json
from pyratok_jax.io.remote import is_remote, open_path

MAX_MANIFEST_BYTES = 4 << 30
MAX_ROWS = 1 << 25  # Of a parquet file.
_BATCH = 1024  # Rows of a parquet file that are read at once.
MANIFEST_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")

# Names that a column has in our layout and in the published ones, in order of preference.
_PATH = ("path", "video", "video_path", "clip_id", "file", "filename")
_CAPTION = (
    "caption",
    "text",
    "Summarized Description",
    "summarized_description",
    "Brief Description",
)
_START = ("start", "start_time", "start_sec")
_END = ("end", "end_time", "end_sec")
_SECONDS = ("seconds", "duration", "duration_sec")
_WIDTH, _HEIGHT, _FPS = ("width",), ("height",), ("fps", "framerate")

_RATES = (1e-3, 480.0)  # Frames per second.
_MOST_PIXELS = 1 << 20  # Of a side.


def read_bytes(path: str, retries: int = 2, delay: float = 1.0) -> bytes:
    """A whole local or remote file; remote failures are tried again with back-off.

    Raises:
        UserError: it cannot be read.
    """

    def read() -> bytes:
        try:
            return open_path(path).read_bytes()
        except OSError as error:
            reason = error.strerror or str(error)
            raise BrokenVideoError(path, reason, is_remote(path)) from error
        except Exception as error:
            if (why := storage_reason(error)) is None:
                raise
            raise BrokenVideoError(path, why, transient=True) from error

    try:
        return with_back_off(read, retries, delay)
    except BrokenVideoError as error:
        raise UserError(f"cannot read {path}: {error.reason}; check the path") from error


def load_manifest(path: str) -> list[ClipRecord]:
    """The clips of a manifest; relative paths are taken from the manifest's folder.

    Raises:
        UserError: unreadable, empty, rows without path, malformed times, or the same clip twice.
    """
    suffix = epath.Path(path).suffix.lower()
    _check_size(path)
    data = read_bytes(path)
    try:
        if suffix == ".json" and b'"annotations"' in data and b'"images"' in data:
            return _coco_records(_parsed(data, "it"), path)
        records = list(_table_records(_READERS[suffix](data), path))
    except ValueError as error:
        raise UserError(f"{path} is not a valid {suffix} manifest: {short(str(error))}") from error
    if not records:
        raise UserError(f"{path} lists no clip; expected rows with the keys path and caption")
    return records


def _table_records(rows: Iterator[Json], path: str) -> Iterator[ClipRecord]:
    """The clips of a table, checked row by row: nothing of a refused table is held."""
    folder, repeats, size = epath.Path(path).parent, _Repeats(path), 0
    for number, row in enumerate(rows, start=1):
        record = _record(row, number, path, folder)
        repeats.refuse(record)
        size += len(record.caption or "") + len(record.path)
        if size > MAX_MANIFEST_BYTES:
            raise ValueError(f"its texts have more than {MAX_MANIFEST_BYTES} characters; split it")
        yield record


_Side = Annotated[int, Field(ge=1, lt=1 << 31)] | None


@dataclasses.dataclass(frozen=True)
class _CocoImage:
    """A picture of COCO's caption annotations."""

    file_name: Annotated[str, Field(min_length=1)]
    id: int | str
    width: _Side = None
    height: _Side = None


@dataclasses.dataclass(frozen=True)
class _CocoCaption:
    """One of the captions of a picture."""

    image_id: int | str
    caption: Annotated[str, Field(max_length=MAX_TEXT_BYTES)] | None = None


@dataclasses.dataclass(frozen=True)
class _Coco:
    """COCO's caption annotations."""

    images: list[_CocoImage]
    annotations: list[_CocoCaption]


def _check_size(path: str) -> None:
    try:
        if is_remote(path):
            return
        check_regular(path)
        size = os.stat(path).st_size
    except BrokenVideoError as error:
        raise UserError(f"cannot read {path}: {error.reason}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    if size > MAX_MANIFEST_BYTES:
        raise UserError(
            f"{path} has {size} bytes, expected at most {MAX_MANIFEST_BYTES}; split the manifest"
        )


def _plain(text: str | None) -> str | None:
    """A text without unpaired surrogates, which cannot be stored: they become U+FFFD."""
    return (
        None if text is None else text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    )


def _coco_records(table: Json, manifest: str) -> list[ClipRecord]:
    """COCO's caption annotations: one clip per image, with the first of its captions.

    Images lie beside the file, or in `../NAME` or `NAME` where the file is captions_NAME.json.
    """
    table = checked(table, _Coco, manifest, "expected COCO's caption annotations")
    captions: dict[str, str | None] = {}
    for entry in table.annotations:
        captions.setdefault(str(entry.image_id), entry.caption)
    folder = epath.Path(manifest).parent
    name = epath.Path(manifest).stem.rpartition("_")[2]
    places = [folder, folder / name, folder.parent / name, folder.parent / "images" / name]
    records, repeats, numbers = [], _Repeats(manifest), set[str]()
    for image in table.images:
        if str(image.id) in numbers:
            raise UserError(f"{manifest} has two images of the id {quoted(image.id)}; fix one")
        numbers.add(str(image.id))
        file = image.file_name
        place = next((p for p in places if (p / file).exists()), folder)
        caption = _plain(captions.get(str(image.id)))
        path = str(place / file)
        record = ClipRecord(file, path, caption, width=image.width, height=image.height)
        repeats.refuse(record)
        records.append(record)
    if not records:
        raise UserError(f"{manifest} lists no image; expected COCO's caption annotations")
    return records


def _parsed(data: bytes | str, where: str) -> Json:
    """`parse_json`. Raises: ValueError, instead of its error."""
    try:
        return parse_json(data, where)
    except UserError as error:
        raise ValueError(str(error)) from error


def _json_rows(data: bytes) -> Iterator[Json]:
    rows = _parsed(data, "it")
    if isinstance(rows, Mapping):
        rows = next((v for v in rows.values() if isinstance(v, list)), None)
    if not isinstance(rows, list):
        raise ValueError("expected a list of objects")
    yield from rows


def _jsonl_rows(data: bytes) -> Iterator[Json]:
    for number, line in enumerate(data.decode("utf-8-sig").split("\n"), start=1):
        if line.strip():
            yield _parsed(line, f"line {number}")


def _csv_rows(data: bytes) -> Iterator[Json]:
    for row in csv_rows(data.decode("utf-8-sig")):
        yield {name: "" if cell in _NO_VALUES else cell for name, cell in row.items()}


# How programs write a missing value, for which CSV has no sign.
_NO_VALUES = {"nan", "NaN", "None", "null", "NULL", "<NA>"}


def _parquet_rows(data: bytes) -> Iterator[Json]:
    # Imported where it is needed: a large library that other manifests do without.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(io.BytesIO(data)) as table:
            # Equal values take no space: a few bytes may stand for any number of rows.
            if table.metadata.num_rows > MAX_ROWS:
                rows = table.metadata.num_rows
                raise ValueError(f"it has {rows} rows, expected at most {MAX_ROWS}")
            names = table.schema_arrow.names
            if repeated := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"it has two columns {quoted(repeated[0])}")
            for batch in table.iter_batches(batch_size=_BATCH):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error


_READERS: dict[str, Callable[[bytes], Iterator[Json]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _first(row: Mapping[str, Json], names: tuple[str, ...]) -> Json:
    for name in names:
        value = row.get(name)
        if isinstance(value, list | tuple):  # Several captions: the first, as COCO's.
            value = next((item for item in value if not _absent(item)), None)
        if not _absent(value):
            return value
    return None


def _absent(value: Json) -> bool:
    """Whether a cell is empty; tables say so by NaN, too."""
    blank = isinstance(value, str) and not value.strip()
    return value is None or blank or (isinstance(value, float) and math.isnan(value))


def _text(row: Mapping[str, Json], names: tuple[str, ...], where: str) -> str | None:
    """A cell that is text, or a number that names something."""
    value = _first(row, names)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where}: {names[0]} is {quoted(value)}, expected text")
    text = str(value)
    if len(text) > MAX_TEXT_BYTES:
        raise UserError(
            f"{where}: {names[0]} has {len(text)} characters, expected at most {MAX_TEXT_BYTES}"
        )
    return _plain(text)


def _record(row: Json, number: int, manifest: str, folder: epath.Path) -> ClipRecord:
    where = f"row {number} of {manifest}"
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is not an object with the keys path and caption: {quoted(row)}")
    file, caption = _file_and_caption(row, where)
    if file is None:
        keys = short(", ".join(map(str, row)), 200) or "none"
        raise UserError(f"{where} has no key path (its keys: {keys}); add the video's path")
    # What a table cannot know is measured: rates of a clock, and 0 or -1 for a missing number.
    fps = _known(_number(row, _FPS, where), _RATES)
    start, end = _number(row, _START, where), _number(row, _END, where)
    first, last = (_number(row, (name,), where) for name in ("start_frame", "end_frame"))
    if start is None and end is None and (first, last) != (None, None):
        # The whole video in place of a span would be shown under the span's caption.
        if not fps:
            raise UserError(f"{where} has start_frame or end_frame, but no fps; add it")
        start = None if first is None else first / fps
        end = None if last is None else last / fps
    if (start or 0.0) < 0 or (end is not None and end <= (start or 0.0)):
        raise UserError(f"{where}: start {start} and end {end} are no span of time; fix the row")
    width, height = _side(row, _WIDTH, where), _side(row, _HEIGHT, where)
    path = file if "://" in file or file.startswith("/") else str(folder / file)
    seconds = _known(_number(row, _SECONDS, where), (0.0, math.inf))
    return ClipRecord(
        id=_text(row, ("id",), where) or _default_id(file, start, end),
        path=path,
        caption=caption,
        start=start,
        end=end,
        width=width,
        height=height,
        seconds=seconds,
        fps=fps,
    )


def _known(number: float | None, span: tuple[float, float]) -> float | None:
    """A number above the span's first and up to its last; None for others."""
    return number if number is not None and span[0] < number <= span[1] else None


def _side(row: Mapping[str, Json], names: tuple[str, ...], where: str) -> int | None:
    """Pixels of a side; None for 0 and less. Raises: UserError, for more than any picture has."""
    pixels = _number(row, names, where)
    if pixels is None or pixels < 1:
        return None
    if pixels > _MOST_PIXELS:
        raise UserError(f"{where}: {names[0]} is {pixels:g}, expected at most {_MOST_PIXELS}")
    return int(pixels)


def _file_and_caption(row: Mapping[str, Json], where: str) -> tuple[str | None, str | None]:
    number, page = _text(row, ("videoid",), where), _text(row, ("page_dir",), where)
    if number is not None:  # WebVid: `name` is the caption, the file follows from two columns.
        web = f"{page}/{number}.mp4" if page else f"{number}.mp4"
        return web, _text(row, ("name", *_CAPTION), where)
    file = _text(row, _PATH, where)
    if file is not None and "clip_id" in row and "." not in file.rsplit("/", 1)[-1]:
        file = f"{file}.mp4"
    return file, _text(row, _CAPTION, where)


def _default_id(file: str, start: float | None, end: float | None) -> str:
    return file if start is None and end is None else f"{file}@{start or 0:g}-{end or 'end'}"


_ISO = re.compile(r"PT(?=\d)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d*)?)S)?")
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")


def _number(row: Mapping[str, Json], names: tuple[str, ...], where: str) -> float | None:
    """A number of seconds or pixels: plain, as hours:minutes:seconds, or ISO 8601 (PT1M2S)."""
    value = _first(row, names)
    if value is None:
        return None
    text = str(value).strip()
    match = _ISO.fullmatch(text) or _CLOCK.fullmatch(text)
    try:
        if "_" in text:  # Python takes 1_5 for 15.
            raise ValueError
        if match:
            hours, minutes, seconds = (float(part or 0) for part in match.groups())
            number = 3600 * hours + 60 * minutes + seconds
        else:
            number = float(text)
    except ValueError as error:
        raise UserError(f"{where}: {names[0]} is {quoted(value)}, expected a number") from error
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise UserError(f"{where}: {names[0]} is {quoted(value)}, expected a finite number")
    return number


class _Repeats:
    """Which clips a manifest has named so far."""

    def __init__(self, manifest: str) -> None:
        self._manifest, self._seen, self._rows = manifest, dict[tuple, int](), 0

    def refuse(self, record: ClipRecord) -> None:
        """Take the next row. Raises: UserError, where it repeats an id or a clip."""
        self._rows += 1
        for key in (("id", record.id), ("clip", record.path, record.start, record.end)):
            if key in self._seen:
                raise UserError(
                    f"rows {self._seen[key]} and {self._rows} of {self._manifest} are the same "
                    f"clip ({short(record.path)}); remove one, or give them different start and end"
                )
            self._seen[key] = self._rows
