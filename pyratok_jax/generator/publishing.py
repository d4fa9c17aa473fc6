"""A trained prior as a folder for others: safetensors, `generator.json`, model card.

`load_generator` reads it back, from disk or from the Hub, with the hash of the run's checkpoint.
"""

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyratok_jax.checkpoints.working_folder import read_parameters
from pyratok_jax.errors import UserError
from pyratok_jax.generator.loading import (
    DESCRIPTION,
    TOKENIZER,
    GeneratorDescription,
    read_description,
    restored_prior,
    write_description,
)
from pyratok_jax.io import markdown
from pyratok_jax.io.atomic import new_folder
from pyratok_jax.io.documents import checked, parse_json, read_json, read_lines, refusing
from pyratok_jax.io.mirror import cached_folder
from pyratok_jax.io.remote import AnyPath, any_path
from pyratok_jax.tokenizer import load_tokenizer
from pyratok_jax.tokenizer.loading import FROZEN, PARAMETERS, frozen_part, locate, tokenizer_folder
from pyratok_jax.tokenizer.publishing import (
    CARD,
    TRAINING,
    bundle_frozen,
    checkpoint_of,
    publish,
    write_parameters,
)

_LOGGED = ("nats", "random_nats", "bit_accuracy")
_FIGURES = {"nats": "nats per token", "fvd": "FVD", "dynamic_degree": "dynamic degree"}
_FAITHFUL = ("prompts", "number", "colour", "shape", "count", "motion", "everything")


@dataclasses.dataclass(frozen=True)
class Publication:
    """What is published, and how.

    Attributes:
        bundle: of "tokenizer" and "language", what is copied into the folder.
        license: of the model card, an identifier of the Hub; empty: none is named.
        tokenizer: how the folder names its tokenizer, where others have it elsewhere than the
            training had; it is checked. Empty: as the training named it.
        results: `--output` folders of `evaluate --task generation`, for the card.
    """

    bundle: tuple[str, ...] = ()
    license: str = ""
    tokenizer: str = ""
    results: tuple[str, ...] = ()


def is_generator(run: AnyPath) -> bool:
    """Whether a folder, or that of a `checkpoints/STEP`, holds a prior."""
    workdir = run.parent.parent if run.parent.name == "checkpoints" else run
    return (workdir / DESCRIPTION).is_file()


def publish_generator(run: AnyPath, output: AnyPath, how: Publication = Publication()) -> AnyPath:
    """Write the folder; it appears when it is complete: a remote one with its description.

    Args:
        run: working folder of a training, or its `checkpoints/STEP`.
        output: a folder that does not exist.
        how: see `Publication`.

    Raises:
        UserError: no trained prior, parts that cannot be found, another tokenizer than that of
            the training, results of another checkpoint, or an output that exists.
    """
    workdir, step = checkpoint_of(run, output)
    description = read_description(workdir)
    if how.tokenizer:
        _check_tokenizer(how.tokenizer, description)
        description = dataclasses.replace(description, tokenizer=how.tokenizer)
    arrays = {name: np.asarray(value) for name, value in read_parameters(workdir, step).items()}
    own = restored_prior(workdir, description, arrays)[1] if how.results else ""
    measured = [_results(folder, own) for folder in how.results]
    with new_folder(output, DESCRIPTION) as folder:
        if "tokenizer" in how.bundle:
            _bundle_tokenizer(description.tokenizer, folder / TOKENIZER)
            description = dataclasses.replace(description, tokenizer=TOKENIZER)
        said = description.language
        shipped = said is None or not said.spec or said.spec.startswith("builtin:")
        if "language" in how.bundle and said is not None and not shipped:
            source = frozen_part(workdir, dataclasses.asdict(said), "language")
            bundle_frozen(source, folder / FROZEN / "language")
            said = dataclasses.replace(said, spec=f"{FROZEN}/language")
            description = dataclasses.replace(description, language=said)
        write_parameters(folder / PARAMETERS, arrays, step)
        write_description(folder, description)
        count = sum(int(value.size) for value in arrays.values())
        card = model_card(description, count, step, _logged(workdir, step), measured, how.license)
        if (workdir / "config.json").exists():
            (folder / TRAINING).write_bytes((workdir / "config.json").read_bytes())
            card += f"\nThe training's settings are in `{TRAINING}`.\n"
        (folder / CARD).write_text(card)
    return output


def _check_tokenizer(spec: str, description: GeneratorDescription) -> None:
    if load_tokenizer(spec).checkpoint_hash != description.tokenizer_hash:
        raise UserError(f"--tokenizer {spec} is not the one whose tokens the prior was trained on")


def _bundle_tokenizer(spec: str, target: Path) -> None:
    source = tokenizer_folder(spec)
    _, step = locate(source)
    if step is None:
        shutil.copytree(cached_folder(source), target)
    else:
        publish(source, target, bundle=("backbone", "language"))


