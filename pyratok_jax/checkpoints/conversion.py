"""The core that every model's converter shares: match, refuse, stream, write.

A converter says with `Entry` records where each of its model's arrays comes from. `match` checks
them against a source and the model's shapes, both ways; nothing is written unless every array is
found, every tensor is used or knowingly skipped, and every shape fits. Arrays are then made one at
a time, written to a temporary folder and moved into place whole (`weights` reads them).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyratok_jax.assets.fetch import sha256_of
from pyratok_jax.checkpoints.foreign.sources import TensorSource
from pyratok_jax.checkpoints.verification import record_hash, weights_hash
from pyratok_jax.checkpoints.weights import FORMAT, as_dtype, as_sharding
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.atomic import new_folder

if TYPE_CHECKING:
    import jax
    from jax.typing import DTypeLike

    from pyratok_jax.checkpoints.weights import Placement

Transform = Callable[[np.ndarray], np.ndarray]
_LISTED = 5  # names shown per kind of problem
# Of quantised weights, or of no weights at all: without their scales they are other numbers.
_NO_REALS = frozenset(
    ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
     "complex64", "complex128", "I8", "I16", "I32", "I64")
)  # fmt: skip


def identity(x: np.ndarray) -> np.ndarray:
    """The tensor as it is."""
    return x


def linear(x: np.ndarray) -> np.ndarray:
    """(O, I) -> (I, O); a 1x1 convolution's trailing axes of length one are dropped first."""
    return x.reshape(x.shape[:2]).T


def conv2d(x: np.ndarray) -> np.ndarray:
    """(O, I, kH, kW) -> (kH, kW, I, O)."""
    return x.transpose(2, 3, 1, 0)


def conv3d(x: np.ndarray) -> np.ndarray:
    """(O, I, kT, kH, kW) -> (kT, kH, kW, I, O)."""
    return x.transpose(2, 3, 4, 1, 0)


def flat(x: np.ndarray) -> np.ndarray:
    """(C, 1, ..., 1) -> (C,)."""
    return x.reshape(-1)


class Entry(NamedTuple):
    """Where (a part of) one of our arrays comes from.

    Attributes:
        source: the tensor's name in the file.
        target: our array's name: the path in the NNX model joined by dots.
        transform: from the tensor's layout to ours.
        slot: index on the leading axis, where our array stacks one tensor per layer.
    """

    source: str
    target: str
    transform: Transform = identity
    slot: int | None = None


