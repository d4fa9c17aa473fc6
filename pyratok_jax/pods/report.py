"""One program compiled and measured: memory, FLOPs, collectives, estimated time; as tables too."""

import dataclasses
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from pyratok_jax.io import Json
from pyratok_jax.pods.aot import HbmUsage, compile_into
from pyratok_jax.pods.hlo import HloProgram
from pyratok_jax.pods.programs import StepProgram, for_tpu
from pyratok_jax.pods.topology import GIBIBYTE, Slice

# Named scopes of the model; an operation counts for the first one that encloses it.
PARTS = (
    "frozen", "vae_encoder", "vae_decoder", "levels", "lpips", "ssim", "codebook", "language_model",
    "prior_latents", "prior_attention", "prior_layers", "prior_head",
)  # fmt: skip
ASSUMPTIONS = (
    "cycles are the compiler's estimates, all operations one after the other, loops with a stated "
    "count that often, loops without one once; operations without an estimate count 0",
    "cycles of kernels are those of their instructions, as scheduled by the compiler, and at least "
    "those of their products at the peak; waiting for memory is not in them",
    "seconds are cycles over the published clock",
    "collectives that the compiler gives no cycles are hidden behind the rest in 'step seconds'; "
    "'without overlap' adds the bytes that a chip sends over the rate of its links",
    "model FLOPs are two per multiply-add of matrix products and convolutions in the traced step "
    "without rematerialisation and padded channels, zero padding left out; MFU is these over the "
    "time and the published bfloat16 peak",
)


def measure(
    program: StepProgram,
    mesh: Mesh,
    where: Slice,
    *,
    effort: str = "full",
    model_flops: float = 0.0,
    keep_text: Callable[[str], None] | None = None,
) -> dict[str, Json]:
    """Compile a program; what is known of it, JSON-able.

    Running out of memory is a result (`memory.exceeded`); any other failure is `error`.

    Args:
        program: from `programs`.
        mesh: of the devices of the slices.
        where: one slice.
        effort: a key of `aot.EFFORTS`.
        model_flops: of one step over all chips, for the MFU.
        keep_text: is called with the optimised program's text.
    """
    begin = time.perf_counter()
    with for_tpu(mesh):
        jitted = jax.jit(
            program.run, donate_argnums=program.donated, out_shardings=program.out_shardings
        )
        lowered = jitted.lower(*program.arguments)
    traced = time.perf_counter()
    facts: dict[str, Json] = {"clips": program.clips, "effort": effort}
    # A failed compilation may still be writing its dumps while the folder is removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        answer = compile_into(lowered, effort, Path(folder))
        facts["seconds_to_trace"] = round(traced - begin, 1)
        facts["seconds_to_compile"] = round(time.perf_counter() - traced, 1)
        facts["error"] = answer.error
        if answer.memory is not None:
            memory = dataclasses.replace(answer.memory, capacity=where.chip.memory)
            facts["memory"] = memory_facts(memory)
            if not memory.fits:
                facts["error"] = ""
        if answer.text:
            if keep_text is not None:
                keep_text(answer.text)
            timed = effort != "memory"
            if timed:
                facts |= work_facts(answer.costs)
            optimised = answer.program(where.chip)
            facts |= program_facts(optimised, where, mesh.size, model_flops, timed)
    return facts | drawing_facts(program, facts)


def drawing_facts(program: StepProgram, facts: dict[str, Json]) -> dict[str, float]:
    """Rates of a sampling step; none of another step, or without an estimated time."""
    if not program.tokens or "step_seconds" not in facts:
        return {}
    each = 1 / facts["step_seconds"]
    return {
        "tokens_per_second": each * program.tokens * program.clips,
        "frames_per_second": each * program.frames * program.clips,
        "frames_per_second_of_a_clip": each * program.frames,
    }


def memory_facts(memory: HbmUsage) -> dict[str, Json]:
    """Memory with its verdict, in bytes."""
    return {
        "verdict": memory.verdict,
        "fits": memory.fits,
        "used": memory.used,
        "capacity": memory.capacity,
        "exceeded": memory.exceeded,
        "by_kind": {
            "arguments": memory.arguments,
            "outputs": memory.outputs,
            "aliased": memory.aliased,
            "temporaries": memory.temporaries,
            "code": memory.code,
        },
    }


