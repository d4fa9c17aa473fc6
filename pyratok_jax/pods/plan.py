"""Compile the steps of a config for a topology, and report on each."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from pyratok_jax.data.buckets import Bucket, parse_buckets
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.nn.lowering import conv_lowering
from pyratok_jax.nn.trace import without_remat
from pyratok_jax.pods import generation
from pyratok_jax.pods.generation import generate_program, generator_program
from pyratok_jax.pods.programs import (
    STEPS,
    StepProgram,
    decode_program,
    tokenise_program,
    train_program,
)
from pyratok_jax.pods.report import measure
from pyratok_jax.pods.topology import Slice
from pyratok_jax.training.abstract import (
    AbstractTraining,
    abstract_batch,
    abstract_training,
    count,
    largest_bucket,
)
from pyratok_jax.training.abstract_generator import AbstractGenerator, abstract_generator
from pyratok_jax.training.distributed.sharding import make_mesh, replicated, row_groups
from pyratok_jax.training.loop.flops import traced_flops

ALL_STEPS = (*STEPS, *generation.STEPS)
# Of a prior's tokens where no bucket is named.
TOKENS_BUCKET = "17x256x256"
# Replicated arrays of at least this many values are named in the report.
LARGE = 2**20


@dataclasses.dataclass(frozen=True)
class CompileRequest:
    """What to compile.

    Attributes:
        where: one slice.
        slices: how many of them.
        chips: use the first n chips of the slice (0: all).
        steps: of `ALL_STEPS`.
        bucket: clip shape; None takes the config's largest.
        clips: of a batch of the tokenise and decode steps; 0: one for each chip, or for each group
            of chips that share a frame.
        effort: a key of `aot.EFFORTS`.
        tokenizer: of a prior, config of the training of the tokenizer whose tokens it has.
    """

    where: Slice
    slices: int = 1
    chips: int = 0
    steps: tuple[str, ...] = STEPS
    bucket: Bucket | None = None
    clips: int = 0
    effort: str = "full"
    tokenizer: ConfigDict | None = None


def choose_steps(config: ConfigDict, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the steps asked for; of all steps those that the config's task has.

    Raises:
        UserError: steps of another task.
    """
    own = generation.STEPS if config.task == "generator" else STEPS
    if set(asked) == set(ALL_STEPS):
        return own
    other = [step for step in asked if step not in own]
    if other:
        raise UserError(
            f"--step {','.join(other)}: the config's task is {config.task}, whose steps are "
            f"{', '.join(own)}"
        )
    return asked


def choose_bucket(config: ConfigDict, written: str | None) -> Bucket:
    """The bucket asked for, with the clips that the config gives it; the largest by default.

    Raises:
        UserError: malformed.
    """
    generates = config.task == "generator"
    if written is None and not generates:
        return largest_bucket(config)
    (bucket,) = parse_buckets([written or TOKENS_BUCKET])
    if generates:
        return bucket
    known = {b.name: b for b in parse_buckets(config.data.buckets)}
    return bucket if bucket.clips else known.get(bucket.name, bucket)


def compile_all(
    config: ConfigDict,
    devices: Sequence[jax.Device],
    request: CompileRequest,
    *,
    say: Callable[[str], None] = lambda _: None,
    keep_text: Callable[[str, str], None] | None = None,
) -> dict[str, Json]:
    """Everything that a report holds, see `report.measure` for each step's facts.

    Args:
        config: of the training.
        devices: of all slices.
        request: what to compile.
        say: prints what is being done.
        keep_text: takes a step's name and its optimised HLO.

    Raises:
        UserError: sizes that do not fit together.
    """
    mesh = make_mesh(config.mesh, list(devices))
    bucket = request.bucket or choose_bucket(config, None)
    training: AbstractTraining | AbstractGenerator
    if request.tokenizer is None:
        training = abstract_training(config)
    else:
        training = abstract_generator(config, request.tokenizer)
    everything: dict[str, PyTree] = {**training.frozen, **training.state.params}
    report: dict[str, Json] = {
        "topology": request.where.name,
        "accelerator_type": request.where.accelerator_type,
        "slices": request.slices,
        "chips": mesh.size,
        "chip": dataclasses.asdict(request.where.chip),
        "mesh": dict(mesh.shape),
        "bucket": bucket.name,
        "remat": config.remat,
        "accumulate": config.accumulate,
        "parameters": {"trainable": count(training.state.params), "frozen": count(training.frozen)},
        "large_arrays_on_every_chip": replicated(everything, mesh, LARGE),
        "versions": {"jax": jax.__version__, "libtpu": _libtpu_version()},
        "steps": {},
    }
    # The largest last: with effort "memory" the compiler keeps working on each program.
    for step in reversed(request.steps):
        say(f"{step}: {bucket.name} for {request.slices} x {request.where.name}")
        try:
            program = make_program(step, training, config, bucket, mesh, request.clips)
            timed = request.effort != "memory"
            flops = model_flops(step, config, bucket, program) if timed else 0.0
            report["steps"][step] = measure(
                program,
                mesh,
                request.where,
                effort=request.effort,
                model_flops=flops,
                keep_text=functools.partial(keep_text, step) if keep_text else None,
            )
        except ValueError as error:
            raise UserError(f"{step} step of bucket {bucket.name}: {error}") from error
    report["steps"] = {step: report["steps"][step] for step in request.steps}
    return report


def make_program(
    step: str,
    training: AbstractTraining | AbstractGenerator,
    config: ConfigDict,
    bucket: Bucket,
    mesh: Mesh,
    clips: int = 0,
) -> StepProgram:
    """One of the programs of a task."""
    if isinstance(training, AbstractGenerator):
        if step == "generator":
            return generator_program(training, config, bucket, mesh)
        rows = clips or mesh.size // mesh.shape["tensor"]
        return generate_program(training, config, bucket, mesh, rows)
    if step == "train":
        return train_program(training, config, bucket, mesh)
    wanted = clips or (mesh.size if not bucket.clips else math.gcd(bucket.clips, row_groups(mesh)))
    make = tokenise_program if step == "tokenise" else decode_program
    return make(training, config, bucket, mesh, wanted)


def model_flops(step: str, config: ConfigDict, bucket: Bucket, program: StepProgram) -> float:
    """Model FLOPs of one step: no rematerialisation, no padded channels."""
    if step in generation.STEPS:
        bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), program.arguments)
        with without_remat():
            return traced_flops(program.run, *bare)
    plain = ConfigDict(config.to_dict(), convert_dict=True)
    plain.remat, plain.language.remat, plain.accumulate = "none", "none", 1
    training = abstract_training(plain)
    # All clips cost the same: trace one.
    with conv_lowering("conv3d"):
        if step == "train":
            plain.batch_size = 1
            batch = abstract_batch(plain, dataclasses.replace(bucket, clips=1))
            seed = jax.ShapeDtypeStruct((), jnp.uint32)
            one = traced_flops(training.step, training.state, training.frozen, batch, seed)
        else:
            state, *rest = program.arguments
            single = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), rest)
            bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
            one = traced_flops(_unsplit(step, training), bare, *single)
    return one * program.clips


def _unsplit(step: str, training: AbstractTraining) -> Callable[..., PyTree]:
    from flax import nnx

    from pyratok_jax.tokenizer import detokenize_step, tokenize_step

    system = training.partition.merge(training.state.params, training.frozen)
    graph, _ = nnx.split(system.tokenizer)
    return tokenize_step(graph) if step == "tokenise" else detokenize_step(graph)


def _libtpu_version() -> str:
    from importlib import metadata

    try:
        return metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        return ""
