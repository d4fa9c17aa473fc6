"""The frame of all tasks: resuming, shards, broken items, settings, files."""

import dataclasses
import json
import os
import zipfile
from typing import ClassVar

import numpy as np
import pytest

from pyratok_jax import evaluate
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation import task as tasks
from pyratok_jax.evaluation.engine import PartialStore, parse_shard
from pyratok_jax.evaluation.task import BrokenItemError, Item, Task, parse_range, parse_settings


@dataclasses.dataclass
class Counting(Task):
    """Sums numbers; item 3 is broken, item 4 raises an error that nobody foresaw."""

    name = "counting"
    description = "adds numbers"
    data_help = "anything"
    columns = (("total", "total", 1), ("mean", "mean", 3))
    late_settings = frozenset(("shift",))
    log: ClassVar[list[str]] = []

    factor: int = 2
    shift: float = 0.0
    loud: bool = False

    def wrap(self, tokenizer):
        return tokenizer

    def baseline(self, kind):
        class Model:
            checkpoint_hash = kind

        return Model()

    def items(self):
        return [Item(f"item/{i}", i) for i in range(7)]

    def evaluate_item(self, model, item):
        if item.content == 3:
            raise BrokenItemError("no such\nfile")
        if item.content == 4:
            raise ZeroDivisionError("surprise")
        self.log.append(item.id)
        value = np.float32(0.1) * np.arange(item.content, dtype=np.float32)
        clip = {"frames": 5, "height": 8, "width": 16, "bits": 64.0}
        return {"values": self.factor * value, "clip": clip, "note": "é"}

    def aggregate(self, partials):
        values = np.concatenate([p["values"] for p in partials.values()])
        return {"total": float(values.sum()) + self.shift, "mean": float("nan"), "n": values.size}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(evaluate, "load_task", lambda name: Counting)
    Counting.log.clear()


def run(output, *more, checkpoint="oracle"):
    base = ["--task", "counting", "--checkpoint", checkpoint, "--data", "d"]
    evaluate.main([*base, "--output", str(output), *more])
    path = output / "results.json"
    return json.loads(path.read_text()) if path.exists() else None


def test_results_hold_the_whole_record(tmp_path):
    results = run(tmp_path)
    values = np.concatenate(
        [2 * np.float32(0.1) * np.arange(i, dtype=np.float32) for i in (1, 2, 5, 6)]
    )
    assert results["metrics"] == {"total": float(values.sum()), "mean": None, "n": 14}
    assert results["items"] == {"total": 7, "evaluated": 5}
    assert [b["id"] for b in results["broken"]] == ["item/3", "item/4"]
    assert results["broken"][0]["reason"] == "no such file"
    assert "ZeroDivisionError: surprise" in results["broken"][1]["reason"]
    assert results["resolution"] == {"16x8": 5} and results["frames"]["mean"] == 5
    assert results["bpp"] == pytest.approx(64 / (5 * 8 * 16))
    assert results["checkpoint"]["hash"] == "oracle"
    assert {"jax", "numpy", "pyratok-jax", "code"} <= set(results["versions"])
    row = (tmp_path / "row.md").read_text().splitlines()
    assert row[0].split("|")[2].strip() == "total" and "5 of 7" in row[2] and "| - |" in row[2]
    assert "no such file" in (tmp_path / "report.html").read_text()


def test_shards_in_any_order_give_exactly_the_results_of_one_run(tmp_path):
    whole = run(tmp_path / "one")
    for number in (2, 0):
        assert run(tmp_path / "many", "--shard", f"{number}/3") is None
    merged = run(tmp_path / "many", "--shard", "1/3")
    for name in ("metrics", "items", "broken", "bpp", "resolution"):
        assert merged[name] == whole[name]


def test_a_second_run_evaluates_only_what_is_missing(tmp_path, capsys):
    run(tmp_path, "--limit", "2")
    assert Counting.log == ["item/0", "item/1"]
    run(tmp_path)
    assert Counting.log == ["item/0", "item/1", "item/2", "item/5", "item/6"]
    out = capsys.readouterr().out
    assert "2 of 7 items are done already" in out and f"written: {tmp_path}/report.html" in out


