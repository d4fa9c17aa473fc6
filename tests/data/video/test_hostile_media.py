"""Media from anywhere: shown as a player shows it, or refused; nothing else is opened."""

import contextlib
import io
import json
import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from pyratok_jax.data.sources.payloads import clip_frames, clip_payload
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.data.video import opening
from pyratok_jax.data.video.files import (
    BrokenVideoError,
    iter_frames,
    probe,
    read_clip,
    read_image,
)  # fmt: skip
from pyratok_jax.errors import UserError
from tests.data.synthetic import numbered_frames


def write(path, *, count=12, aspect=None, turned=0, fmt="mp4", metadata=None, frames=None):
    with av.open(str(path), "w", format=fmt) as out:
        out.metadata.update(metadata or {})
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"crf": "5", "g": "4", "bf": "0"}
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if turned:
            stream.set_display_rotation(turned)
        for frame in numbered_frames(count, 48, 64) if frames is None else frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        out.mux(stream.encode())
    return path


def corner(count=12):
    """Dark frames with a bright upper left corner."""
    frames = np.zeros((count, 48, 64, 3), np.uint8)
    frames[:, :16, :16] = 255
    return frames


@pytest.mark.parametrize(
    ("turned", "row", "column"), [(90, -8, 8), (-90, 8, -8), (180, -8, -8)]
)  # fmt: skip
def test_every_reader_shows_turned_videos_upright(tmp_path, turned, row, column):
    path = write(tmp_path / "phone.mp4", turned=turned, frames=corner())
    shape = (64, 48, 3) if turned % 180 else (48, 64, 3)
    info = probe(path)
    assert (info.height, info.width) == shape[:2]
    clip = ClipRecord("a", str(path), None, start=0.08, end=0.4)
    small = (shape[0] // 2, shape[1] // 2)
    readers = [
        next(iter_frames(path)), next(clip_frames(clip)), read_clip(path, start=0, frames=1)[0],
        read_clip(path, start=0.1, frames=1, size=shape[:2])[0],
    ]  # fmt: skip
    for frame in readers:
        assert frame.shape == shape and frame[row, column].min() > 200
        assert frame[-row, -column].max() < 60
    assert read_clip(path, start=0, frames=1, size=small).shape == (1, *small, 3)
    stored = clip_payload(clip, shape[:2], "bytes", 0, 12, 90).media[0]
    frame = next(iter_frames(stored))
    assert frame.shape == shape and frame[row, column].min() > 200


def test_pixels_are_square(tmp_path):
    path = write(tmp_path / "wide.mp4", aspect=Fraction(2, 1))
    assert (probe(path).height, probe(path).width) == (48, 128)
    assert next(iter_frames(path)).shape == (48, 128, 3)
    assert read_clip(path, start=0, frames=1).shape == (1, 48, 128, 3)


def test_pictures_are_turned_by_their_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(corner(1)[0]).save(tmp_path / "a.jpg", exif=exif)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (64, 48, 3) and image[8, -8].min() > 200


def test_nothing_but_the_file_is_opened(tmp_path, monkeypatch):
    write(tmp_path / "secret.mp4")
    script = f"ffconcat version 1.0\nfile '{tmp_path}/secret.mp4'\n"
    session = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    playlist = f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n"
    for text in (script, session, playlist):
        (tmp_path / "x.mp4").write_text(text)
        for source in (tmp_path / "x.mp4", text.encode()):
            with pytest.raises(BrokenVideoError):
                probe(source)
    addresses = (
        "http:x.mp4", "tcp://127.0.0.1:9?listen", "http://127.0.0.1:9/a.mp4", "concat:secret.mp4",
        "file:secret.mp4", "pipe:0", "rtp://127.0.0.1:9",
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for address in addresses:
        with pytest.raises(BrokenVideoError):
            probe(address)


def test_a_colon_in_a_relative_name_is_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.rename(write(tmp_path / "a.mp4"), "http:a.mp4")
    assert probe("http:a.mp4").frames == 12


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.mp4").mkdir()
    for name in ("pipe.mp4", "pipe.png", "folder.mp4", "a\0b.mp4"):
        with pytest.raises(BrokenVideoError):
            probe(tmp_path / name)
    with pytest.raises(BrokenVideoError, match="not a regular file"):
        probe("/dev/zero")


def test_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "MAX_PIXELS", 1000)
    Image.new("L", (100, 100)).save(tmp_path / "big.png")
    with pytest.raises(BrokenVideoError, match="more than 1000"):
        read_image(tmp_path / "big.png")
    with pytest.raises(BrokenVideoError, match="more than 1000 pixels"):
        probe(write(tmp_path / "big.mp4"))


def test_pictures_that_start_programs_or_are_too_large_are_refused(tmp_path, monkeypatch):
    Image.fromarray(corner(1)[0]).save(tmp_path / "a.eps")
    os.rename(tmp_path / "a.eps", tmp_path / "a.png")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: pytest.fail("started"))
    with pytest.raises(BrokenVideoError, match="not an image"):
        read_image(tmp_path / "a.png")
    with (tmp_path / "b.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BrokenVideoError, match="it is no picture"):
        read_image(tmp_path / "b.png")
    with pytest.raises(BrokenVideoError, match="are more than 2000000000"):
        clip_payload(ClipRecord("b", str(tmp_path / "b.png")), (1, 1), "bytes", 0, 12, 90)


def test_a_turn_of_the_coded_pictures_alone_is_refused(tmp_path):
    from av.bitstream import BitStreamFilterContext

    write(tmp_path / "plain.mp4", frames=corner())
    for angle, path in ((90, tmp_path / "quarter.mp4"), (180, tmp_path / "half.mp4")):
        with av.open(str(tmp_path / "plain.mp4")) as source, av.open(str(path), "w") as out:
            stream = source.streams.video[0]
            copy = out.add_stream_from_template(stream)
            turn = BitStreamFilterContext(
                f"h264_metadata=display_orientation=insert:rotate={angle}", stream
            )
            for packet in [*source.demux(stream)][:-1]:
                for turned in turn.filter(packet):
                    turned.stream = copy
                    out.mux(turned)
    for read in (lambda p: next(iter_frames(p)), lambda p: read_clip(p, start=0, frames=1)):
        with pytest.raises(BrokenVideoError, match="rotation is stated in its coded pictures"):
            read(tmp_path / "quarter.mp4")
        read(tmp_path / "half.mp4")
    assert next(iter_frames(tmp_path / "half.mp4"))[-8, -8].min() > 200


def test_damaged_pictures_are_broken_not_crashes():
    data = io.BytesIO()
    Image.fromarray(corner(1)[0]).save(data, "PNG")
    whole, rng = data.getvalue(), np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(whole)
        for place in rng.integers(8, len(whole), 3):
            broken[place] = rng.integers(256)
        with contextlib.suppress(BrokenVideoError):
            read_image(bytes(broken))
    header = struct.pack(">IIBBBBB", 1 << 30, 1 << 30, 8, 2, 0, 0, 0)
    with pytest.raises(BrokenVideoError):
        read_image(whole[:16] + header + whole[29:])


def test_a_title_that_is_not_utf8_does_not_matter(tmp_path):
    path = write(tmp_path / "a.mp4", metadata={"title": "TITLE"})
    data = path.read_bytes()
    assert b"TITLE" in data
    assert probe(data.replace(b"TITLE", b"T\xe9T\xffE")).frames == 12


def test_a_missing_duration_is_measured(tmp_path):
    class Pipe(io.RawIOBase):
        data = b""

        def write(self, part):
            self.data += bytes(part)
            return len(part)

        def writable(self):
            return True

    pipe = Pipe()
    with av.open(pipe, "w", format="matroska") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in numbered_frames(12, 48, 64):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        out.mux(stream.encode())
    info = probe(pipe.data)
    assert info.frames == 12 and info.seconds == pytest.approx(0.48, abs=0.02)


def test_manifest_cells_and_lines(tmp_path):
    rows = [
        {"path": "a.mp4", "caption": "one\u2028line\u0085still", "start": float("nan"), "id": 0},
        {"path": "b.mp4", "caption": ["first", "second"]},
        {"path": "c.mp4", "caption": float("nan")},
        {"path": "d.mp4", "caption": "half \ud83d"},
    ]
    text = "\r\n".join(json.dumps(r, ensure_ascii="half" in str(r)) for r in rows)
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode("utf-8", "surrogatepass"))
    records = load_source(str(tmp_path / "m.jsonl"))
    assert [r.caption for r in records][:3] == ["one\u2028line\u0085still", "first", None]
    assert records[0].id == "0" and records[0].start is None
    assert records[3].caption.encode().startswith(b"half ")
    for cell in ({"bytes": None, "path": "x"}, True):
        (tmp_path / "m.json").write_text(json.dumps([{"path": cell}]))
        with pytest.raises(UserError, match="row 1 of .*expected text"):
            load_source(str(tmp_path / "m.json"))