def work_facts(costs: dict[str, float]) -> dict[str, float]:
    """What the compiler counts per chip; loops' bodies once."""
    return {
        "compiler_flops_loops_once": costs.get("flops", 0.0),
        "compiler_bytes_loops_once": costs.get("bytes accessed", 0.0),
    }


def program_facts(
    program: HloProgram, where: Slice, chips: int, model_flops: float, timed: bool = True
) -> dict[str, Json]:
    """Cycles, seconds, MFU, collectives and costliest operations of an optimised program.

    Not `timed`: collectives alone; before code generation few operations have an estimate.
    """
    chip = where.chip
    collectives = program.collectives(where.count if chips > where.count else 0)
    seconds = program.cycles / chip.clock
    sending = sum(one.bytes - one.across_slices for one in collectives.values()) / chip.links
    ideal = model_flops / (chips * chip.peak)
    traffic = {
        "collectives": {
            name: {"count": one.count, "bytes": one.bytes, "across_slices": one.across_slices}
            for name, one in sorted(collectives.items())
        },
        "largest_gathers": [
            {"where": name, "array": shape, "bytes": size}
            for name, shape, size in program.gathers()[:5]
        ],
    }
    if not timed or not program.cycles:
        return traffic
    return traffic | {
        "estimated_cycles": program.cycles,
        "loops_without_count": program.open_loops,
        "operations_without_estimate": program.unknown,
        "step_seconds": seconds,
        "step_seconds_without_overlap": seconds + sending,
        "model_flops": model_flops,
        "mfu": ideal / seconds if seconds else 0.0,
        "mfu_without_overlap": ideal / (seconds + sending) if seconds else 0.0,
        "cycles_by_part": program.by_part(PARTS),
        "costliest": [
            {"where": c.where, "shape": c.shape, "count": c.count, "cycles": c.cycles}
            for c in program.costliest(10)
        ],
    }


def show(report: dict[str, Json], console: Console) -> None:
    """Print a report."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
    console.print(
        f"\n{report['slices']} x {report['topology']} ({report['chips']} chips; "
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


def _step(step: str, facts: dict[str, Json]) -> Table:
    table = Table(title=f"{step}, {facts['clips']} clips", title_justify="left", show_header=False)
    for name, value in fact_rows(facts):
        table.add_row(name, value)
    return table


def fact_rows(facts: dict[str, Json]) -> list[tuple[str, str]]:
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
        if "tokens_per_second" in facts:
            found.append(
                (
                    "drawn",
                    f"{facts['tokens_per_second']:,.0f} tokens/s, "
                    f"{facts['frames_per_second']:,.2f} frames/s, of one clip "
                    f"{facts['frames_per_second_of_a_clip']:,.2f} frames/s",
                )
            )
        if facts["operations_without_estimate"]:
            found.append(("without an estimate", ", ".join(facts["operations_without_estimate"])))
        parts = {name: cycles for name, cycles in facts["cycles_by_part"].items() if cycles}
        cycles = facts["estimated_cycles"] or 1
        found.append(
            ("cycles by part", ", ".join(f"{name} {c / cycles:.0%}" for name, c in parts.items()))
        )
    found.append(("traced, compiled in", _seconds(facts)))
    return found


def _seconds(facts: dict[str, Json]) -> str:
    return (
        f"{facts['seconds_to_trace']:.0f} s, {facts['seconds_to_compile']:.0f} s "
        f"(effort {facts['effort']})"
    )


def _costliest(facts: dict[str, Json]) -> Table:
    table = Table("M cycles", "share", "times", "array", title_justify="left")
    # The end of a name is the most specific.
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


def _collectives(facts: dict[str, Json]) -> Table:
    table = Table("collective", "times", "GB sent by a chip", "of it across slices")
    for name, one in facts["collectives"].items():
        table.add_row(
            name,
            f"{one['count']:.0f}",
            f"{one['bytes'] / 1e9:.3f}",
            f"{one['across_slices'] / 1e9:.3f}",
        )
    return table
