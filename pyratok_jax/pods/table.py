"""A report as tables for people."""

import re
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from pyratok_jax.pods.chips import GIBIBYTE


def show(report: dict[str, Any], console: Console) -> None:
    """Print a report."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
    console.print(
        f"\n[bold]{report['slices']} x {report['topology']}[/bold] ({report['chips']} chips; "
        f"{mesh or 'one chip'}), bucket {report['bucket']}, remat {report['remat']}, at most "
        f"{report['accumulate']} parts a batch"
    )
    parameters = report["parameters"]
    console.print(
        f"parameters: {parameters['trainable'] / 1e6:.1f} M trainable, "
        f"{parameters['frozen'] / 1e6:.1f} M frozen; large arrays on every chip: "
        f"{', '.join(report['large_arrays_on_every_chip']) or 'none'}"
    )
    for step, facts in report["steps"].items():
        console.print(_step(step, facts))
        if facts.get("costliest"):
            console.print(_costliest(facts))
        if facts.get("collectives"):
            console.print(_collectives(facts))


def _step(step: str, facts: dict[str, Any]) -> Table:
    table = Table(title=f"{step}, {facts['clips']} clips", title_justify="left", show_header=False)
    for name, value in rows(facts):
        table.add_row(name, value)
    return table


def rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and value of what a step's report says, for tables of any kind."""
    found: list[tuple[str, str]] = []
    memory = facts.get("memory")
    if facts.get("error"):
        found.append(("compiler's answer", facts["error"]))
    if memory:
        found.append(("memory per chip", memory["verdict"]))
        kinds = ", ".join(
            f"{kind} {size / GIBIBYTE:.2f}" for kind, size in memory["by_kind"].items() if size
        )
        total = f"{memory['used'] / GIBIBYTE:.2f} of {memory['capacity'] / GIBIBYTE:.2f} GB"
        found.append(("", f"{total}: {kinds}"))
    if "step_seconds" in facts:
        found += [
            ("model FLOPs", f"{facts['model_flops'] / 1e12:,.1f} T"),
            (
                "compiler's count per chip, loops once",
                f"{facts['compiler_flops_loops_once'] / 1e12:,.2f} TFLOP, "
                f"{facts['compiler_bytes_loops_once'] / 1e9:,.1f} GB",
            ),
            ("estimated cycles", f"{facts['estimated_cycles'] / 1e6:,.1f} M"),
            (
                "step, collectives hidden",
                f"{facts['step_seconds']:.3f} s, MFU {facts['mfu']:.1%}",
            ),
            (
                "step, nothing hidden",
                f"{facts['step_seconds_without_overlap']:.3f} s, "
                f"MFU {facts['mfu_without_overlap']:.1%}",
            ),
        ]
        if facts["operations_without_estimate"]:
            found.append(("without an estimate", ", ".join(facts["operations_without_estimate"])))
        parts = {name: cycles for name, cycles in facts["cycles_by_part"].items() if cycles}
        cycles = facts["estimated_cycles"] or 1
        found.append(
            ("cycles by part", ", ".join(f"{name} {c / cycles:.0%}" for name, c in parts.items()))
        )
    found.append(("traced, compiled in", _seconds(facts)))
    return found


def _seconds(facts: dict[str, Any]) -> str:
    return (
        f"{facts['seconds_to_trace']:.0f} s, {facts['seconds_to_compile']:.0f} s "
        f"(effort {facts['effort']})"
    )


def _costliest(facts: dict[str, Any]) -> Table:
    table = Table("M cycles", "share", "times", "array", title_justify="left")
    # Its end says most.
    table.add_column("operation", overflow="fold")
    for one in facts["costliest"]:
        share = one["cycles"] / (facts["estimated_cycles"] or 1)
        table.add_row(
            f"{one['cycles'] / 1e6:,.1f}",
            f"{share:.1%}",
            f"{one['count']:.0f}",
            arrays(one["shape"]),
            one["where"],
        )
    return table


def arrays(shape: str) -> str:
    """A type with equal arrays of a tuple counted: `9 x f32[3,16], bf16[4]`."""
    counts = Counter(re.findall(r"\w+\[[\d,]*\]", shape))
    return ", ".join(f"{n} x {name}" if n > 1 else name for name, n in counts.items()) or shape


def _collectives(facts: dict[str, Any]) -> Table:
    table = Table("collective", "times", "GB sent by a chip", "of it across slices")
    for name, one in facts["collectives"].items():
        table.add_row(
            name,
            f"{one['count']:.0f}",
            f"{one['bytes'] / 1e9:.3f}",
            f"{one['across_slices'] / 1e9:.3f}",
        )
    return table
