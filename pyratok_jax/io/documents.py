"""JSON documents and lists of lines from outside: bounded in size and depth, checked by a schema.

Every refusal is a `UserError` of one line that names the file, the field, what was found and what
is expected. Schemas are dataclasses or any other type that pydantic checks.
"""

import contextlib
import csv
import dataclasses
import glob
import io
import json
import math
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from pyratok_jax.errors import UserError, quoted, short
from pyratok_jax.io import Json
from pyratok_jax.io.remote import AnyPath, is_remote, open_path

MAX_DOCUMENT_BYTES = 256 << 20
MAX_ARRAYS_BYTES = 1 << 30
MAX_DEPTH = 100
# Of a network, by `check_sizes`.
_MOST_WIDTH, _MOST_LAYERS, _COUNTS = 1 << 20, 128, ("layers", "blocks", "depth")
# What reading a value of the wrong type or size raises in code that takes it for granted.
WRONG_VALUE = (
    ValueError, TypeError, KeyError, AttributeError, IndexError, ZeroDivisionError, OverflowError,
)  # fmt: skip
BROKEN_ZIP = (
    OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError,
    MemoryError, SyntaxError, struct.error,
)  # fmt: skip


def read_limited(path: str | os.PathLike, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
    """The bytes of a regular file, local or remote.

    Raises:
        UserError: it cannot be read, is a pipe, device or folder, or has more than `max_bytes`.
    """
    file = open_path(path)
    try:
        if not is_remote(path) and not stat.S_ISREG(os.stat(file).st_mode):
            raise UserError(f"{path} is no regular file; name one")
        size = file.stat().length
        if size > max_bytes:
            raise UserError(f"{path} has {size} bytes, expected at most {max_bytes}")
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def read_text(path: str | os.PathLike, max_bytes: int = MAX_DOCUMENT_BYTES) -> str:
    """A UTF-8 file, without a byte order mark.

    Raises:
        UserError: as `read_limited`, or no UTF-8.
    """
    try:
        return read_limited(path, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from error


def read_lines(path: str | os.PathLike) -> list[str]:
    """The lines of a UTF-8 file, stripped, without empty ones; a line ends at a line feed alone.

    Raises:
        UserError: as `read_text`.
    """
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def csv_rows(text: str) -> Iterator[dict[str, str]]:
    """The rows of a table of comma-separated values under the names in its first line.

    Missing cells at a row's end are left out, as are empty lines.

    Raises:
        ValueError: two columns of one name, more cells than columns, or a quotation mark that is
            never closed, which would make the rest of the file one cell.
    """
    csv.field_size_limit(1 << 24)
    try:
        rows = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
        header = [name.strip() for name in next(rows, [])]
        if repeated := [name for name in header if header.count(name) > 1]:
            raise ValueError(f"it has two columns {quoted(repeated[0])}")
        for cells in rows:
            if len(cells) > len(header):
                found = f"{len(cells)} cells for {len(header)} columns"
                raise ValueError(f"line {rows.line_num} has {found}; quote cells with commas")
            if cells:
                yield dict(zip(header, cells, strict=False))
    except csv.Error as error:
        raise ValueError(str(error)) from error


def with_suffix_of(folder: Path, stem: str, suffixes: Sequence[str]) -> Path | None:
    """The file STEM with one of `suffixes` (lower case) in a folder, however its case is written.

    None where there is none; a file whose suffix is written as given comes first.
    """
    for suffix in suffixes:
        if (path := folder / f"{stem}{suffix}").is_file():
            return path
    wanted = {suffix for suffix in suffixes if suffix}
    for path in sorted(folder.glob(f"{glob.escape(stem)}.*")):
        if path.suffix.lower() in wanted and path.stem == stem and path.is_file():
            return path
    return None


def parse_json(data: bytes | str, where: str) -> Any:
    """Plain values of a JSON text of at most `MAX_DEPTH` nested lists and objects.

    Args:
        data: UTF-8, with or without a byte order mark.
        where: what is read, for messages.

    Raises:
        UserError: no JSON, an object with two values of one key, or nested deeper.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        value = json.loads(text, object_pairs_hook=_object)
        level = [value]
        for _ in range(MAX_DEPTH + 1):
            level = [item for node in level for item in _children(node)]
            if not level:
                return value
    except RecursionError:
        pass
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    raise UserError(f"{where} nests lists and objects deeper than {MAX_DEPTH}; it is no such file")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Json]:
    """An object of JSON, of whose repeated keys Python would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has two values of the key {quoted(repeated)}")
    return found


def _children(node: Any) -> list[Any]:
    """The lists and objects directly in a value."""
    items = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [item for item in items if isinstance(item, dict | list)]


@cache
def _adapter(schema: Any) -> TypeAdapter:
    return TypeAdapter(schema)


def checked(value: Any, schema: Any, where: str, advice: str = "") -> Any:
    """A plain value as an instance of `schema`; keys that a dataclass does not have are ignored.

    Args:
        value: of JSON.
        schema: a dataclass, or another type that pydantic knows.
        where: what is read, for messages.
        advice: what to do about a refusal.

    Raises:
        UserError: naming the field, what was found and what is expected.
    """
    try:
        return _adapter(schema).validate_python(value)
    except ValidationError as error:
        raise _refusal(error, where, advice) from error


def _refusal(error: ValidationError, where: str, advice: str) -> UserError:
    """What pydantic found first, in one line."""
    first = error.errors(include_url=False)[0]
    field = short(".".join(map(str, first["loc"])), 100) or "its content"
    found = "" if first["type"] == "missing" else f" (found {quoted(first['input'])})"
    message = f"{where}: {field}: {short(first['msg'])}{found}"
    return UserError(f"{message}; {advice}" if advice else message)


def check_types(values: Any, config: type, where: str, advice: str = "") -> None:
    """Refuse stored settings whose values are not of the types of a dataclass's fields.

    Nothing is converted, so that "no" is not taken for true. Keys that are no fields are ignored,
    as are fields of a type that pydantic does not know.

    Args:
        values: of JSON.
        config: the dataclass.
        where: the file and the place in it, for messages.
        advice: what to do about a refusal.

    Raises:
        UserError: naming the field.
    """
    values = checked(values, dict[str, Json], where, advice)
    for name, kind in get_type_hints(config).items():
        if name not in values:
            continue
        try:
            adapter = _adapter(kind)
        except PydanticSchemaGenerationError:
            continue
        try:
            adapter.validate_json(json.dumps(values[name]), strict=True)
        except ValidationError as error:
            raise _refusal(error, f"{where}: {name}", advice) from error


def check_sizes(config: Any, where: str, advice: str = "") -> Any:
    """A dataclass of a network's sizes with every value of its field's type and a possible size.

    Args:
        config: built from values of a file.
        where: the file, for messages.
        advice: what to do about a refusal.

    Raises:
        UserError: naming the field.
    """
    values = dataclasses.asdict(config)
    sizes = checked(values, type(config), where, advice)
    for name, value in dataclasses.asdict(sizes).items():
        items = value if isinstance(value, tuple | list) else (value,)
        most = _MOST_LAYERS if any(word in name for word in _COUNTS) else _MOST_WIDTH
        wrong: list[float] = [x for x in items if isinstance(x, int) and not -1 <= x <= most]
        wrong += [x for x in items if isinstance(x, float) and not math.isfinite(x)]
        if wrong or len(items) > _MOST_WIDTH:
            found = quoted(wrong[0]) if wrong else f"{len(items)} values"
            message = f"{where}: {name}: found {found}, expected at most {most}"
            raise UserError(f"{message}; {advice}" if advice else message)
    return sizes


def read_json(
    path: str | os.PathLike,
    schema: Any = object,
    *,
    max_bytes: int = MAX_DOCUMENT_BYTES,
    advice: str = "",
) -> Any:
    """A JSON file as an instance of `schema`, see `checked`; plain values without one.

    Raises:
        UserError: unreadable, no JSON, too large or deep, or not of the schema.
    """
    try:
        value = parse_json(read_limited(path, max_bytes), os.fspath(path))
    except UserError as error:
        raise (UserError(f"{error}; {advice}") if advice else error) from error
    return value if schema is object else checked(value, schema, os.fspath(path), advice)


def read_description(folder: AnyPath, name: str, form: str, what: str) -> dict[str, Json]:
    """The JSON object in a working folder that says what was trained there.

    Args:
        folder: the working folder.
        name: of the file.
        form: the format that it must name.
        what: was trained, for the message: "tokenizer".

    Raises:
        UserError: there is none, it is not JSON, or it names another format.
    """
    path = folder / name
    if not path.exists():
        raise UserError(f"{folder} has no {name}: it holds no {what}")
    values = read_json(path, advice="restore it from a copy")
    if not isinstance(values, dict) or values.get("format") != form:
        found = type(values).__name__
        if isinstance(values, dict):
            found = short(str(values.get("format")), 60)
        raise UserError(f"{path} is of format {found}, expected {form}")
    return values


def read_npz(
    path: str | os.PathLike, *, max_bytes: int = MAX_ARRAYS_BYTES, advice: str = ""
) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name; pickled objects are not loaded.

    Raises:
        UserError: unreadable, damaged, or with objects that are no arrays of numbers or text.
    """
    data = read_limited(path, max_bytes)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > max_bytes:
            raise ValueError(f"its arrays have {size} bytes, expected at most {max_bytes}")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (*WRONG_VALUE, *BROKEN_ZIP) as error:
        reason = short(str(error)) or type(error).__name__
        message = f"{path} is no readable npz file ({reason})"
        raise UserError(f"{message}; {advice}" if advice else message) from error


@contextlib.contextmanager
def refusing(where: str, advice: str = "") -> Iterator[None]:
    """Turn what values of a wrong type or size raise into a `UserError`.

    For the few lines that build an object from stored settings: in a larger block it would pass
    off a defect as a mistake of the user.
    """
    try:
        yield
    except WRONG_VALUE as error:
        reason = f"no {error.args[0]}" if type(error) is KeyError and error.args else str(error)
        message = f"{where}: {short(reason) or type(error).__name__}"
        raise UserError(f"{message}; {advice}" if advice else message) from error
