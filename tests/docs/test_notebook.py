"""The notebook: the two forms have the same cells, and it runs from top to bottom."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

DOCS = Path(__file__).parents[2] / "docs"


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_both_forms_have_the_same_cells_and_the_stored_one_was_run():
    stored = nbformat.read(DOCS / "notebook.ipynb", as_version=4)
    assert cells(stored) == cells(jupytext.read(DOCS / "notebook.py"))
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    shown = [output for cell in code for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 3


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path):
    notebook = jupytext.read(DOCS / "notebook.py")
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": tmp_path}}).execute()
    printed = "".join(
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.get("name") == "stdout"
    )
    (share,) = re.findall(r"(\d+)% right", printed)
    assert int(share) > 25  # Chance is 12 %.
    assert "levels 1 to 4" in printed
