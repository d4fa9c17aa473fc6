import json
import re
import sys

import pytest
from rich.console import Console

from pyratok_jax import compile_report
from pyratok_jax.errors import UserError
from pyratok_jax.pods import sweep
from pyratok_jax.pods.sweep import Candidate, candidates, default_meshes, parse_meshes, rank


def facts(seconds=None, clips=4, exceeded=0.0, error=""):
    memory = {"fits": not exceeded, "exceeded": exceeded, "verdict": "", "used": 1.0}
    found = {"clips": clips, "memory": None if error else memory, "error": error}
    return found | ({"step_seconds": seconds, "mfu": 0.3} if seconds else {})


def row(name, *arguments, **changes):
    return {"name": name, **facts(*arguments, **changes)}


def test_fastest_that_fits_comes_first():
    rows = [
        row("failed", error="compiler died"),
        row("far too large", exceeded=50.0),
        row("fast step of few clips", 1.0, clips=2),
        row("slow step of many clips", 2.0, clips=8),
        row("too large", exceeded=5.0),
    ]
    assert [r["name"] for r in rank(rows)] == [
        "slow step of many clips",
        "fast step of few clips",
        "too large",
        "far too large",
        "failed",
    ]


def test_candidates_divide_the_slice():
    found = candidates(64, ["stages"], [1, 2], [(4, 16), (3, 1)])
    assert found == [Candidate("stages", 1, 4, 16), Candidate("stages", 2, 4, 16)]
    assert found[1].changes(512, 64)[:2] == ["--config.remat=stages", "--config.accumulate=4"]
    assert Candidate("all", 4, 4, 16).changes(16, 64)[1] == "--config.accumulate=1"
    with pytest.raises(UserError, match="no mesh divides the 64 chips"):
        candidates(64, ["all"], [1], [(3, 1)])
    assert all(64 % (f * s) == 0 for f, s in default_meshes(64))
    assert parse_meshes("4x16,64x1") == [(4, 16), (64, 1)]
    with pytest.raises(UserError, match="expected FSDPxSPATIAL"):
        parse_meshes("4x16x2")


def test_a_sweep_goes_on_and_failures_are_rows(tmp_path, monkeypatch):
    calls = []

    def compiled(arguments):
        calls.append(arguments[1])
        if "all" in arguments[1]:
            return {"error": "exit code -6: killed"}
        return facts(1.0)

    monkeypatch.setattr(sweep, "compiled_apart", compiled)
    given = candidates(4, ["stages", "all"], [1], [(4, 1)])
    output = tmp_path / "rows.jsonl"
    console = Console(file=(tmp_path / "log").open("w"))
    sweep.sweep(given[:1], ["--x"], 4, 4, output, console)
    # A line that was cut off by a crash is made again.
    output.write_text(output.read_text() + '{"name": "rem')
    ranked = sweep.sweep(given, ["--x"], 4, 4, output, console)
    assert calls == ["--config.remat=stages", "--config.remat=all"]
    assert [r.get("error", "")[:4] for r in ranked] == ["", "exit"]
    sweep.sweep(given, ["--x"], 4, 4, output, console)
    assert len(calls) == 2


def test_the_command_hands_its_settings_to_the_sweep(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        sweep, "compiled_apart", lambda arguments: asked.append(arguments) or facts(1.0)
    )
    monkeypatch.setattr(compile_report, "prepare", lambda where: None)
    output = tmp_path / "rows.jsonl"
    arguments = ["--sweep", "--sweep_remat=stages,all", "--sweep_clips=2", "--sweep_meshes=4x16"]
    arguments += ["--bucket=17x512x512", "--config.log_every=7", f"--output={output}"]
    monkeypatch.setattr(sys, "argv", ["compile_report", *arguments])
    assert compile_report.main() == 0
    assert len(asked) == len(output.read_text().splitlines()) == 2
    for remat, given in zip(("stages", "all"), asked, strict=True):
        assert f"--config.remat={remat}" in given and "--config.log_every=7" in given
        assert "--config.mesh.spatial=16" in given and "--config.accumulate=4" in given
        assert "--bucket=17x512x512*512" in given
    for wrong in ("--sweep_clips=0", "--sweep_meshes=4"):
        monkeypatch.setattr(sys, "argv", ["compile_report", *arguments, wrong])
        with pytest.raises(UserError, match="expected"):
            compile_report.main()


def test_rows_of_another_command_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "compiled_apart", lambda arguments: facts(1.0))
    output = tmp_path / "rows.jsonl"
    output.write_text(json.dumps({"name": "x", "command": ["--other"]}) + "\n")
    given = candidates(4, ["all"], [1], [(4, 1)])
    ranked = sweep.sweep(given, ["--x"], 4, 4, output, Console(quiet=True))
    assert len(ranked) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--output no_such_dir/r.json", "folder no_such_dir does not exist; make it first"),
        ("--output .", "is a folder; give a file"),
        ("--chips -1", "--chips -1: 1 x v5p:4x4x4 has 64 chips"),
        ("--chips 65", "--chips 65: 1 x v5p:4x4x4 has 64 chips"),
        ("--slices -1", "--slices -1: expected a number from 0"),
        ("--clips -1", "--clips -1: expected a number from 0"),
        ("--sweep --chips 4", "does not look at --chips; leave it out"),
        ("--sweep --step decode --clips 2", "does not look at --step, --clips; leave them out"),
        ("--sweep --keep-program texts", "does not look at --keep-program"),
        ("--sweep --config generator:blocks", "--config is of a prior"),
        ("--sweep_clips 4", "--sweep_clips: for --sweep alone"),
    ],
)
def test_what_cannot_be_is_refused_before_compiling(tmp_path, monkeypatch, words, said):
    for name in ("describe", "prepare"):
        monkeypatch.setattr(compile_report, name, lambda *arguments: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compile_report", *words.split()])
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        compile_report.main()
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_all_chips_may_be_named(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(compile_report, "prepare", lambda where: None)
    monkeypatch.setattr(compile_report, "describe", lambda *where: list(range(64)))
    monkeypatch.setattr(compile_report, "finish", lambda *arguments: None)
    monkeypatch.setattr(
        "pyratok_jax.pods.plan.compile_all",
        lambda config, devices, *_, **__: seen.append(devices) or {},
    )
    monkeypatch.chdir(tmp_path)
    for chips in ("64", "0", "4"):
        monkeypatch.setattr(sys, "argv", ["compile_report", "--chips", chips])
        assert compile_report.main() == 0
    assert [len(devices) for devices in seen] == [64, 64, 4]
