"""A training config is checked as a whole before anything is loaded or written.

`check_config` reads configs and headers alone: no weights, no data, no devices. What it refuses is
one line that names the key.
"""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from ml_collections import ConfigDict

from pyratok_jax.checkpoints.pretrained import backbone_config, check_language, check_vision
from pyratok_jax.data.buckets import parse_buckets
from pyratok_jax.data.config import data_config
from pyratok_jax.errors import UserError, short
from pyratok_jax.generator.loading import generator_folder
from pyratok_jax.losses.settings import PriorObjective
from pyratok_jax.models.prior.config import PriorConfig, Sampling
from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.pyratok.quantizers.registry import quantizer_kind
from pyratok_jax.models.sizes import LANGUAGE_MODELS, VAES, VISION_MODELS
from pyratok_jax.models.vae_families import vae_family
from pyratok_jax.tokenizer.clips import tokenizer_sizes
from pyratok_jax.tokenizer.loading import locate, read_description, tokenizer_folder
from pyratok_jax.training.config_keys import MOST, flattened, keys_of, known_values
from pyratok_jax.training.optimizer import make_optimizer
from pyratok_jax.training.registry import check_evaluators
from pyratok_jax.training.system import TokenizerLoss, tokenizer_config

T = TypeVar("T")
LANGUAGE_CONVERTER = "weights_conversion.language_model"
_STARTED = ("tokenizer", "generator", "backbone")  # tasks that read config.init_from


def check_config(config: ConfigDict) -> None:
    """Refuse what no training can be made of.

    Raises:
        UserError: the first key whose value is of another type, out of its range, unknown, or does
            not go with the frozen weights that the config names.
    """
    _check_values(config)
    make_optimizer(config.optimizer, config.steps)
    check_evaluators(config.evaluators)
    if config.init_from.startswith("builtin:"):
        # Refuses names of what is not shipped.
        find = generator_folder if config.task == "generator" else tokenizer_folder
        find(config.init_from)
    elif config.init_from and "://" not in config.init_from and not Path(config.init_from).exists():
        raise UserError(f"config.init_from: {config.init_from} does not exist")
    if config.init_from and config.task not in _STARTED:
        raise UserError(
            f"config.init_from: a training of the task {config.task!r} always begins afresh; leave "
            "it empty"
        )
    checks: dict[str, Callable[[ConfigDict], None]] = {
        "tokenizer": _check_tokenizer,
        "projector": _check_projector,
        "generator": _check_generator,
    }
    checks.get(config.task, lambda _: None)(config)


def _check_values(config: ConfigDict) -> None:
    for key, value in flattened(config):
        known = known_values(config.task, key)
        if known is not None and not known[0].holds(value):
            large = type(value) is int and value > MOST
            expected = known[0].expected + (f", at most {MOST}" if large else "")
            raise UserError(f"config.{key} is {short(value, 80)!r}, expected {expected}")
    for pair in config.optimizer.groups:
        fits = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)
        if not fits or isinstance(pair[1], bool) or not isinstance(pair[1], int | float):
            raise UserError(f"config.optimizer.groups: {pair!r} is no pair (pattern, factor)")
        try:
            re.compile(pair[0])
        except re.error as error:
            raise UserError(f"config.optimizer.groups: {pair[0]!r}: {error}") from error


def _naming(key: str, make: Callable[[], T]) -> T:
    """What `make` gives; its errors with the key before them."""
    try:
        return make()
    except (TypeError, ValueError, KeyError, UserError) as error:
        text = str(error)
        if text.startswith("config."):
            raise UserError(text) from error
        # Errors of dataclasses begin with the name of a field.
        within = f"{key}.{text.partition(' ')[0]}" in keys_of("tokenizer")
        raise UserError(f"config.{key}{'.' if within else ': '}{text}") from error


def _check_weights(key: str, spec: str, check: Callable[[str], T], converter: str) -> T:
    """What `check` gives; names the command that makes a folder which is not there."""
    if not spec.startswith("builtin:") and "://" not in spec and not Path(spec).exists():
        raise UserError(
            f"config.{key}: {spec} does not exist; download the weights and convert them with "
            f"python -m {converter} (docs/guide.md), or name builtin: weights"
        )
    return _naming(key, lambda: check(spec))


def _check_sizes(key: str, name: str, known: Iterable[str]) -> None:
    """Refuse names of sizes that no report without the weights could be made of."""
    if name and name not in known:
        raise UserError(f"config.{key} is {name!r}, expected '' or one of {', '.join(known)}")


def _check_stored(key: str, folder: str) -> None:
    if folder and not (Path(folder) / "index.json").is_file():
        raise UserError(
            f"config.{key}: {folder} holds no index.json of caption embeddings; make it with "
            "python -m pyratok_jax.embed_captions, or leave the key empty"
        )


