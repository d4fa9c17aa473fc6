"""The bar on a terminal of 80 columns, and its lines in a file."""

import io

import pytest
from rich.console import Console
from rich.progress import TextColumn

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
