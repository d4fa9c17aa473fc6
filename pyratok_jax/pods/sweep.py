"""Trying settings of the train step: which is the fastest that fits.

Every candidate is compiled in a process of its own, so that a crash of the compiler is a row like
any other. Rows are appended to a JSON-lines file as they come; started again with the same file, a
sweep resumes after the last.
"""

import dataclasses
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.progress import progress_bar
from pyratok_jax.pods.topology import GIBIBYTE


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Settings of one compilation.

    Attributes:
        remat: of the VAE.
        clips: of each chip at a time, where chips hold whole clips.
        fsdp, spatial: sizes of these mesh axes; data takes the rest.
    """

    remat: str
    clips: int
    fsdp: int
    spatial: int

    @property
    def name(self) -> str:
        """For tables and for telling rows of the file apart."""
        return f"remat {self.remat}, {self.clips} at once, fsdp {self.fsdp}, spatial {self.spatial}"

    def changes(self, batch: int, chips: int) -> list[str]:
        """Flags that make these settings, for a batch of `batch` clips."""
        parts = max(batch // (self.clips * chips), 1)
        return [
            f"--config.remat={self.remat}",
            f"--config.accumulate={parts}",
            "--config.mesh.data=-1",
            f"--config.mesh.fsdp={self.fsdp}",
            f"--config.mesh.spatial={self.spatial}",
        ]


def candidates(
    chips: int, remat: Sequence[str], clips: Sequence[int], meshes: Sequence[tuple[int, int]]
) -> list[Candidate]:
    """All combinations whose mesh divides the chips of a slice.

    Raises:
        UserError: none does.
    """
    found = [
        Candidate(policy, count, fsdp, spatial)
        for fsdp, spatial in meshes
        if chips % (fsdp * spatial) == 0
        for policy in remat
        for count in clips
    ]
    if not found:
        raise UserError(f"--sweep_meshes: no mesh divides the {chips} chips of a slice")
    return found


def default_meshes(chips: int) -> list[tuple[int, int]]:
    """(fsdp, spatial): parameters over few or all chips, frames over none, some, many."""
    sizes = [(4, 1), (chips, 1), (chips // 4, 4), (max(chips // 16, 1), min(chips, 16))]
    return list(dict.fromkeys((f, s) for f, s in sizes if f and chips % (f * s) == 0))


def parse_meshes(written: str) -> list[tuple[int, int]]:
    """`4x16,64x1`: fsdp x spatial.

    Raises:
        UserError: written otherwise.
    """
    try:
        pairs = [tuple(int(n) for n in part.split("x")) for part in written.split(",")]
        if any(len(pair) != 2 or min(pair) < 1 for pair in pairs):
            raise ValueError
    except ValueError as error:
        raise UserError(
            f"--sweep_meshes {written!r}: expected FSDPxSPATIAL, several with commas: 4x16,64x1"
        ) from error
    return [(pair[0], pair[1]) for pair in pairs]


def parse_counts(written: str) -> list[int]:
    """`1,2`: numbers of clips.

    Raises:
        UserError: written otherwise.
    """
    parts = written.split(",")
    if not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"--sweep_clips {written!r}: expected numbers with commas, such as 1,2")
    return [int(part) for part in parts]


def rank(rows: Sequence[dict[str, Json]]) -> list[dict[str, Json]]:
    """Rows that fit, fastest first by seconds per clip; then those that do not, nearest first."""

    def order(row: dict[str, Json]) -> tuple[int, float]:
        if row.get("error") or not row.get("memory"):
            return (2, 0.0)
        if not row["memory"]["fits"]:
            return (1, row["memory"]["exceeded"])
        seconds = row.get("step_seconds")
        return (0, seconds / row["clips"] if seconds else math.inf)

    return sorted(rows, key=order)


def read_rows(path: Path) -> list[dict[str, Json]]:
    """Rows written so far, without a truncated last line."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def sweep(
    given: Sequence[Candidate], command: Sequence[str], batch: int, chips: int, output: Path,
    console: Console,
) -> list[dict[str, Json]]:  # fmt: skip
    """Compile what is not yet in the file; all rows, best first.

    Args:
        given: candidates.
        command: arguments of `compile_report` that all share, without --output.
        batch: clips of a step.
        chips: of all slices.
        output: JSON-lines file.
        console: for progress and the table.
    """
    if output.exists() and not output.read_text().endswith("\n"):
        # A crash truncated the last line: start a new one.
        with output.open("a") as file:
            file.write("\n")
    rows = [row for row in read_rows(output) if row.get("command") == list(command)]
    done = {row["name"] for row in rows}
    with progress_bar(console) as bar:
        task = bar.add_task("", total=len(given), completed=len(done))
        for one in given:
            if one.name in done:
                continue
            bar.update(task, description=one.name)
            row = {"name": one.name, **dataclasses.asdict(one), "command": list(command)}
            row |= compiled_apart([*command, *one.changes(batch, chips)])
            with output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            rows.append(row)
            bar.advance(task)
    ranked = rank(rows)
    console.print(_table(ranked))
    return ranked


def compiled_apart(arguments: Sequence[str]) -> dict[str, Json]:
    """The train step's facts from a `compile_report` of its own; `error` where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        call = [sys.executable, "-m", "pyratok_jax.compile_report", *arguments]
        ended = subprocess.run(
            [*call, "--step", "train", "--output", str(report)], capture_output=True, text=True
        )
        if report.exists():
            return json.loads(report.read_text())["steps"]["train"]
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        return {"error": f"exit code {ended.returncode}: {lines[-1][:300] if lines else ''}"}


def _rows(ranked: Sequence[dict[str, Json]]) -> Iterator[tuple[str, ...]]:
    for row in ranked:
        memory = row.get("memory")
        verdict = memory["verdict"] if memory else f"failed: {row.get('error', '')[:80]}"
        seconds = row.get("step_seconds")
        yield (
            row["name"],
            f"{seconds / row['clips']:.4f}" if seconds else "",
            f"{row['mfu']:.1%}" if seconds else "",
            f"{memory['used'] / GIBIBYTE:.1f}" if memory else "",
            verdict,
        )


def _table(ranked: Sequence[dict[str, Json]]) -> Table:
    table = Table("settings", "s per clip", "MFU", "GB", "memory", title="fastest first")
    for cells in _rows(ranked):
        table.add_row(*cells)
    return table