def test_numbers_that_a_table_cannot_know_are_measured(tmp_path):
    row = {"path": "a.mp4", "width": -1, "height": 0, "fps": 1000, "seconds": -1}
    (tmp_path / "m.json").write_text(json.dumps([row]))
    record = load_source(str(tmp_path / "m.json"))[0]
    assert (record.width, record.height, record.fps, record.seconds) == (None,) * 4
    for row in ({"width": 1e30}, {"caption": "x" * (2 << 20)}):
        (tmp_path / "m.json").write_text(json.dumps([{"path": "a.mp4"} | row]))
        with pytest.raises(UserError, match="row 1 of .*expected at most 1048576"):
            load_source(str(tmp_path / "m.json"))


def test_brackets_links_and_sidecars(tmp_path):
    Image.fromarray(corner(1)[0]).save(tmp_path / "a [1].png")
    assert len(load_source(str(tmp_path / "a [1].png"))) == 1
    (tmp_path / "a [1].txt").write_bytes(b"\xef\xbb\xbfcaption")
    (tmp_path / "loop").symlink_to(tmp_path)
    records = load_source(str(tmp_path))
    assert [r.caption for r in records] == ["caption"]
    (tmp_path / "a [1].txt").unlink()
    os.mkfifo(tmp_path / "a [1].txt")
    with pytest.raises(UserError, match="not a regular file"):
        load_source(str(tmp_path))


