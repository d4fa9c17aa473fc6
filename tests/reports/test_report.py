"""The page and its parts: what is shown, that videos hold the right pixels, nothing is lost."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from pyratok_jax.reports import player, tables
from pyratok_jax.reports.curves import curve_svg, rate_chart, rate_distortion_png
from pyratok_jax.reports.report import ReportClip, write_report
from tests.data.synthetic import read_media


def clip(name="talk", t=5, h=24, w=40, caption="a <b>man</b> & a car", **changes):
    rng = np.random.default_rng(0)
    original = rng.integers(0, 256, (1, h // 8, w // 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    original = original.repeat(t, axis=0)
    values = dict(
        name=name,
        caption=caption,
        fps=12.5,
        original=original,
        reconstruction=np.clip(original.astype(int) + 9, 0, 255).astype(np.uint8),
        ceiling=original.copy(),
        step0=255 - original,
        token_maps=[np.full_like(original, 40 * level) for level in range(1, 5)],
    )
    return ReportClip(**(values | changes))


ROWS = [
    {"name": "after 9 steps", "role": "model", "psnr": 24.0, "lpips": 0.25, "bpp": 0.1406,
     "utilisation": [0.5, 0.25], "note": "x<y"},
    {"name": "ceiling", "role": "ceiling", "psnr": 27.5, "lpips": None},
    {"name": "start", "role": "step0", "psnr": 12.0},
]  # fmt: skip


class Page(html.parser.HTMLParser):
    """Tags, their attributes and the text of a page; fails on tags that are not closed."""

    VOID = {"meta", "link", "input", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("r") / "below"
    return write_report(
        folder,
        title="Demo <1>",
        clips=[clip(), clip("second", caption=None, t=1)],
        curves={"loss": [(i, 3.0 / (i + 1)) for i in range(100)], "one": [(0, float("nan"))]},
        table=ROWS,
        settings={"seed": 0, "model": {"bits": 16}},
    )


def test_the_page_is_well_formed_and_needs_no_other_file(written):
    text = written["report"].read_text()
    page = Page(text)
    links = [a[k] for _, a in page.tags for k in ("src", "href", "data", "poster") if k in a]
    outside = [link for link in links if not link.startswith(("data:", "#"))]
    assert not outside
    assert not re.search(r"url\(\s*['\"]?(?!#)", text) and "@import" not in text
    assert [a for t, a in page.tags if t == "html"][0]["lang"] == "en"
    assert "Demo <1>" in page.text and "a <b>man</b> & a car" in page.text and "x<y" in page.text
    assert [p.name for p in sorted(written["report"].parent.iterdir())] == [
        "contact_sheet.png",
        "report.html",
    ]


def test_the_players_of_the_page_show_every_panel(written, tmp_path):
    page = Page(written["report"].read_text())
    (video, _) = [a for t, a in page.tags if t == "video"]
    kind, data = video["src"].split(",", 1)
    assert kind == "data:video/mp4;base64" and "controls" in video
    (tmp_path / "tiled.mp4").write_bytes(base64.b64decode(data))
    tiled, fps = read_media(tmp_path / "tiled.mp4")
    assert fps == 12.5 and len(tiled) == 5
    panels = [a for t, a in page.tags if t == "canvas"][:9]
    names = [a["aria-label"] for a in panels]
    assert names[:5] == ["input", "reconstruction", "error", "ceiling", "at step 0"]
    shown = clip().videos()
    for attributes, video in zip(panels, shown.values(), strict=True):
        left, top, width, height = map(int, attributes["data-at"].split())
        part = tiled[:, top : top + height, left : left + width].astype(float)
        doubled = video.repeat(2, axis=1).repeat(2, axis=2)  # Small clips are doubled.
        assert np.abs(part - doubled).mean() < 6, attributes["aria-label"]


def test_the_headline_tells_the_distances_to_both_baselines(written):
    page = Page(written["report"].read_text())
    for text in ("24.00", "+12.00", "over the model at step 0", "3.50", "below the unquantised"):
        assert text in page.text
    assert "50.0%" in page.text and "25.0%" in page.text and "use L2" in page.text
    assert "model.bits" in page.text and "PyraTok-JAX" in page.text


def test_the_contact_sheet_shows_the_clips(written):
    sheet = np.asarray(Image.open(written["contact_sheet"]))
    weights = np.array([65536, 256, 1])  # A colour as one number.
    colours = set(np.unique(sheet @ weights).tolist())
    assert {40 * level * int(weights.sum()) for level in range(1, 5)} <= colours
    assert set((clip().original[0] @ weights).ravel().tolist()) <= colours


def test_a_report_without_clips_curves_and_table(tmp_path):
    written = write_report(tmp_path, title="t", clips=[], curves={}, table=[], settings={})
    assert set(written) == {"report"}
    page = Page(written["report"].read_text())
    assert "Clips" not in page.text and "Curves" not in page.text


def test_a_clip_with_the_reconstruction_alone(tmp_path):
    small = clip(ceiling=None, step0=None, token_maps=(), h=8, w=8)
    page = Page(
        write_report(tmp_path, title="t", clips=[small], curves={}, table=[], settings={})[
            "report"
        ].read_text()
    )
    assert sum(t == "canvas" for t, _ in page.tags) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"reconstruction": np.zeros((5, 24, 41, 3), np.uint8)},
        {"step0": np.zeros((5, 24, 40, 3), np.float32)},
        {"levels": ["one"]},
    ],
)
def test_a_clip_of_unequal_videos_is_refused(changes):
    with pytest.raises(ValueError, match="clip talk"):
        clip(**changes)


def test_large_videos_are_shrunk_and_panels_start_on_blocks():
    video = np.zeros((1, 300, 1000, 3), np.uint8)
    tiled = player.tile_videos({"a": video, "b": video, "c": video}, 25)
    assert all(p.width == 480 and p.height == 144 for p in tiled.panels)
    assert all(p.left % 16 == 0 and p.top % 16 == 0 for p in tiled.panels)
    with pytest.raises(ValueError, match="one shape"):
        player.tile_videos({"a": video, "b": video[:, 1:]}, 25)


def test_without_an_encoder_videos_are_animated_pictures(monkeypatch, tmp_path):
    monkeypatch.setattr(player.av, "codecs_available", frozenset())
    tiled = player.tile_videos({"input": clip().original, "reconstruction": clip().step0}, 10)
    assert tiled.mime == "image/webp"
    with Image.open(io.BytesIO(tiled.data)) as picture:
        assert picture.n_frames == 1 or picture.n_frames == 5  # Equal frames may be joined.
    written = write_report(tmp_path, title="t", clips=[clip()], curves={}, table=[], settings={})
    page = Page(written["report"].read_text())
    assert [a["src"][:22] for t, a in page.tags if t == "img"] == ["data:image/webp;base64"]


def test_a_curve_follows_the_colours_of_the_page_and_keeps_its_points():
    svg = curve_svg([(0, 1.0), (1, float("inf")), (2, 3.0)])
    assert svg.startswith("<svg") and "currentColor" in svg and "var(--accent)" in svg
    assert "#010203" not in svg and "<metadata" not in svg
    assert svg == curve_svg([(0, 1.0), (1, float("inf")), (2, 3.0)])
    assert "<svg" in curve_svg([])
    assert "<svg" in curve_svg([(0, -1e9), (1, 1e9)])


def test_rate_and_distortion_as_a_picture_and_in_a_page(tmp_path):
    series = {"ours <1>": [(0.03, 22.0), (0.3, 28.0)], "x264": [(0.1, 25.0)]}
    path = rate_distortion_png(series, tmp_path / "rd.png")
    assert np.asarray(Image.open(path).convert("L")).std() > 5
    assert list(tmp_path.iterdir()) == [path]
    drawn = Page(str(rate_chart(series)))
    assert "ours <1>" in drawn.text and "bits per pixel" in drawn.text and rate_chart({}) == ""


def test_tables_in_markdown():
    text = tables.markdown_table(ROWS)
    lines = text.splitlines()
    assert lines[0] == "| | PSNR ↑ | LPIPS ↓ | bpp | use L1 | use L2 | note |"
    assert lines[2] == "| after 9 steps | 24.00 | 0.2500 | 0.1406 | 50.0% | 25.0% | x&lt;y |"
    assert lines[3] == "| ceiling | 27.50 | – | – | – | – | – |"


def test_levels_of_code_usage_become_columns():
    row = {"name": "m", "levels": [{"utilisation": 0.5, "perplexity": 12.0, "tokens": 9}]}
    assert tables.markdown_table([row]).splitlines()[0] == "| | use L1 | perplexity L1 |"
