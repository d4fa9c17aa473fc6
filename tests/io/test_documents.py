"""Documents from outside: a result, or one line that names file, field, finding and expectation."""

import dataclasses
import os

import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.io.documents import read_json, read_lines, refusing


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
