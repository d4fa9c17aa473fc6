"""Names and captions are text: no markup, formula or control sequence in them takes effect."""

import html
import io
import subprocess
import sys

import numpy as np
import pytest
import yaml
from rich.table import Table

from pyratok_jax.errors import printable
from pyratok_jax.evaluation.vision.drawing import draw_curve
from pyratok_jax.generator import publishing as generator_publishing
from pyratok_jax.generator.loading import GeneratorDescription
from pyratok_jax.io import markdown
from pyratok_jax.io.atomic import write_text
from pyratok_jax.io.html import document, paragraph
from pyratok_jax.io.progress import PlainConsole
from pyratok_jax.io.records import ExampleSchema, parse_example
from pyratok_jax.reports.curves import rate_chart, rate_distortion_png
from pyratok_jax.reports.tables import markdown_table
from pyratok_jax.tokenizer import publishing as tokenizer_publishing

NAMES = ["[red]", "closing [/b]", "a$b^{c$", "<script>x</script>", "50% | 3", ":smile: _x", "_hid"]


@pytest.mark.parametrize("name", NAMES)
def test_names_on_the_console_and_in_its_tables(name):
    file = io.StringIO()
    console = PlainConsole(file=file, width=200)
    console.print(f"videos: {name}")
    table = Table("name")
    table.add_row(name)
    console.print(table)
    assert file.getvalue().count(name) == 2


def test_control_characters_are_escaped():
    assert printable("a\x1b[31mb\rc\u202ed\udce9\n") == "a\\x1b[31mb\\rc\\u202ed\\udce9\n"
    file = io.StringIO()
    PlainConsole(file=file, width=99).print("a\x1b[31m\x07b")
    assert file.getvalue() == "a\\x1b[31m\\x07b\n"


@pytest.mark.parametrize("name", NAMES)
def test_names_in_charts(name, tmp_path):
    series = {name: [(0.1, 20.0), (0.2, 22.0)]}
    assert rate_distortion_png(series, tmp_path / "a.png").stat().st_size > 1000
    draw_curve(tmp_path / "curve.png", np.ones(5), [(0.0, 0.1)], 25.0, name)
    drawing = rate_chart(series)
    assert "<script" not in drawing and str(drawing).count("<figure") == 1
    assert "b^{c$" in drawing or name != "a$b^{c$"


@pytest.mark.parametrize("name", NAMES)
def test_names_in_pages_and_markdown(name):
    assert "<script>x" not in document(name, [paragraph(name)])
    cell = markdown.cell(name + "\n")
    assert "\n" not in cell and "<" not in cell and "|" not in cell.replace(r"\|", "")
    assert "\x1b" not in document("a\x1b[2Jb", ["c\u202ed\x9be"])
    assert "\\u202e" in document("a", ["c\u202ed"]) and "\u200d" in document("a", ["\u200d"])


@pytest.mark.parametrize("name", [*NAMES, "[a](http://b)", "**b** `c`", r"a\|b", "~~c~~", "$d$"])
def test_names_in_markdown_are_shown_by_a_reader_of_it(name):
    from markdown_it import MarkdownIt

    table = markdown_table([{"name": name, "psnr": 1.0, "note": name}])
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(table)
    assert f"<td>{html.escape(name)}</td>" in page and page.count("<td>") == 3
    line = MarkdownIt("commonmark").render(f"see {markdown.code(name)} there")
    shown = name.replace("`", "\u02cb").replace("|", "\u2223")
    assert f"<p>see <code>{html.escape(shown)}</code> there</p>" in line


def test_bytes_of_file_names_that_are_no_utf8_come_back(tmp_path):
    schema = ExampleSchema(("id",), (), ())
    for name, wanted in (("caf\udce9.mp4", "caf\udce9.mp4"), ("a\ud800b", "a?b")):
        assert schema.scalars(parse_example(schema.encode({"id": name})))["id"] == wanted
    write_text(tmp_path / "a.html", "caf\udce9")
    assert (tmp_path / "a.html").read_text() == "caf\\udce9"


def test_an_error_with_such_a_name_is_one_line():
    code = (
        "from pyratok_jax.errors import UserError, run_cli\n"
        "def main(): print('caf\\udce9'); raise UserError('no \\udce9\\x1b[2J\\nfile')\n"
        "run_cli(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr == b"error: no \\udce9\\x1b[2J file\n" and b"\\udce9" in done.stdout


@pytest.mark.parametrize("license", ["apache-2.0", "x: y\nevil: [1", "no", '"\\', *NAMES])
def test_a_license_is_one_text_in_the_front_matter_of_cards(license):
    description = {
        "tokenizer": {"grids": [(1, 8)], "bits": 6, "quantizer": "lfq"},
        "backbone": None, "language_model": None, "dtype": "float32",
    }  # fmt: skip
    prior = GeneratorDescription(
        prior={"order": "raster", "head": "bits", "layers": 1, "width": 8, "condition": "none"},
        size=(5, 16, 16), fps=4.0, tokenizer="x", tokenizer_hash="y", language=None,
        classes=(), sampling={},
    )  # fmt: skip
    cards = (
        tokenizer_publishing.model_card(description, {}, 3, license),
        generator_publishing.model_card(prior, 9, 3, {}, [], license),
    )
    for card in cards:
        head = card.split("---\n")[1]
        assert yaml.safe_load(head)["license"] == license and "evil" not in yaml.safe_load(head)