CSV = "path,caption,start\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", CSV + "a.mp4,a cat, and a dog,0\n", "line 2 has 4 cells for 3 columns"),
        ("m.csv", CSV + 'a.mp4,"a cat\nb.mp4,a dog\n', "unexpected end of data"),
        ("m.csv", "path,caption,caption\na.mp4,x,y\n", "two columns 'caption'"),
        ("m.csv", CSV + "a.mp4,x,PT1.2.3S\n", "row 1 .*expected a number"),
        ("m.csv", CSV + "a.mp4,x,PT\n", "row 1 .*expected a number"),
        ("m.csv", CSV + f"a.mp4,x,{'9' * 400}:00:00\n", "expected a finite number"),
        ("m.csv", CSV + "a.mp4,x,1_0\n", "expected a number"),
        ("m.json", '[{"path": "a.mp4", "start_frame": 3, "end_frame": 9}]', "but no fps"),
        ("m.jsonl", '{"path": "a.mp4", "caption": "x", "caption": "y"}', "two values of the key"),
        (
            "m.json",
            '{"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}],'
            ' "annotations": []}',
            "two images of the id 1",
        ),
        ("a.txt", "a cat".encode("utf-16-be"), "zero bytes"),
    ],
)
def test_tables_and_sidecars_that_would_give_other_captions_are_refused(
    tmp_path, name, text, message
):
    Image.fromarray(corner(1)[0]).save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        load_source(str(tmp_path if name == "a.txt" else tmp_path / name))


@pytest.mark.parametrize("cell", ["nan", "NaN", "None", "null", "<NA>", "", "  "])
def test_cells_that_say_that_there_is_no_caption(tmp_path, cell):
    (tmp_path / "m.csv").write_text(f"path,caption\na.mp4,{cell}\n")
    assert load_source(str(tmp_path / "m.csv"))[0].caption is None


def test_captions_are_found_however_they_are_written(tmp_path):
    for number, (name, text) in enumerate(
        (
            ("0.TXT", b"a cat"),
            ("1.txt", "a cat".encode("utf-16")),
            ("2.Json", b'{"caption": "a cat"}'),
            ("3.json", b'{"caption": [null, "a cat"]}'),
            ("4.json", b'"a cat"'),
        )
    ):
        Image.fromarray(corner(1)[0]).save(tmp_path / f"{number}.png")
        (tmp_path / name).write_bytes(text)
    (tmp_path / "5.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "5.json").write_bytes(b'"half \\ud83d"')
    captions = [r.caption for r in load_source(str(tmp_path))]
    assert captions[:5] == ["a cat"] * 5 and captions[5].encode().startswith(b"half ")
    assert load_source(str(tmp_path / "0.png"))[0].caption == "a cat"
    (tmp_path / "m.csv").write_text('path, caption\n0.png, "a cat, asleep"\n')
    assert load_source(str(tmp_path / "m.csv"))[0].caption == "a cat, asleep"
    coco = {"images": [{"id": 7, "file_name": "0.png"}], "annotations": []}
    coco["annotations"].append({"image_id": "7", "caption": "a cat"})
    (tmp_path / "c.json").write_text(json.dumps(coco))
    assert load_source(str(tmp_path / "c.json"))[0].caption == "a cat"
    rows = [{"path": "0.png", "end_frame": 12, "fps": 24}]
    (tmp_path / "f.json").write_text(json.dumps(rows))
    assert load_source(str(tmp_path / "f.json"))[0].end == 0.5


def test_a_table_that_repeats_one_row_without_end_is_refused_at_once(tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"path": pa.array(["a.mp4"]).take(pa.array([0] * 1_000_000))})
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(UserError, match="rows 1 and 2 .*are the same clip"):
        load_source(str(tmp_path / "m.parquet"))
    monkeypatch.setattr("pyratok_jax.data.sources.manifests.MAX_ROWS", 999_999)
    with pytest.raises(UserError, match="1000000 rows, expected at most 999999"):
        load_source(str(tmp_path / "m.parquet"))


def test_folders_are_nested_to_a_bound(tmp_path):
    (tmp_path / "/".join("d" * 101)).mkdir(parents=True)
    with pytest.raises(UserError, match="deeper than 100"):
        load_source(str(tmp_path))
