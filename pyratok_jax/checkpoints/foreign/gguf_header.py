"""The facts in the header of a GGUF file.

The gguf package makes several NumPy arrays for every entry of a list: 20 seconds for the tokens of
a large vocabulary. Here a list is one object, unpacked when it is asked for.
"""

import struct
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType

_NUMBERS = {
    GGUFValueType.UINT8: "u1", GGUFValueType.INT8: "i1", GGUFValueType.UINT16: "u2",
    GGUFValueType.INT16: "i2", GGUFValueType.UINT32: "u4", GGUFValueType.INT32: "i4",
    GGUFValueType.FLOAT32: "f4", GGUFValueType.BOOL: "?", GGUFValueType.UINT64: "u8",
    GGUFValueType.INT64: "i8", GGUFValueType.FLOAT64: "f8",
}  # fmt: skip


class HeaderReader(gguf.GGUFReader):
    """Reads lists of texts and numbers whole; of little-endian files (`sources.check_header`)."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list, list, list]:
        """(bytes, parts, indices of those that are the value, types) of the value at an offset."""
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        number, count = struct.unpack_from("<IQ", self.data.data, orig_offs)
        inner, begin = GGUFValueType(number), orig_offs + 12
        values: np.ndarray | list[bytes]
        if inner in _NUMBERS:
            values = np.frombuffer(self.data, np.dtype(_NUMBERS[inner]), count, begin)
            size = values.nbytes
        elif inner == GGUFValueType.STRING:
            values, size = _texts(self.data, begin, count)
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        return 12 + size, [values], [0], [GGUFValueType.ARRAY, inner]


def _texts(data: np.ndarray, begin: int, count: int) -> tuple[list[bytes], int]:
    """Texts, each after its length, and the bytes that they take together."""
    view, at, texts = data.data, begin, []
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", view, at)
        at += 8 + length
        texts.append(bytes(view[at - length : at]))
    return texts, at - begin


class Facts(dict):
    """Key-value facts of a GGUF file, unpacked on first use."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)

    def __getitem__(self, key: str) -> Any:
        """Raises: ValueError for a text that is not UTF-8."""
        field = super().__getitem__(key)
        if field.types[:1] != [GGUFValueType.ARRAY]:
            return field.contents()
        values = field.parts[field.data[0]]
        if isinstance(values, list):
            return [text.decode() for text in values]
        return values.tolist()

    def get(self, key: str, default: Any = None) -> Any:
        """The unpacked value, or `default`."""
        try:
            return self[key]
        except KeyError:
            return default
