"""The end of an export: TFDS's metadata, the dataset card, and the list of rejected clips."""

from typing import Any

import numpy as np
from etils import epath

from pyratok_jax.io.atomic import write_json, write_text
from pyratok_jax.io.documents import read_npz, refusing
from pyratok_jax.metrics.code_usage import counted_bits, usage
from pyratok_jax.tokens.dataset import CARD
from pyratok_jax.tokens.plan import ExportPlan
from pyratok_jax.tokens.schema import SCHEMA_VERSION, feature_spec, tfds_features

CARD_TEXT = "DATASET_CARD.md"
_SUMS = ("clips", "records", "frames", "seconds", "pixels", "tokens", "raw_bits", "stored_bits",
         "bytes", "file_bytes", "with_caption")  # fmt: skip


def write_card(plan: ExportPlan) -> dict[str, Any] | None:
    """Describe the dataset when all its shards are finished: the card; None when some are not.

    It depends on the shards alone: whichever process comes last writes the same.
    """
    reports = plan.job.reports()
    if reports is None:
        return None
    output, provenance, options = epath.Path(plan.output), plan.provenance, plan.options
    card = _card(plan, reports, len(plan.job.write_rejected(reports)), _counts(plan))
    plan.job.write_metadata(
        tfds_features(provenance.bits, len(provenance.grids), options.compress),
        [report["records"] for report in reports], card["bytes"],
        "Video tokens exported by pyratok_jax.export_tokens.",
    )  # fmt: skip
    write_text(output / CARD_TEXT, card_text(card))
    write_json(output / CARD, card)
    return card


def _counts(plan: ExportPlan) -> np.ndarray:
    shape = len(plan.provenance.grids), 2 ** counted_bits(plan.provenance.bits)
    total = np.zeros(shape, np.int64)
    for number in range(plan.options.shards):
        path = plan.job.report_path(number, "npz")
        advice = "remove it, so that the shard is written again"
        with refusing(str(path), advice):
            total += read_npz(path, advice=advice)["counts"]
    return total


def _card(
    plan: ExportPlan, reports: list[dict[str, Any]], rejected: int, counts: np.ndarray
) -> dict[str, Any]:
    sums = {key: sum(report[key] for report in reports) for key in _SUMS}
    pixels, p = max(sums["pixels"], 1), plan.provenance
    levels = []
    for (dt, ds), row in zip(p.grids, counts, strict=True):
        levels.append({"stride_time": dt, "stride_space": ds, **usage(row, p.vocabulary)})
    return {
        "schema": SCHEMA_VERSION,
        "format": plan.options.format,
        "shards": plan.options.shards,
        **sums,
        "rejected": rejected,
        "hours": sums["seconds"] / 3600,
        "bits": p.bits,
        "vocabulary": p.vocabulary,
        "bpp_raw": sums["raw_bits"] / pixels,
        "bpp_stored": sums["stored_bits"] / pixels,
        "levels": levels,
        "checkpoint": p.checkpoint,
        "encoder_code": p.code,
        "text_encoder": p.text_encoder,
        "source": plan.source,
        "options": plan.to_dict()["options"],
        "feature_spec": feature_spec(p.bits, len(p.grids), plan.options.compress),
    }


def card_text(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    rows = [
        ("clips", card["clips"]), ("rejected clips", card["rejected"]),
        ("records", card["records"]), ("frames", card["frames"]),
        ("hours", f"{card['hours']:.4f}"), ("with a caption", card["with_caption"]),
        ("tokens", card["tokens"]), ("bits per token", card["bits"]),
        ("valid codes", card["vocabulary"]), ("bytes of all shards", card["file_bytes"]),
        ("bits per pixel, raw", f"{card['bpp_raw']:.5f}"),
        ("bits per pixel, as stored", f"{card['bpp_stored']:.5f}"),
        ("tokens are entropy-coded", "yes" if card["options"]["compress"] else "no"),
        ("checkpoint", card["checkpoint"] or "unnamed"), ("encoder code", card["encoder_code"]),
        ("text encoder", card["text_encoder"] or "none (null embedding)"),
        ("source", card["source"]), ("schema", card["schema"]),
    ]  # fmt: skip
    lines = ["# Video tokens", "", "Written by `python -m pyratok_jax.export_tokens`.", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
    lines += ["## Use of the codes", ""]
    lines += ["| level | stride (time, space) | tokens | codes used | share | entropy, bits |"]
    lines += ["|---|---|---|---|---|---|"]
    for number, level in enumerate(card["levels"], start=1):
        lines.append(
            f"| {number} | {level['stride_time']}, {level['stride_space']} | {level['tokens']} | "
            f"{level['used']} | {level['utilisation']:.4f} | {level['entropy']:.3f} |"
        )
    lines += ["", "How many codes occur how often:", ""]
    for number, level in enumerate(card["levels"], start=1):
        bins = ", ".join(f"{k} times: {v}" for k, v in level["histogram"].items())
        lines.append(f"- level {number}: {bins}")
    lines += ["", "## Feature spec", "", "```python", "feature_spec = {"]
    lines += [f'    "{key}": {value},' for key, value in card["feature_spec"].items()]
    lines += ["}", "```", "", _READING, ""]
    return "\n".join(lines)


_READING = """## Reading

```python
import tensorflow_datasets as tfds
source = tfds.builder_from_directory(FOLDER).as_data_source(split="train")

from pyratok_jax.tokens import TokenDataset
record = TokenDataset(FOLDER)[0]
```"""