def _check_tokenizer(config: ConfigDict) -> None:
    _check_sizes("model.vae", config.model.vae, VAES)
    _check_sizes("language.size", config.language.size, LANGUAGE_MODELS)
    _check_sizes("vision.size", config.vision.size, VISION_MODELS)
    _check_stored("language.stored", config.language.stored)
    vae = _check_weights(
        "model.backbone", config.model.backbone, backbone_config, "weights_conversion.vae"
    )
    # The text width is the language model's, of which no other size depends.
    sizes = _naming("model.tokenizer", lambda: tokenizer_config(config, vae, 8))
    if sizes.width % sizes.heads:
        raise UserError(
            f"config.model.tokenizer.heads is {sizes.heads}, expected a divisor of "
            f"config.model.tokenizer.width, {sizes.width}"
        )
    policies = vae_family(vae.family).vae.remat_policies
    if config.remat not in policies:
        raise UserError(f"config.remat is {config.remat!r}, expected one of {', '.join(policies)}")
    loss = _naming("loss", lambda: TokenizerLoss(config))
    _check_weights("language.spec", config.language.spec, check_language, LANGUAGE_CONVERTER)
    if loss.uses_dino:
        _check_weights("vision.spec", config.vision.spec, check_vision, "weights_conversion.dino")
    if config.masking.start > config.masking.end:
        raise UserError(
            f"config.masking.start is {config.masking.start}, expected at most "
            f"config.masking.end, {config.masking.end}"
        )
    if config.masking.start and not config.init_from:
        raise UserError(
            f"config.masking.start is {config.masking.start:.3g}, as in a later stage, and "
            "config.init_from names no tokenizer of the stage before; name one, or set "
            "config.masking.start=0 to train from fresh levels"
        )
    _check_first_levels(config, sizes)
    _check_data(config, sizes)
    _check_shapes("calibration.buckets", config.calibration.buckets, sizes)
    _naming("report.buckets", lambda: parse_buckets(config.report.buckets))


def _check_first_levels(config: ConfigDict, sizes: PyraTokConfig) -> None:
    """Levels that are not taken over must be fitted, and must be apart from those that are."""
    levels = config.init_levels
    if not levels:
        return
    wrong = ""
    if not config.init_from:
        wrong = "config.init_from names no tokenizer to take them from"
    elif levels >= len(sizes.grids):
        wrong = f"expected fewer than the {len(sizes.grids)} levels; 0 takes all"
    elif not config.calibration.batches:
        wrong = "config.calibration.batches is 0: the other levels would stay at random"
    elif not quantizer_kind(sizes.quantizer).quantizer.level_parts:
        wrong = f"levels of quantizer {sizes.quantizer} share their arrays"
    if wrong:
        raise UserError(f"config.init_levels is {levels}, but {wrong}")


def _check_data(config: ConfigDict, sizes: PyraTokConfig) -> None:
    sources, weights = tuple(config.data.sources), tuple(config.data.weights)
    if weights and (len(weights) != len(sources) or not sum(weights)):
        raise UserError(
            f"config.data.weights is {weights}, expected one for each of the {len(sources)} "
            "sources, not all 0"
        )
    for name in ("sources", "heldout"):
        for spec in config.data[name]:
            if not re.match(r"\w+:", spec) and not re.search(r"[*?\[]", spec):
                _must_exist(f"data.{name}", spec)
    _check_shapes("data.buckets", config.data.buckets, sizes, needed=True)


def _must_exist(key: str, path: str) -> None:
    if not os.path.exists(path):
        raise UserError(f"config.{key}: no such source: {path}; name a file or folder, or builtin:")


def _check_shapes(
    key: str, specs: tuple[str, ...], sizes: PyraTokConfig, *, needed: bool = False
) -> None:
    """Refuse buckets that do not divide into the tokens of every level."""
    if not specs and not needed:
        return
    clips = tokenizer_sizes(sizes)
    for bucket in _naming(key, lambda: parse_buckets(specs)):
        near = clips.padding(bucket.frames, bucket.height, bucket.width)
        fits = f"{near.padded_frames}x{near.padded_height}x{near.padded_width}"
        if fits != bucket.name:
            raise UserError(
                f"config.{key}: {bucket.name} does not suit the tokenizer: frames are 1 + a "
                f"multiple of {clips.temporal_factor}, sides multiples of "
                f"{clips.spatial_multiple}; {fits} would do"
            )


def _described(key: str, folder: str) -> PyraTokConfig:
    """Sizes of the trained tokenizer that a key names."""

    def read() -> PyraTokConfig:
        workdir, _ = locate(tokenizer_folder(folder))
        return PyraTokConfig.from_dict(read_description(workdir)["tokenizer"])

    if not folder:
        raise UserError(f"config.{key} is empty; name the --workdir of a tokenizer's training")
    sizes: PyraTokConfig = _naming(key, read)
    return sizes


def _check_projector(config: ConfigDict) -> None:
    _check_data(config, _described("tokenizer", config.tokenizer))


def _check_generator(config: ConfigDict) -> None:
    unread = dict(flattened(data_config()))
    for key, value in flattened(config.data):
        if value != unread[key]:
            raise UserError(
                f"config.data.{key} is {short(value, 80)!r}, but a prior is trained on tokens "
                "alone: name those of your videos as config.tokens.path (export_tokens)"
            )
    made, chosen = _described("tokenizer", config.tokenizer), config.conditioning
    _check_stored("conditioning.stored", chosen.stored)
    if "://" not in config.tokens.path:
        _must_exist("tokens.path", config.tokens.path)
    if chosen.language:
        _check_weights("conditioning.language", chosen.language, check_language, LANGUAGE_CONVERTER)
    _naming("objective", lambda: PriorObjective(**config.objective))
    _naming("sampling", lambda: Sampling.from_dict(config.sampling.to_dict()))
    sizes = config.model.to_dict() | {
        "strides": made.grids,
        "bits": made.bits,
        "latent_stride": made.latent_stride,
        "latent_channels": made.vae.z_dim,
        "condition": chosen.kind,
        "text_width": 1,
        "classes": len(chosen.classes),
    }
    _naming("model", lambda: PriorConfig.from_dict(sizes))
