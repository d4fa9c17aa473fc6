"""Documents from outside: a result, or one line that names file, field, finding and expectation."""

import dataclasses
import os

import numpy as np
import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.io.documents import read_json, read_lines, read_npz, refusing


@dataclasses.dataclass
class Sizes:
    width: int
    names: list[str]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "deeper than"),
        ("[" * 200 + "]" * 200, "deeper than"),
        ('{"width": 3', "is not JSON"),
        ("[1]", "its content"),
        ('{"width": "wide", "names": []}', "width: .*integer.* .found 'wide'"),
        ('{"width": 3, "names": ["a", 4]}', "names.1: .*string.* .found 4"),
        ('{"width": 3}', "names: Field required"),
    ],
)
def test_damaged_documents_are_refused_by_field(tmp_path, text, message):
    path = tmp_path / "sizes.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_json(path, Sizes, advice="do this")
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000


def test_documents_of_the_schema_are_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"width": 3, "names": ["x"], "more": 1}')
    assert read_json(tmp_path / "a.json", Sizes) == Sizes(3, ["x"])
    assert read_json(tmp_path / "a.json")["more"] == 1


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="no regular file"):
        read_json(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="no regular file"):
        read_json(tmp_path)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="at most"):
        read_json(tmp_path / "large.json")


def test_lines_end_at_line_feeds_alone(tmp_path):
    (tmp_path / "list.txt").write_bytes("\ufeffa\u2028b\x0cc\r\n\nd\n".encode())
    assert read_lines(tmp_path / "list.txt") == ["a\u2028b\x0cc", "d"]


def test_settings_that_do_not_go_together_are_one_line():
    with pytest.raises(UserError, match="x.json: no width; do this"), refusing("x.json", "do this"):
        {}["width"]
    with pytest.raises(RuntimeError), refusing("x.json"):
        raise RuntimeError("a defect")


def test_damaged_arrays_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.arange(50), b=np.ones((2, 3)))
    assert read_npz(path)["b"].shape == (2, 3)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(data[: int(rng.integers(1, len(data) + 1))])
        for place in rng.integers(0, len(broken), 2):
            broken[place] = rng.integers(256)
        path.write_bytes(broken)
        try:
            read_npz(path)
        except UserError as error:
            assert "a.npz" in str(error) and "\n" not in str(error)
    np.savez(path, a=np.array([object()]))
    with pytest.raises(UserError, match="no readable npz file .Object arrays.*; do this"):
        read_npz(path, advice="do this")
    np.savez_compressed(path, a=np.zeros(1 << 20, np.uint8))
    with pytest.raises(UserError, match="expected at most 100000"):
        read_npz(path, max_bytes=100_000)
