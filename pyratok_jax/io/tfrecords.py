"""TFRecord files, read by position, also where some of their lengths are damaged."""

import struct
from typing import BinaryIO

import numpy as np
from etils import epath

_LENGTH = struct.Struct("<Q")
_HEADER = struct.Struct("<QI")
_HEAD, _FOOT = 12, 4  # 8 bytes length and 4 bytes checksum before a record, 4 bytes after it.
_SCAN = 1 << 20  # Bytes that are searched for a header at a time.
_MASK = 0xA282EAD8


class TFRecordFile:
    """One TFRecord file, made seekable by one pass over its record lengths.

    Where a length does not match its checksum, the next header that matches is searched: the
    record is read if either of the two is right, and else it alone is lost. `damaged` is where the
    file was cut off, in bytes, or None; only with `tolerant` it may be.

    Raises:
        ValueError: it is cut off, and `tolerant` was not asked for; or it is compressed.
    """

    def __init__(self, file: str, tolerant: bool = False) -> None:
        self._file = epath.Path(file)
        # The offset and length of each record's bytes; a length of -1 is an unknown one.
        self._spans: list[tuple[int, int]] = []
        self.damaged: int | None = None
        size, position = self._file.stat().length, 0
        with self._file.open("rb") as stream:
            while position < size:
                length, following = _record_at(stream, position, size)
                if following is None:
                    self.damaged = position
                    break
                self._spans.append((position + _HEAD, length))
                position = following
        if self.damaged is not None and not tolerant:
            raise ValueError("it is cut off")

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, number: int) -> bytes:
        """The bytes of a record. Raises: ValueError, where its length is damaged."""
        offset, length = self._spans[number]
        if length < 0:
            raise ValueError(f"the length at byte {offset - _HEAD} does not match its checksum")
        with self._file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)


def _record_at(stream: BinaryIO, position: int, size: int) -> tuple[int, int | None]:
    """The length of a TFRecord record, -1 where it is unknown, and where the next one begins.

    The latter is None where the file was cut off.
    """
    stream.seek(position)
    head = stream.read(_HEAD)
    if not position and head[:2] == b"\x1f\x8b":
        raise ValueError("it is compressed; write it without compression")
    if len(head) < _HEAD:
        return -1, None
    length, checksum = _HEADER.unpack(head)
    if _masked_crc32c(head) == checksum:
        following = position + _HEAD + length + _FOOT
        return length, following if following <= size else None
    begins = _next_record(stream, position, size)
    between = (size if begins is None else begins) - position - _HEAD - _FOOT
    if between >= 0 and (between == length or _masked_crc32c(_LENGTH.pack(between)) == checksum):
        return between, position + _HEAD + between + _FOOT
    return -1, begins


def _next_record(stream: BinaryIO, position: int, size: int) -> int | None:
    """Where the next record after a damaged one begins: its header and the one behind it are whole.

    None where there is none.
    """
    begin = position + _HEAD + _FOOT
    while begin + _HEAD <= size:
        stream.seek(begin)
        block = np.frombuffer(stream.read(_SCAN + _HEAD - 1), np.uint8)
        lengths = _header_lengths(block, size - begin)
        for offset in np.flatnonzero(lengths >= 0).tolist():
            start = begin + offset
            behind = start + _HEAD + int(lengths[offset]) + _FOOT
            stream.seek(behind)
            head = stream.read(_HEAD)
            if behind == size or (
                len(head) == _HEAD and _masked_crc32c(head) == _HEADER.unpack(head)[1]
            ):
                return start
        begin += _SCAN
    return None


def _header_lengths(block: np.ndarray, room: int) -> np.ndarray:
    """The record length in the header at each offset of a block, -1 where there is no header.

    Args:
        block: uint8 (n,) of a TFRecord file.
        room: bytes of the file from the block's first one on.

    Returns:
        int64 (n - 11,): a header's length fits the file and matches its masked CRC-32C.
    """
    offsets = np.arange(max(len(block) - _HEAD + 1, 0), dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(block, _HEAD)
    values = np.ascontiguousarray(windows[:, :8]).view("<u8")[:, 0]
    left = room - offsets - _HEAD - _FOOT
    places = offsets[(left >= 0) & (values <= np.maximum(left, 0).astype(np.uint64))]
    rows = windows[places]
    stored = np.ascontiguousarray(rows[:, 8:]).view("<u4")[:, 0]
    crc = _crc32c(rows[:, :8].T)
    masked = (crc >> np.uint32(15) | crc << np.uint32(17)) + np.uint32(_MASK)
    places = places[masked == stored]
    lengths = np.full(len(offsets), -1, np.int64)
    lengths[places] = values[places].astype(np.int64)
    return lengths


def _table_of_crc32c() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC = _table_of_crc32c()
_CRC_ARRAY = np.array(_CRC, np.uint32)


def _masked_crc32c(head: bytes) -> int:
    """The checksum of the first 8 bytes, as TFRecord headers hold it.

    https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
    """
    crc = 0xFFFFFFFF
    for byte in head[:8]:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def _crc32c(columns: np.ndarray) -> np.ndarray:
    """CRC-32C of each column, uint8 (bytes, n) to uint32 (n,)."""
    crc = np.full(columns.shape[1], 0xFFFFFFFF, np.uint32)
    for byte in columns:
        crc = _CRC_ARRAY[(crc ^ byte) & np.uint32(0xFF)] ^ crc >> np.uint32(8)
    return crc ^ np.uint32(0xFFFFFFFF)
