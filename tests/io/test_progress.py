"""The bar on a terminal of 80 columns, and its lines in a file."""

import io

import pytest
from rich.console import Console
from rich.progress import TextColumn

from pyratok_jax.io import progress
from pyratok_jax.io.progress import ProgressBar, progress_bar, track


def recording(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None)


def test_lines_in_a_file_now_and_then_and_at_the_end():
    console, now = recording(False), [0.0]
    with ProgressBar(console=console, clock=lambda: now[0]) as bar:
        task = bar.add_task("clips", total=10, rates="")
        for second in range(10):
            now[0] = 10.0 * second
            bar.update(task, completed=second + 1, rates="3 clips/s")
        bar.update(task, completed=10)
    lines = console.file.getvalue().splitlines()
    assert [line.split(", ")[0] for line in lines] == [
        "clips: 4/10", "clips: 7/10", "clips: 10/10",
    ]  # fmt: skip
    assert all(line.endswith("3 clips/s") and "taken" in line for line in lines)


def test_track_gives_the_items_and_says_when_it_is_done():
    console = recording(False)
    assert list(track(["a", "b"], "letters", console)) == ["a", "b"]
    assert console.file.getvalue().startswith("letters: 2/2, ")
    assert console.file.getvalue().count("\n") == 1
    silent = recording(False)
    assert list(track(iter("ab"), "letters", silent, only_on_terminal=True)) == ["a", "b"]
    assert silent.file.getvalue() == ""


@pytest.mark.parametrize("more", [(), (TextColumn("{task.fields[rate]}"),)])
def test_a_terminal_of_80_columns_shows_all_of_it(more):
    console = recording(True)
    with progress_bar(console, *more) as bar:
        bar.add_task("reconstructing", completed=1234, total=56789, rate="1.23 videos/s")
    last = [line for line in console.file.getvalue().splitlines() if "reconstr" in line][-1]
    for text in ("reconstructing", "1234/56789", "0:00:00", "left", "-:--:--"):
        assert text in last
    assert ("1.23 videos/s" in last) == bool(more)
    assert "…" not in last


def test_time_left_is_shown_however_long_the_parts_take():
    """A window of a video may take minutes; what comes before the first one compiles."""
    console, now = recording(False), [0.0]
    with ProgressBar(console=console, clock=lambda: now[0]) as bar:
        task = bar.add_task("frames", total=100)
        for done, second in ((10, 200.0), (20, 260.0), (30, 320.0)):
            now[0] = second
            bar.update(task, completed=done)
    lines = console.file.getvalue().splitlines()
    # One part in 200 s, which includes the compilation; then one in 60 s.
    assert ["0:30:00 left" in lines[0], "0:08:00 left" in lines[1]] == [True, True], lines
    assert "0:07:00 left" in lines[2]


def test_a_note_below_the_bar_leaves_it_whole():
    console = recording(True)
    with progress_bar(console) as bar:
        task = bar.add_task("training", total=300_000)
        bar.note = "  ".join(f"term_{number} 0.1234" for number in range(12))
        bar.update(task, completed=123_456)
    lines = console.file.getvalue().splitlines()
    assert any("123456/300000" in line and "left" in line for line in lines)
    assert any("term_0 0.1234" in line and "…" in line for line in lines)


def test_a_stopwatch_says_what_each_part_took(monkeypatch):
    now = iter([10.0, 12.0, 20.0, 21.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
    clock = progress.Stopwatch()
    clock.lap("read")
    clock.lap("steps", of_these={"compiled": 3.0})
    clock.lap("read")
    assert clock.seconds == {"read": 3.0, "compiled": 3.0, "steps": 5.0}