def test_what_lies_in_a_partial_results_place_is_made_again(tmp_path):
    """Not waited for, and not inflated without a bound."""
    first = run(tmp_path)
    store = PartialStore(tmp_path / "partial")
    pipe, bomb = store.path("item/2"), store.path("item/5")
    pipe.unlink()
    os.mkfifo(pipe)
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        header = b"\x93NUMPY\x01\x00\x76\x00"
        header += b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(
            118
        )
        archive.writestr("json.npy", header)
    assert store.load("item/2") is None and store.load("item/5") is None
    Counting.log.clear()
    assert run(tmp_path)["metrics"] == first["metrics"]
    assert Counting.log == ["item/2", "item/5"]


def test_a_damaged_partial_result_is_made_again(tmp_path):
    first = run(tmp_path)
    path = PartialStore(tmp_path / "partial").path("item/5")
    path.write_bytes(path.read_bytes()[:40])
    Counting.log.clear()
    assert run(tmp_path)["metrics"] == first["metrics"]
    assert Counting.log == ["item/5"]


def test_results_of_different_runs_never_mix(tmp_path):
    run(tmp_path)
    with pytest.raises(UserError, match="another settings"):
        run(tmp_path, "--set", "factor=3")
    with pytest.raises(UserError, match="another checkpoint"):
        run(tmp_path, checkpoint="random")
    # A late setting needs no new evaluation; --restart forgets.
    assert run(tmp_path, "--set", "shift=1")["metrics"]["total"] == pytest.approx(1 + 5.2, abs=0.3)
    assert run(tmp_path, "--restart", "--set", "factor=3")["protocol"]["factor"] == 3


def test_nothing_but_broken_items_is_an_error_with_the_first_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "items", lambda self: [Item("x", 3)])
    with pytest.raises(UserError, match="none of the 1 items.*no such file"):
        run(tmp_path)


def test_hopeless_runs_stop_early(tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "items", lambda self: [Item(f"{i}", 3) for i in range(99)])
    with pytest.raises(UserError, match="first 25 items"):
        run(tmp_path)


def test_equal_ids_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "items", lambda self: [Item("x", 1), Item("x", 2)])
    with pytest.raises(UserError, match="two items are called x"):
        run(tmp_path)


def test_settings_take_the_type_of_their_default():
    wanted = {"factor": 3, "shift": 0.5, "loud": True}
    assert parse_settings(Counting, ["factor=3", "shift=.5", "loud=true"]) == wanted
    for text, message in (
        ("facto=3", "no such setting"),
        ("factor", "no such setting"),
        ("factor=x", "expected int"),
        ("loud=1", "true or false"),
    ):
        with pytest.raises(UserError, match=message):
            parse_settings(Counting, [text])


def test_ranges_hold_both_ends():
    assert parse_range("0.3:0.1:0.7", "x") == [0.3, 0.4, 0.5, 0.6, 0.7]
    assert parse_range("0.5:0.05:0.95", "x")[-1] == 0.95
    assert parse_range("0.7:-0.2:0.3", "x") == [0.7, 0.5, 0.3]
    assert parse_range("0.5:0.1:0.5", "x") == [0.5] and parse_range("0.5", "x") == [0.5]


@pytest.mark.parametrize(
    "text",
    [
        "0.5:0.3:1.0", "0.3:0.1:inf", "-inf:0.1:0.3", "0.3:nan:0.7", "0.3:inf:inf", "0.3:inf:1",
        "0.7:0.1:0.3",
        "0:1e9:1", "0:1e-9:1", "0.3:0:0.7", "0.3:0.7", "a,b", "",
    ],
)  # fmt: skip
def test_steps_that_do_not_lead_to_the_end_of_a_range_are_refused(text):
    with pytest.raises(UserError, match=f"--set x={text}: expected") as caught:
        parse_range(text, "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/2", "0/0"])
def test_bad_shards_are_refused(text):
    with pytest.raises(UserError, match="I/N"):
        parse_shard(text)


def test_missing_arguments_are_named(tmp_path):
    with pytest.raises(UserError, match="--data is missing"):
        evaluate.main(["--task", "counting", "--checkpoint", "oracle", "--output", str(tmp_path)])


def test_unknown_tasks_are_refused_and_list_explains(monkeypatch, capsys):
    with pytest.raises(UserError, match="expected one of"):
        tasks.load_task("nonsense")
    evaluate.main(["--task", "list"])
    out = capsys.readouterr().out
    assert out.count("--set factor=2") == len(tasks.TASKS)
