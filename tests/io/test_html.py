"""Pages: whatever text they are given, they stay well formed and say exactly that text."""

import html.parser

import pytest
from markupsafe import Markup
from PIL import Image

from pyratok_jax.io import html as page

NASTY = "a <b>man</b> & 'one' \"two\" </td></dl><script>x()</script> {0} %s"
VOID = {"meta", "link", "img"}


class Text(html.parser.HTMLParser):
    """Tags, attribute values and text; fails on tags that are not closed in order."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.values, self.text = [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.values += [value for _, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.text.append(data)


PARTS = {
    "section": lambda text: page.section(text, text),
    "paragraph": lambda text: page.paragraph(text, faint=True),
    "table": lambda text: page.table([(text, text, 1.5)], head=(text, text, text)),
    "pairs": lambda text: page.pairs({text: text, "nested": {text: text}}),
    "folded": lambda text: page.folded(text, text),
    "picture": lambda text: page.picture(Image.new("RGB", (2, 2)), text),
    "plain text": lambda text: text,
}


@pytest.mark.parametrize("part", PARTS)
def test_any_text_is_shown_as_it_is(part):
    whole = page.document(NASTY, [PARTS[part](NASTY)])
    found = Text(whole)
    plain = Text(page.document("plain", [PARTS[part]("plain")]))
    assert found.tags == plain.tags
    shown = [*found.text, *found.values]
    count = [*plain.text, *plain.values].count("plain")
    assert count >= 3 and sum(text == NASTY for text in shown) == count


def test_markup_is_not_escaped_again():
    inner = page.paragraph("a & b")
    assert page.section("s", inner) == Markup("<section><h2>s</h2><p>a &amp; b</p></section>")
    assert page.join([inner, "&"]) == Markup("<p>a &amp; b</p>&amp;")


def test_parts_without_content_are_left_out():
    assert page.section("s", "", page.table([]), page.pairs({})) == ""
    assert page.folded("s", "") == ""


def test_rows_have_their_class_and_a_name():
    rows = page.table([("a", 1), ("b", 2)], head=("", "n"), classes=("model", ""))
    assert "<tr class='model'><th scope='row'>a</th><td>1</td></tr>" in rows
    assert "<tr><th scope='row'>b</th><td>2</td></tr>" in rows


def test_nested_values_are_flattened():
    nested = {"a": {"b": 1, "c": {}}, "d": (1, 2)}
    assert page.flatten(nested) == [("a.b", 1), ("a.c", {}), ("d", (1, 2))]


def test_style_and_script_are_taken_as_they_are():
    whole = page.document("t", [], style="a > b { color: red }", script="if (1 < 2 && 3) x();")
    assert "a > b { color: red }" in whole and "<script>if (1 < 2 && 3) x();</script>" in whole
    assert "<script" not in page.document("t", [])