def _logged(workdir: AnyPath, step: int) -> dict[str, float]:
    """What the training logged last up to a step, of itself and of held-out tokens."""
    path, found = workdir / "metrics.jsonl", dict[str, float]()
    for number, line in enumerate(read_lines(path) if path.is_file() else (), start=1):
        where, advice = f"{path}, line {number}", "remove it: the training does not need it"
        row = checked(parse_json(line, where), dict[str, float], where, advice)
        if row.get("step", 0) <= step:
            found |= {k: v for k, v in row.items() if k.rpartition("/")[2] in _LOGGED}
    return found


def _results(folder: str, own: str) -> list[str]:
    """The part of the card that says what an evaluation measured.

    Args:
        folder: `--output` of the evaluation.
        own: hash of the prior that is published.

    Raises:
        UserError: no results of the task generation, or not of this prior.
    """
    path = any_path(folder) / "results.json"
    found = read_json(path, dict[str, Any])
    if found.get("task") != "generation":
        raise UserError(f"--results {folder}: not of evaluate --task generation")
    with refusing(os.fspath(path), "evaluate again"):
        measured = str(found.get("checkpoint", {}).get("generator") or "none named")
        if measured != own:
            raise UserError(
                f"--results {folder}: expected results of the prior {own[:12]}, they are of "
                f"another ({measured[:12]}); evaluate this checkpoint again"
            )
        return _measured(found)


def model_card(
    description: GeneratorDescription,
    parameters: int,
    step: int,
    logged: Mapping[str, float],
    results: Sequence[Sequence[str]],
    license: str,
) -> str:
    """The model card, with the numbers that the training logged and that were evaluated.

    Args:
        description: the content of `generator.json`.
        parameters: trained values.
        step: of the checkpoint.
        logged: last row of the training.
        results: of each evaluation, the lines that say what it measured.
        license: see `Publication`.
    """
    sizes, (frames, height, width) = description.prior, description.size
    head = ["---", "library_name: pyratok-jax", "tags: [video, text-to-video, jax]"]
    head += [f"license: {markdown.front_matter_value(license)}"] if license else []
    said = description.language
    language = "none" if said is None else "the tokenizer's"
    if said is not None and said.spec:
        language = markdown.code(said.spec)
    logs = [f"| {name} | {value:.4g} |" for name, value in logged.items()]
    lines = [
        *head, "---", "", "# Prior over video tokens (PyraTok in JAX)", "",
        f"{parameters / 1e6:.1f} M parameters after {step} training steps: order "
        f"`{sizes['order']}`, head `{sizes['head']}`, {sizes['layers']} layers of "
        f"{sizes['width']}, conditioned on {sizes['condition']}. Trained on clips of "
        f"{frames}x{height}x{width} at {description.fps:g} frames per second.", "",
        "## Use", "",
        '    python -m pyratok_jax.generate --checkpoint THIS_FOLDER --prompt "..." --output out',
        "", "```python", "import pyratok_jax as pt", "",
        'generator = pt.load_generator("THIS_FOLDER")  # or hf://ORG/NAME',
        'clip, = generator.generate("...")', "video = generator.decode(clip)", "```", "",
        "## Frozen parts", "", f"Tokenizer: {markdown.code(description.tokenizer)} "
        f"(`{description.tokenizer_hash[:16]}`). Language model: {language}.", "",
        "## Measured", "",
        *(["| logged last by the training | |", "|---|---|", *logs, ""] if logs else []),
        *(line for one in results for line in one),
        *([] if logs or results else ["Nothing was measured.", ""]),
    ]  # fmt: skip
    return "\n".join(lines)


def _is_set(name: str, value: Any) -> bool:
    """Whether a setting differs from what the training or the protocol leaves open."""
    if name in ("guidance", "choice_temperature"):
        return value is not None and value >= 0
    return value not in (None, 1) if name in ("candidates", "repeats") else bool(value)


def _measured(results: Mapping[str, Any]) -> list[str]:
    """Of one evaluation: what was asked, and its tables."""
    settings, metrics = results["protocol"], results["metrics"]
    named = (
        "samples",
        "frames",
        "side",
        "guidance",
        "candidates",
        "temperature",
        "top_p",
        "choice_temperature",
        "steps",
        "things",
        "repeats",
    )
    given = {name: settings.get(name) for name in named}
    said = ", ".join(f"{name} {value}" for name, value in given.items() if _is_set(name, value))
    command = markdown.code(f"evaluate --task generation --data {results['data']}")
    lines = [f"{command}: {markdown.cell(said)}.", ""]
    if metrics.get("faithfulness"):
        lines += [f"| {' | '.join(_FAITHFUL)} |", "|---" * len(_FAITHFUL) + "|"]
        for row in metrics["faithfulness"]:
            cells = (row[name] for name in _FAITHFUL)
            shown = (f"{x:.1%}" if isinstance(x, float) else markdown.cell(x) for x in cells)
            lines.append(f"| {' | '.join(shown)} |")
        lines.append("")
    for key, title in (
        ("nats", "nats per token"),
        ("fvd", "FVD"),
        ("dynamic_degree", "dynamic degree"),
    ):
        if metrics.get(key) is not None:
            lines.append(f"{title}: {metrics[key]:.3f}. ")
    return [*lines, ""]
