"""Trainings compared: figures and the keys in which their configs differ."""

import json

import pytest

from pyratok_jax import report
from pyratok_jax.errors import UserError
from pyratok_jax.reports.report import by_caption, curve_figures, named_curves


def write_run(folder, psnr, **config):
    folder.mkdir()
    rows = [{"role": "ceiling", "psnr": 40.0}, {"role": "model", "psnr": psnr, "bpp": 0.25}]
    (folder / "metrics.json").write_text(json.dumps({"heldout": rows, "steps": 100}))
    (folder / "config.json").write_text(json.dumps({"seed": 0, **config}))
    return str(folder)


def test_runs_are_compared(tmp_path, capsys):
    one = write_run(tmp_path / "a", 23.5, optimizer={"b1": 0.9, "learning_rate": 0.5})
    two = write_run(tmp_path / "b", 24.25, optimizer={"b1": 0.9, "learning_rate": 0.125})
    page = tmp_path / "page.html"
    report.main([one, two, "--output", str(page)])
    text = capsys.readouterr().out
    for shown in ("23.5", "24.25", "0.25", "0.125", "learning"):
        assert shown in text
    assert "b1" not in text and "40.0" not in text
    assert "24.25" in page.read_text() and "optimizer.learning_rate" in page.read_text()


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(UserError, match="no metrics.json"):
        report.main([str(tmp_path)])


def test_curves_are_named_for_what_they_are_and_the_first_come_first():
    points = [(1, 0.5), (2, 0.4)]
    curves = dict.fromkeys(
        ("autoregressive", "autoregressive/chance", "l1", "loss", "psnr", "ssim", "total"), points
    )
    names = list(named_curves(curves))
    assert names[:4] == ["loss", "psnr", "l1", "1 - SSIM"]
    assert "total" not in names and "ssim" not in names
    assert "autoregressive (chance: 0.4)" in names
    # Another total is not the same curve twice.
    assert "total" in named_curves(curves | {"total": [(1, 0.1)]})


def test_nats_under_several_captions_share_a_chart():
    points = [(1, 3.0), (2, 2.5)]
    names = [
        f"heldout/nats/{kind}/level_{n}" for kind in ("own", "none", "shuffled") for n in (1, 2)
    ]
    named = dict.fromkeys([*names, "heldout/nats/gain/level_1", "nats/own/level_1"], points)
    charts = by_caption(named)
    assert charts["heldout/nats per token of level 2"] == {
        "own caption": names[1], "no caption": names[3], "another's caption": names[5]
    }  # fmt: skip
    assert len(charts) == 2
    page = str(curve_figures(named))
    # Two charts of three lines, and the two curves that stand alone.
    assert (
        page.count("<figure") == 4
        and page.count("another&#39;s caption") + page.count("another's caption") == 2
    )
