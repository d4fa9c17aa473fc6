"""The report of a run: `report.html` and `contact_sheet.png` in its folder."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyratok_jax.reports.clips import ReportClip
from pyratok_jax.reports.curves import Points
from pyratok_jax.reports.page import render_page
from pyratok_jax.reports.pictures import token_maps
from pyratok_jax.reports.sheet import contact_sheet, save_png

__all__ = ["ReportClip", "token_maps", "write_report"]


def write_report(
    folder: str | os.PathLike,
    *,
    title: str,
    clips: Sequence[ReportClip],
    curves: Mapping[str, Points],
    table: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    rate_distortion: Mapping[str, Points] | None = None,
) -> dict[str, Path]:
    """Write both files atomically and say where they are.

    Args:
        folder: where to; made when it does not exist.
        title: heading of both.
        clips: what to show; none leaves out the films and the contact sheet.
        curves: (step, value) points by name, in the order of the page.
        table: one row per compared model: `name`, and any of psnr, psnr_video, ssim,
            ssim_uniform, lpips, lpips_alex, bpp, utilisation (a number or a list per level),
            perplexity, `levels` (`CodeUsage.summary()`); other keys become columns too. `role`
            "model", "ceiling" or "step0" puts a row into the headline.
        settings: what the run was made with, nested or flat.
        rate_distortion: (bpp, PSNR) points by name, for a chart; None leaves it out.

    Returns:
        Paths by "report" and, with clips, "contact_sheet".
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page = render_page(title, clips, curves, table, settings, rate_distortion)
    written = {"report": folder / "report.html"}
    scratch = folder / ".report.html.part"
    scratch.write_text(page, encoding="utf-8")
    os.replace(scratch, written["report"])
    if clips:
        sheet = contact_sheet(title, clips)
        written["contact_sheet"] = save_png(sheet, folder / "contact_sheet.png")
    return written
