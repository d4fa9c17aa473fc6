"""Relative links of the documentation point to files and headings that are there."""

import re
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.M | re.S)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(<?([^()\s>]+)>?(?:\s+\"[^\"]*\")?\)")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.M)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, by the rule of GitHub (and of mkdocs with its slugs)."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
        kept = [
            c for c in plain.strip().lower() if c in " -_" or unicodedata.category(c)[0] in "LN"
        ]
        slug = name = "".join(kept).replace(" ", "-")
        number = 0
        while name in found:
            number += 1
            name = f"{slug}-{number}"
        found.add(name)
    return found


def relative_links(text: str) -> list[str]:
    """Targets of a page's links that are not to other sites; code has none."""
    targets = _LINK.findall(re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text)))
    return [one for one in targets if not re.match(r"[a-z][a-z0-9+.-]*:", one)]


def broken_links(page: Path, text: str) -> list[str]:
    """Links of a page to a file of this repository or a heading that does not exist."""
    broken = []
    for target in relative_links(text):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        found = file.is_relative_to(ROOT) and file.exists()
        if found and anchor:
            found = anchor in anchors(text if file == page else file.read_text())
        if not found:
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_point_to_what_is_there(page):
    assert broken_links(page, page.read_text()) == []


def test_a_broken_link_is_found():
    page = ROOT / "README.md"
    text = """# One `a_b`, two
[x](docs/none.md) [x](docs/tokens.md#no-such) [`y`](#one-a_b-two) [x](#one) ![p](none.png "t")
[outside](../x) [web](https://example.org/none) [ok](docs/tokens.md#what-is-stored) `[c](none)`
```
[code](none.md)
```
"""
    found = broken_links(page, text)
    assert found == ["docs/none.md", "docs/tokens.md#no-such", "#one", "none.png", "../x"]


def test_every_page_can_be_reached_from_the_readme():
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        linked = {(page.parent / target.partition("#")[0]).resolve()
                  for page in new for target in relative_links(page.read_text())}  # fmt: skip
        new = {file for file in linked if file.suffix == ".md"} - reached
    assert set(PAGES) - reached == set()
