"""One program compiled and measured: memory, work, traffic, and the time that it should take."""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from pyratok_jax.pods.chips import Slice
from pyratok_jax.pods.compiling import compile_into
from pyratok_jax.pods.hlo import Program as Compiled
from pyratok_jax.pods.memory import Memory
from pyratok_jax.pods.programs import Program, for_tpu

# Named scopes of the model, the first that an operation lies in counts.
PARTS = (
    "frozen", "vae_encoder", "vae_decoder", "levels", "lpips", "ssim", "codebook", "language_model",
)  # fmt: skip
ASSUMPTIONS = (
    "cycles are the compiler's estimates, all operations one after the other, loops with a stated "
    "count that often, loops without one once; operations without an estimate count 0",
    "seconds are cycles over the published clock",
    "collectives that the compiler gives no cycles are hidden behind the rest in 'step seconds'; "
    "'without overlap' adds the bytes that a chip sends over the rate of its links",
    "model FLOPs are two per multiply-add of matrix products and convolutions in the traced step "
    "without rematerialisation and padded channels, zero padding left out; MFU is these over the "
    "time and the published bfloat16 peak",
)


def measure(
    program: Program,
    mesh: Mesh,
    where: Slice,
    *,
    effort: str = "full",
    model_flops: float = 0.0,
    keep_text: Any = None,
) -> dict[str, Any]:
    """Compile a program and say all that is known of it.

    A refusal for want of memory is a result (`memory.exceeded`); any other is `error`.

    Args:
        program: from `programs`.
        mesh: of the devices of the slices.
        where: one slice.
        effort: a key of `compiling.EFFORTS`.
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
    facts: dict[str, Any] = {"clips": program.clips, "effort": effort}
    with tempfile.TemporaryDirectory() as folder:
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
            facts |= program_facts(Compiled(answer.text), where, mesh.size, model_flops, timed)
    return facts


def memory_facts(memory: Memory) -> dict[str, Any]:
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
    program: Compiled, where: Slice, chips: int, model_flops: float, timed: bool = True
) -> dict[str, Any]:
    """Cycles, seconds, MFU, collectives and costliest operations of an optimised program.

    Not `timed`: collectives alone. Before code is made few operations have an estimate.
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
