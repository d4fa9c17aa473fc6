"""Self-contained HTML pages: document, sections, tables, pictures and one stylesheet.

Escaping is by type (MarkupSafe): every function here takes plain text or `Markup` and returns
`Markup`. Plain text is escaped wherever it is put into markup, markup never twice, so that a
caption or a path can not break a page. A page holds its style, script and pictures and refers to no
other file.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup
from PIL import Image

from pyratok_jax import __version__
from pyratok_jax.errors import printable

# Colours and type of every page, light and dark; pages add their own rules.
_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #faf9f6; --card: #ffffff; --ink: #1c2024; --faint: #656d76; --line: #dedcd5;
  --accent: #0b6e7a; --tint: #e9f3f3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131518; --card: #1a1d21; --ink: #e7e8e9; --faint: #9aa3ac; --line: #2d3238;
    --accent: #56c2cd; --tint: #17292c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 52px 0 14px; }
h3 { font-size: 16px; margin: 0; }
p { margin: 0 0 12px; max-width: 75ch; }
img { max-width: 100%; }
.faint { color: var(--faint); }
.small { font-size: 14px; }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 18px;
  margin: 0 0 20px;
}
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table {
  border-collapse: collapse; width: 100%; background: var(--card); font-size: 14px;
  font-variant-numeric: tabular-nums;
}
th, td {
  padding: 9px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line);
}
thead th { color: var(--faint); font-weight: 500; }
tbody th { text-align: left; font-weight: 500; }
tbody tr:last-child > * { border-bottom: 0; }
.model > * { background: var(--tint); font-weight: 650; }
figure { margin: 0; min-width: 0; }
svg { display: block; width: 100%; height: auto; }
.chart { max-width: 720px; }
details { margin-top: 14px; }
summary { cursor: pointer; }
dl { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); font-size: 14px; }
dt, dd {
  margin: 0; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere;
}
dt { color: var(--faint); }
footer { margin-top: 52px; color: var(--faint); font-size: 14px; }
@media (max-width: 760px) {
  main { padding: 24px 14px 48px; }
  h1 { font-size: 24px; }
}
"""


def document(
    title: str, body: Iterable[str], *, style: str = "", script: str = "", refresh: int = 0
) -> str:
    """A whole page.

    Control characters in it become escapes, also those that turn the direction of text.

    Args:
        title: heading and name of the window.
        body: sections and other parts, in order; plain text among them is escaped.
        style: CSS rules of this page, after the common ones. Trusted: it is not escaped.
        script: JavaScript that runs at the end of the page. Trusted likewise.
        refresh: seconds after which a browser loads the page again; 0: never.
    """
    return printable(
        Markup(
            "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>"
            "<link rel='icon' href='data:,'>{refresh}"
            "<title>{title}</title><style>{style}</style></head><body><main>"
            "<h1>{title}</h1>{body}<footer>Written by PyraTok-JAX {version}.</footer>"
            "</main>{script}</body></html>\n"
        ).format(
            title=title,
            style=Markup(_STYLE + style),
            body=join(body),
            version=__version__,
            refresh=Markup("<meta http-equiv='refresh' content='{}'>").format(refresh)
            if refresh
            else "",
            script=Markup(f"<script>{script}</script>") if script else "",
        )
    )


def join(parts: Iterable[str]) -> Markup:
    """Parts one after the other; those that are plain text are escaped."""
    return Markup("").join(parts)


def section(heading: str, *content: str) -> Markup:
    """Content under a heading; nothing, not even the heading, where all of it is empty."""
    inner = join(content)
    return Markup("<section><h2>{}</h2>{}</section>").format(heading, inner) if inner else inner


def paragraph(text: str, *, faint: bool = False) -> Markup:
    """A paragraph, small and grey where `faint`."""
    kind = Markup(" class='faint small'") if faint else ""
    return Markup("<p{}>{}</p>").format(kind, text)


def table(
    rows: Iterable[Sequence[object]],
    head: Sequence[object] = (),
    classes: Sequence[str] = (),
) -> Markup:
    """A table whose first cell of each row names the row; nothing without rows.

    Args:
        rows: cells, any values.
        head: the columns' headings, that of the row names included; none: no head.
        classes: CSS class of each row, "" for none; empty: none at all.
    """
    body = []
    for number, (name, *cells) in enumerate(rows):
        chosen = classes[number] if classes else ""
        kind = Markup(" class='{}'").format(chosen) if chosen else ""
        values = join(Markup("<td>{}</td>").format(cell) for cell in cells)
        body.append(Markup("<tr{}><th scope='row'>{}</th>{}</tr>").format(kind, name, values))
    if not body:
        return Markup("")
    titles = join(Markup("<th scope='col'>{}</th>").format(cell) for cell in head)
    top = Markup("<thead><tr>{}</tr></thead>").format(titles) if head else ""
    return Markup("<div class='scroll'><table>{}<tbody>{}</tbody></table></div>").format(
        top, join(body)
    )


def pairs(values: Mapping[str, Any]) -> Markup:
    """Nested values as a list of (dotted key, value); nothing without values."""
    entries = join(Markup("<dt>{}</dt><dd>{}</dd>").format(*entry) for entry in flatten(values))
    return Markup("<dl>{}</dl>").format(entries) if entries else entries


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as (dotted key, value); an empty mapping is a value."""
    entries: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        nested = isinstance(value, Mapping) and value
        entries += flatten(value, f"{name}.") if nested else [(name, value)]
    return entries


def folded(summary: str, content: str) -> Markup:
    """Content that is shown when its summary is clicked; nothing without content."""
    if not content:
        return Markup("")
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, content)


def picture(image: Image.Image | bytes, alt: str, mime: str = "image/png") -> Markup:
    """An image within the page: encoded bytes of a type, or a picture, which becomes a PNG."""
    if not isinstance(image, bytes):
        file = io.BytesIO()
        image.save(file, "PNG")
        image = file.getvalue()
    return Markup("<img alt='{}' src='{}'>").format(alt, data_url(image, mime))


def data_url(data: bytes, mime: str) -> str:
    """Bytes as a URL that holds them."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
