"""The report of a run as one HTML page beside its pictures."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pyratok_jax.evaluation.framework import Picture, Task
from pyratok_jax.evaluation.peers import peer_table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 } td, th { border: 1px solid #ccc;
  padding: .25rem .6rem; text-align: left } td.n { text-align: right }
figure { display: inline-block; margin: .5rem; vertical-align: top; max-width: 100% }
figcaption { font-size: .85rem; color: #555; max-width: 40rem } img { max-width: 100% }
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #ddd }
  td, th { border-color: #444 } pre { background: #222 } figcaption { color: #aaa } }
"""


def report_page(
    task: Task, results: Mapping[str, Any], row: str, pictures: Sequence[Picture]
) -> str:
    """The page: metrics, pictures, protocol, broken items, peers."""
    broken = results["broken"]
    parts = [
        f"<h1>{html.escape(task.name)}</h1><p>{html.escape(task.description)}</p>",
        _table(row),
        "<h2>Metrics</h2>",
        _pairs(results["metrics"]),
        "<h2>Pictures</h2>" if pictures else "",
        *(_figure(picture) for picture in pictures),
        "<h2>Protocol</h2>",
        _pairs(results["protocol"]),
        f"<h2>Items without a result: {len(broken)}</h2>" if broken else "",
        _pairs({entry["id"]: entry["reason"] for entry in broken[:200]}) if broken else "",
        f"<h2>Others</h2>{_table(peer_table(task.name))}" if peer_table(task.name) else "",
        "<h2>Record</h2>",
        f"<pre>{html.escape(json.dumps(_record(results), indent=1))}</pre>",
    ]
    head = f"<meta charset=utf-8><title>{html.escape(task.name)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _record(results: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("data", "split", "limit", "resolution", "frames", "bpp", "items", "checkpoint")
    return {key: results[key] for key in (*keys, "versions")}


def _figure(picture: Picture) -> str:
    caption = html.escape(picture.caption)
    source = html.escape(picture.file)
    return (
        f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )


def _pairs(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(str(key))}</th><td>{_value(value)}</td></tr>"
        for key, value in values.items()
    )
    return f"<table>{rows}</table>"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return _pairs(value)
    if isinstance(value, list) and len(value) > 40:
        value = [*value[:40], f"... {len(value)} in all"]
    return html.escape(str(value))


def _table(markdown: str) -> str:
    """A markdown table (text before it becomes a paragraph) as HTML."""
    lines = markdown.strip().splitlines()
    text = " ".join(line for line in lines if line and not line.startswith("|"))
    rows = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if "|" in line
    ]
    body = "".join(
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
        for tag, cells in zip(["th"] + ["td"] * len(rows), rows[:1] + rows[2:], strict=False)
    )
    return f"<p>{html.escape(text)}</p><table>{body}</table>"
