"""A trained tokenizer as a folder for others: safetensors, description, model card.

`load_tokenizer` reads it back, from disk or from the Hub, with the hash of the run's checkpoint, so
that tokens of either belong to both.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pyratok_jax.checkpoints.hub import local_folder
from pyratok_jax.checkpoints.verification import weights_hash
from pyratok_jax.checkpoints.weights import SAFETENSORS, load_checkpoint, read_config
from pyratok_jax.checkpoints.working_folder import read_parameters
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json, markdown
from pyratok_jax.io.atomic import new_folder
from pyratok_jax.io.documents import read_json, refusing
from pyratok_jax.io.remote import AnyPath
from pyratok_jax.tokenizer.loading import (
    DESCRIPTION,
    FROZEN,
    PARAMETERS,
    frozen_part,
    hash_of,
    locate,
    read_description,
    stored_config,
)

CARD, TRAINING = "README.md", "training_config.json"
_MEASURES = ("psnr", "psnr_video", "ssim", "lpips", "bpp")
_BUNDLED = {"backbone": "backbone", "language": "language_model"}


def publish(
    run: AnyPath, output: AnyPath, *, bundle: tuple[str, ...] = (), license: str = ""
) -> AnyPath:
    """Write the folder; it appears when it is complete: a remote one with its description.

    Args:
        run: working folder of a training, or its `checkpoints/STEP`.
        output: a folder that does not exist.
        bundle: of "backbone" and "language", the frozen weights that are copied into it.
        license: of the model card, an identifier of the Hub; empty: none is named.

    Raises:
        UserError: no trained tokenizer, frozen weights that cannot be found, or an output that
            exists.
    """
    workdir, step = checkpoint_of(run, output)
    description = read_description(workdir)
    trained = read_parameters(workdir, step)
    own = hash_of(description, stored_config(description, str(workdir / DESCRIPTION)), trained)
    arrays = {name: np.asarray(value) for name, value in trained.items()}
    with new_folder(output, DESCRIPTION) as folder:
        for name in bundle:
            said = description[_BUNDLED[name]]
            if said is None or str(said["spec"]).startswith("builtin:"):
                continue  # There is none, or every installation has it.
            bundle_frozen(frozen_part(workdir, said, name), folder / FROZEN / name)
            said["spec"] = f"{FROZEN}/{name}"
        write_parameters(folder / PARAMETERS, arrays, step)
        _write(folder / DESCRIPTION, description)
        card = card_of(workdir, description, step, license, own)
        if (workdir / "config.json").exists():
            (folder / TRAINING).write_bytes((workdir / "config.json").read_bytes())
            card += f"\nThe training's settings are in `{TRAINING}`.\n"
        (folder / CARD).write_text(card)
    return output


def card_of(
    workdir: AnyPath, description: Mapping[str, Json], step: int, license: str, own: str
) -> str:
    """`model_card` with what is measured in a working folder, if it is measured of this checkpoint.

    Args:
        workdir: the folder.
        description, step, license: as for `model_card`.
        own: `Tokenizer.checkpoint_hash` of what is published.

    Raises:
        UserError: its `metrics.json` is damaged.
    """
    path, advice = workdir / "metrics.json", "remove it, or have it measured again"
    metrics = read_json(path, dict[str, Json], advice=advice) if path.is_file() else {}
    if metrics.get("checkpoint") != own:
        metrics = {}  # They are of another step.
    with refusing(os.fspath(path), advice):
        return model_card(description, metrics, step, license)


def checkpoint_of(run: AnyPath, output: AnyPath) -> tuple[AnyPath, int]:
    """Working folder and step of the checkpoint that is published into a new folder.

    Args:
        run: working folder of a training, or its `checkpoints/STEP`.
        output: a folder that does not exist.

    Raises:
        UserError: no checkpoint, a published folder, or an output that exists.
    """
    if output.exists():
        raise UserError(f"--output {output} exists; name a new folder")
    workdir, step = locate(run)
    if step is None:
        raise UserError(f"{run} is a published folder already")
    return workdir, step


def write_parameters(path: Path, arrays: Mapping[str, np.ndarray], step: int) -> None:
    """Trained arrays as safetensors, with their step and hash, readable by everyone."""
    import safetensors.numpy

    # Not `save_file`, whose file is its owner's alone: a folder for others is readable by them.
    content = safetensors.numpy.save(
        {name: np.array(value, order="C") for name, value in arrays.items()},
        {"format": "flax", "step": str(step), "sha256": weights_hash(arrays)},
    )
    path.write_bytes(content)


def bundle_frozen(spec: str, target: Path) -> None:
    """Converted weights with one safetensors file in place of Orbax's folder.

    Args:
        spec: the folder of the weights, local, on a storage service or on the Hub.
        target: a folder that does not exist.
    """
    import safetensors.flax

    source = local_folder(spec)
    kind = read_json(source / "config.json", dict[str, Json]).get("kind")
    record = read_config(source, str(kind))  # It refuses what is damaged.
    shapes = {name: tuple(shape) for name, shape in record["shapes"].items()}
    arrays = load_checkpoint(source, shapes)
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.name != SAFETENSORS:
            shutil.copyfile(file, target / file.name)
    (target / SAFETENSORS).write_bytes(safetensors.flax.save(arrays))


def _write(path: Path, values: Mapping[str, Json]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n")


def model_card(
    description: Mapping[str, Json], metrics: Mapping[str, Json], step: int, license: str
) -> str:
    """The model card, with the numbers that the run's report measured.

    Args:
        description: the content of `tokenizer.json`.
        metrics: of the run's `metrics.json`; empty: nothing was measured at this step.
        step: of the checkpoint.
        license: see `publish`.
    """
    sizes = description["tokenizer"]
    head = ["---", "library_name: pyratok-jax", "tags: [video, tokenizer, jax]"]
    head += [f"license: {markdown.front_matter_value(license)}"] if license else []
    levels = [
        f"| {number} | 1 token frame per {dt} frame{'s' if dt > 1 else ''} | {ds} x {ds} |"
        for number, (dt, ds) in enumerate(sizes["grids"], start=1)
    ]
    language = description["language_model"]
    frozen = {"VAE": description["backbone"], "language model": language}
    lines = [
        *head, "---", "", "# Video tokenizer (PyraTok in JAX)", "",
        f"Weights after {step} training steps. {sizes['bits']} bits per token; quantiser "
        f"{sizes['quantizer']}; activations in {description['dtype']}.", "",
        "| level | time | pixels of a token |", "|---|---|---|", *levels, "",
        "## Use", "", "```python", "import pyratok_jax as pt", "",
        'tok = pt.load_tokenizer("THIS_FOLDER")  # or hf://ORG/NAME',
        "encoded = tok.encode(video)  # uint8 (t, h, w, 3)", "video = tok.decode(encoded)", "```",
        "", "## Frozen weights", "", "| part | where | SHA-256 |", "|---|---|---|",
        *(f"| {name} | {markdown.code(said['spec'])} | `{said['sha256'][:16]}` |"
          for name, said in frozen.items() if said),
        "", "A folder elsewhere: `load_tokenizer(..., backbone=DIR, language=DIR)`.", "",
        "## Measured", "", *_measured(metrics), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _measured(metrics: Mapping[str, Json]) -> list[str]:
    rows = metrics.get("heldout") or []
    if not rows:
        return ["Nothing was measured at this step."]
    names = [name for name in _MEASURES if any(row.get(name) is not None for row in rows)]
    lines = [f"| held-out clips | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        values = (row.get(name) for name in names)
        shown = (f"{value:.4g}" if isinstance(value, int | float) else "-" for value in values)
        lines.append(f"| {markdown.cell(row['name'])} | {' | '.join(shown)} |")
    lines += ["", "PSNR in dB and SSIM: higher is better; LPIPS (VGG): lower; bpp: bits per pixel."]
    return lines