@dataclass
class ConversionPlan:
    """A checked assignment of a source's tensors to a model's arrays.

    Attributes:
        source: the tensors.
        shapes: name -> shape of every array the model has.
        parts: name -> its entries.
        skipped: source tensors left out on purpose, with the reason for each.
        missing: what the model needs and the source lacks: `array <- tensor`.
        unexpected: source tensors that nothing accounts for.
        wrong: tensors that do not have the shape the model's configuration asks for.
        no_reals: tensors of integers or complex numbers.
    """

    source: TensorSource
    shapes: dict[str, tuple[int, ...]]
    parts: dict[str, list[Entry]]
    skipped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    no_reals: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the source fits the model exactly, both ways."""
        return not (self.missing or self.unexpected or self.wrong or self.no_reals)

    def check(self) -> ConversionPlan:
        """Return the plan when it is complete.

        Raises:
            UserError: naming the missing, unexpected and wrongly shaped keys.
        """
        if self.complete:
            return self
        problems = []
        for title, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of the wrong shape", self.wrong),
            ("of no real numbers", self.no_reals),
        ):
            if names:
                more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
                problems.append(f"{len(names)} keys {title}: {'; '.join(names[:_LISTED])}{more}")
        raise UserError(
            f"{self.source.path} does not fit the model: {'. '.join(problems)}. Nothing was "
            "written; check that the weights and the configuration belong together"
        )

    def report(self) -> str:
        """A few lines: how many tensors were used, and what was skipped and why."""
        reasons: dict[str, int] = {}
        for reason in self.skipped.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        used = sum(len(entries) for entries in self.parts.values())
        values = sum(int(np.prod(shape)) for shape in self.shapes.values())
        lines = [f"{used} tensors -> {len(self.shapes)} arrays, {values:,} values"]
        lines += [f"skipped {count} tensors: {reason}" for reason, count in reasons.items()]
        return "\n".join(lines)

    def array(self, name: str, dtype: np.dtype, out: np.ndarray | None = None) -> np.ndarray:
        """Make one array, reading its tensors one by one (into `out` where that is given).

        Raises:
            UserError: a tensor cannot be read, or has values that are not finite.
        """
        entries = self.parts[name]
        if out is None:
            out = np.empty(self.shapes[name], dtype)
        for entry in entries:
            part = out if entry.slot is None else out[entry.slot, ...]
            with np.errstate(over="ignore"):  # What it comes to is refused below.
                part[...] = entry.transform(self.source.read(entry.source))
            if not np.isfinite(part).all():
                raise UserError(
                    f"{self.source.path}: {entry.source} has values that are not finite as "
                    f"{dtype.name}; get other weights, or convert to float32"
                )
        return out

    def arrays(self, dtype: DTypeLike) -> Iterator[tuple[str, np.ndarray]]:
        """All arrays, one at a time. `dtype` applies to floating values."""
        for name in self.shapes:
            yield name, self.array(name, as_dtype(dtype))


def match(
    source: TensorSource,
    entries: Sequence[Entry],
    shapes: Mapping[str, Sequence[int]],
    *,
    skip: Callable[[str], str | None] = lambda key: None,
) -> ConversionPlan:
    """Check a converter's entries against a source and the model's shapes, both ways.

    Args:
        source: the tensors; only names and shapes are looked at.
        entries: where each array comes from, written for the model's configuration.
        shapes: name -> shape of every array of the model (`modules.module_shapes`).
        skip: for a tensor that no entry uses: the reason to leave it out, or None.

    Returns:
        The plan, with every problem listed; call `check()` on it to refuse an incomplete one.
    """
    plan = ConversionPlan(source, {k: tuple(v) for k, v in shapes.items()}, {k: [] for k in shapes})
    used = set()
    for entry in entries:
        used.add(entry.source)
        if entry.target not in plan.shapes:
            plan.wrong.append(f"{entry.source} (the model has no array {entry.target})")
        elif entry.source not in source:
            plan.missing.append(f"{entry.source} (for {entry.target})")
        elif (dtype := source.info[entry.source].dtype) in _NO_REALS:
            plan.no_reals.append(f"{entry.source} ({dtype}, for {entry.target})")
        else:
            _place(plan, entry)
    for name, parts in plan.parts.items():
        stacked = [entry.slot for entry in parts if entry.slot is not None]
        expected = plan.shapes[name][0] if stacked else 1
        known = plan.missing + plan.wrong + plan.no_reals
        if len(parts) < expected and not any(name in text for text in known):
            plan.missing.append(f"{name} ({len(parts)} of {expected} tensors assigned)")
    for key in source.keys():  # noqa: SIM118 - no mapping
        if key not in used:
            reason = skip(key)
            if reason:
                plan.skipped[key] = reason
            else:
                plan.unexpected.append(key)
    return plan


def _place(plan: ConversionPlan, entry: Entry) -> None:
    shape = plan.source.info[entry.source].shape
    wanted = plan.shapes[entry.target]
    if entry.slot is not None:
        wanted = wanted[1:]
    try:
        # A view of one value: transforms see the shape without any memory behind it.
        got = entry.transform(np.broadcast_to(np.float32(0), shape)).shape
    except ValueError:
        got = None
    if got == wanted:
        plan.parts[entry.target].append(entry)
    else:
        plan.wrong.append(
            f"{entry.source} has {list(shape)}, the model's {entry.target} needs {list(wanted)}"
        )


def check_apart(output: str | Path, sources: Iterable[str | Path]) -> None:
    """Refuse an output folder whose replacement would remove what is converted.

    Raises:
        UserError: a source is the folder itself, or lies in it.
    """
    target = Path(output).resolve()
    for source in map(Path, sources):
        if target in (source.resolve(), *source.resolve().parents):
            raise UserError(
                f"{output} holds {source.name}, which is converted, and would be replaced with it; "
                "name another folder"
            )


def write_checkpoint(
    output: str | Path,
    *,
    kind: str,
    config: Mapping[str, Json],
    plan: ConversionPlan,
    dtype: str = "float32",
    overwrite: bool = False,
    copy: Sequence[Path] = (),
    progress: Callable[[str], None] = lambda name: None,
) -> Path:
    """Convert a plan into a checkpoint folder: everything, or nothing.

    Arrays are streamed through a scratch file in the temporary folder, so that memory holds one
    tensor at a time whatever the model's size. The folder appears under its name when complete.

    Args:
        output: the folder to make.
        kind: of model, e.g. `wan_vae` or `language_model`; checked when loading.
        config: the model's configuration, JSON-able.
        plan: a matched plan; refused when incomplete.
        dtype: dtype of the written arrays.
        overwrite: replace an existing folder.
        copy: files to put beside the weights (a tokenizer's).
        progress: called with each array's name when it is done.

    Raises:
        UserError: incomplete plan, existing output, one that holds the sources, or a disk that is
            full or not writable.
    """
    output = Path(output)
    check_apart(output, plan.source.files)
    if output.exists() and not overwrite and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists; name a new folder or pass --overwrite")
    plan.check()
    value_type = as_dtype(dtype)
    with new_folder(output) as folder:
        scratch = folder / ".scratch"
        arrays = _stream(plan, value_type, scratch, progress)
        digest = weights_hash(arrays)
        _save_arrays(folder / "weights", arrays)
        arrays.clear()
        scratch.unlink()
        record: dict[str, Json] = {
            "format": FORMAT,
            "kind": kind,
            "dtype": dtype,
            "sha256": digest,
            "source": [file.name for file in plan.source.files],
            "shapes": {name: list(shape) for name, shape in plan.shapes.items()},
            "config": dict(config),
            "config_sha256": record_hash(dict(config)),
            "files": {},
        }
        for file in copy:
            shutil.copyfile(file, folder / file.name)
            record["files"][file.name] = sha256_of(folder / file.name)
        (folder / "config.json").write_text(json.dumps(record, indent=1) + "\n")
    return output


def _stream(
    plan: ConversionPlan, dtype: np.dtype, scratch: Path, progress: Callable[[str], None]
) -> dict[str, np.ndarray]:
    """Fill a memory-mapped file with all arrays, and return views of it."""
    sizes = {name: int(np.prod(shape)) for name, shape in plan.shapes.items()}
    total = sum(sizes.values())
    free = shutil.disk_usage(scratch.parent).free
    if free < 2 * total * dtype.itemsize:
        raise UserError(
            f"{scratch.parent.parent}: {free / 1e9:.1f} GB free, the conversion needs "
            f"{2 * total * dtype.itemsize / 1e9:.1f} GB; choose another output folder"
        )
    block = np.memmap(scratch, dtype, "w+", shape=(max(total, 1),))
    arrays, start = {}, 0
    for name, size in sizes.items():
        view = block[start : start + size].reshape(plan.shapes[name])
        arrays[name] = plan.array(name, dtype, out=view)
        start += size
        progress(name)
    block.flush()
    return arrays


def _save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    import orbax.checkpoint as ocp

    # A limit on what is in flight keeps memory flat for models larger than memory.
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=1)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(dict(arrays)))


def load_arrays(
    plan: ConversionPlan, *, dtype: DTypeLike = "float32", sharding: Placement = None
) -> dict[str, jax.Array]:
    """Make a plan's arrays on the devices directly, without a folder in between.

    Host memory holds one array at a time and every device only its shards.
    """
    import jax

    plan.check()
    result: dict[str, jax.Array] = {}
    for name, array in plan.arrays(dtype):
        place = as_sharding(sharding, name, array.shape)
        result[name] = jax.make_array_from_callback(array.shape, place, array.__getitem__)
    return result
