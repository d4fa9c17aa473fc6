"""The keys that every training config has, with their defaults, and how a config file is read.

A config file defines `get_config(argument="")` and returns an `ml_collections.ConfigDict` made from
`training_config`. On the command line: `--config FILE[:ARGUMENT]` and `--config.key=value`; keys
that do not exist are refused.
"""

import ast
import contextlib
import dataclasses
import difflib
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from pyratok_jax.data.config import data_config, updated
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.cli import say
from pyratok_jax.io.remote import AnyPath, any_path
from pyratok_jax.losses.settings import LossSettings, LossWeights, PriorObjective
from pyratok_jax.models.prior.config import PriorConfig, Sampling
from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.settings import MaskingConfig
from pyratok_jax.training.config_command import help_text, resolve_config


def training_config(**changes: Json) -> ConfigDict:
    """Defaults of everything but the model, the loss and the data source.

    - task: "tokenizer", or another name of `registry.TASKS` and `demo.TASKS`.
    - steps, batch_size, accumulate, seed: batch_size is over all hosts and is cut into
      `accumulate` microbatches.
    - optimizer: see `optimizer.make_optimizer`; ema_decay: 0 keeps no averages.
    - dtype: of activations; parameters are float32. remat: "none",
      "stages", "all", "convs" or "auto" (`VideoVAE.remat_policies`).
    - fused_attention: long attention by a kernel on TPUs (`models.language.fused_attention`).
    - mesh: sizes of the axes, see `sharding.make_mesh`; -1 takes the remaining devices.
    - multi_host: `jax.distributed.initialize` before anything else (`coordinator.join_hosts`).
    - host_timeout, step_timeout: a run on many hosts ends when a host sends no heartbeat for
      host_timeout seconds, or a step takes step_timeout seconds (0: any time); see `heartbeat`.
    - profile_steps: steps to trace with the profiler, such as "10:15" (`--profile_steps`).
    - checkpoint: every (steps between two), keep (number of newest ones that are kept), keep_every
      (those of multiples of it are kept for good; 0: none).
    - log_every: steps between logged losses.
    - evaluators: measurements during the training, such as ({"name": "heldout", "every": 500},),
      see `registry.make_evaluators`.
    - max_bad_steps: training stops after this many consecutive steps without a finite loss.
    - collapse: threshold of the share of distinct codes (among the tokens of a step, or of the
      vocabulary) and patience, the number of consecutive logged values below it after which a level
      is reported; patience 0: never.
    - init_from: a tokenizer whose trainable arrays are the start (a previous stage): as
      `load_tokenizer` takes it, a working or published folder, `hf://...` or "builtin:world". Of
      a prior's training a prior, as `load_generator` takes it.
    - init_levels: how many of its first levels are taken; the others start afresh and are
      calibrated to what those leave, on other grids where wanted. 0: all are taken.
    - resume_with_changes: resume a run with another loss, optimizer or data than it had, on
      purpose; the changes are kept in its folder (`run_record`).

    Raises:
        KeyError: an unknown key in `changes`.
    """
    config = ConfigDict(
        {
            "task": "tokenizer",
            "steps": 1000,
            "batch_size": 8,
            "accumulate": 1,
            "seed": 0,
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-4,
                "warmup": 0,
                "schedule": "cosine",
                "final_share": 0.0,
                "decay_share": 0.2,
                "b1": 0.9,
                "b2": 0.99,
                "weight_decay": 0.0,
                "clip_norm": 1.0,
                "adam_share": 1.0,
                "groups": (),
            },
            "ema_decay": 0.0,
            "dtype": "float32",
            "remat": "none",
            "fused_attention": True,
            "multi_host": False,
            "host_timeout": 60.0,
            "step_timeout": 1800.0,
            "profile_steps": "",
            "mesh": {"data": -1, "fsdp": 1, "spatial": 1, "tensor": 1, "slices": 1},
            "checkpoint": {"every": 500, "keep": 2, "keep_every": 0},
            "log_every": 10,
            "evaluators": (),
            "max_bad_steps": 10,
            "collapse": {"threshold": 0.02, "patience": 5},
            "init_from": "",
            "init_levels": 0,
            "resume_with_changes": False,
            "data": data_config(),
        }
    )
    return updated(config, changes, "a training config")


def tokenizer_training_config(**changes: Json) -> ConfigDict:
    """`training_config` with the keys of a tokenizer's training; defaults are the paper's.

    - model: backbone (specification of the frozen VAE), head of the
      alignment, text_hidden units of its map into the text space (0: none), text_neighbours
      (these read the codes around each one too; the paper: one code), pooled_text and
      grid_places (tell the autoregressive loss the pooled caption, and where the next code lies;
      the paper: neither), and tokenizer: the fields of `PyraTokConfig` but `vae` and `text_width`,
      which the frozen parts give. vae: published sizes by name, for building the config without
      its weights (`abstract`).
    - language: specification, size (as vae), tokens per caption, a folder of stored embeddings to
      read instead of running the model on captions (`embed_captions`; empty: none), layers used for
      the autoregressive loss (0: all), what its backward pass keeps (remat), and bits of its
      kernels in memory (0: as stored, 8, 4).
    - vision: specification and size (as above) of the frozen DINO network, loaded when one of its
      terms has a weight, the hidden width of the trained projection from latents to it, and the
      largest side of the images that it sees (larger ones are made smaller; 0: any).
    - loss: weights and settings (`losses.settings`); preset "paper" puts 1 for the weights inside
      Eq. 2, formulas "paper" takes its terms as printed; of the autoregressive loss the
      token_budget (0: all tokens), the targets and the region (`losses.autoregressive`);
      hidden_captions: share of the captions that the losses read and the levels do not see.
    - masking: `models.settings.MaskingConfig`.
    - calibration: batches of features that the levels are fitted to before the first step (0: a
      random start), steps of each linear map (steps), then of all levels together (refine_steps),
      the learning rate of these, and the clips' shapes (empty: the training's). After init_from
      only with init_levels.
    - report: held-out clips that are shown and measured, their shape, LPIPS on or off; on how many
      held-out videos of the world the words in the tokens are measured (world; 0: none), and in
      ablations the zero-shot tasks (tasks; 0: none).

    Raises:
        KeyError: an unknown key in `changes`.
    """
    config = training_config(**changes)
    hidden = {"vae", "text_width"}
    sizes = {
        field.name: field.default
        for field in dataclasses.fields(PyraTokConfig)
        if field.name not in hidden
    }
    sizes["grids"] = "pyramid"  # A preset's name; a config file may set a tuple of strides.
    parts = {
        "model": {
            "backbone": "builtin:demo-backbone",
            "vae": "",
            "head": "lookup_free",
            "text_hidden": 256,
            "text_neighbours": True,
            "pooled_text": True,
            "grid_places": True,
            "tokenizer": sizes,
        },
        "language": {
            "spec": "builtin:smollm2",
            "size": "",
            "length": 128,
            "stored": "",
            "layers": 0,
            "remat": "layers",
            "bits": 0,
        },
        "vision": {"spec": "builtin:demo-vision", "size": "", "projection": 256, "largest_side": 0},
        "loss": {
            "weights": dataclasses.asdict(LossWeights()),
            "settings": _without(dataclasses.asdict(LossSettings()), "vocabulary"),
            "preset": "",
            "formulas": "",
            "token_budget": 0,
            "hidden_captions": 0.0,
            "targets": "straight_through",
            "region": "spread",
        },
        "masking": dataclasses.asdict(MaskingConfig()),
        "calibration": {
            "batches": 24,
            "steps": 300,
            "refine_steps": 0,
            "learning_rate": 5e-4,
            "buckets": (),
        },
        "report": {
            "clips": 8,
            "buckets": ("17x96x96",),
            "lpips": True,
            "world": 0,
            "tasks": 0,
        },
    }
    for name, values in parts.items():
        config[name] = ConfigDict(values)
    # None leaves them open.
    config.model.tokenizer.stages = config_dict.placeholder(tuple)
    config.model.tokenizer.vocabulary = config_dict.placeholder(int)
    config.lock()
    return config


def generator_training_config(**changes: Json) -> ConfigDict:
    """`training_config` with the keys of a prior's training on tokens.

    - tokenizer: working folder of the tokenizer that made the tokens.
    - tokens: the dataset (path, an `--output` of `export_tokens`); threads, workers and batches
      ahead of its reader. batch_size holds for clips of every size.
    - model: the fields of `models.prior.config.PriorConfig` that the tokenizer does not give.
    - conditioning: text, classes or none (kind), the share of captions that is left out (drop),
      tokens per caption (length; 0: as the tokenizer), specification of a frozen language model
      (language; empty: the tokenizer's), a folder of stored embeddings to read instead of running
      it on captions (stored; `embed_captions --tokens`), and the captions that name classes
      (classes).
    - objective: `losses.settings.PriorObjective`.
    - sampling: defaults of `generate`, the fields of `models.prior.config.Sampling`.

    Raises:
        KeyError: an unknown key in `changes`.
    """
    config = training_config(**({"task": "generator"} | changes))
    given = {"strides", "bits", "latent_stride", "latent_channels", "condition", "text_width",
             "classes", "remat"}  # fmt: skip
    parts = {
        "tokens": {"path": "", "threads": 2, "workers": 0, "ahead": 2},
        "model": {
            field.name: field.default
            for field in dataclasses.fields(PriorConfig)
            if field.name not in given
        },
        "conditioning": {
            "kind": "text", "drop": 0.1, "length": 0, "language": "", "stored": "",
            "classes": (),
        },
        "objective": dataclasses.asdict(PriorObjective()),
        "sampling": dataclasses.asdict(Sampling()),
    }  # fmt: skip
    config.tokenizer = ""
    for name, values in parts.items():
        config[name] = ConfigDict(values)
    config.lock()
    return config


def _without(values: dict[str, Json], key: str) -> dict[str, Json]:
    return {name: value for name, value in values.items() if name != key}


class Command(NamedTuple):
    """What a command line of `train` asks for: `--xla_dump_to` may be empty."""

    config: ConfigDict
    workdir: AnyPath
    xla_dump_to: str


def parse_flags(arguments: list[str], *, default_config: str) -> tuple[ConfigDict, AnyPath]:
    """The config and the working folder that a command line asks for; see `parse_command`."""
    command = parse_command(arguments, default_config=default_config)
    return command.config, command.workdir


def parse_command(arguments: list[str], *, default_config: str) -> Command:
    """All that a command line asks for; `--profile_steps` is put into the config.

    Raises:
        UserError: an unreadable config file, an unknown key or flag, a value of the wrong type.
    """
    named = _config_file(arguments, default_config)
    file = resolve_config(named)
    values = flags.FlagValues()
    try:
        _define(values, _resolved(arguments, file), file)
        rest = values(_resolved(arguments, file))
        if values["help"].value:
            say(help_text(named, values["config"].value, _meanings(values)))
            sys.exit(0)
        config = values["config"].value
        if values["no-verify"].value:
            os.environ["PYRATOK_VERIFY"] = "0"
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"command line of {named}: {_unknown_flag(error.flagname)}") from error
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, FileNotFoundError) as e:
        raise UserError(f"command line of {named}: {_refusal(e, arguments)}") from e
    except (ImportError, SyntaxError) as error:
        raise UserError(f"{named} is no readable config file: {_reason(error)}") from error
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    workdir = values["workdir"].value or f"runs/{Path(named.partition(':')[0]).stem}"
    assert config is not None
    if values["profile_steps"].value:
        config.profile_steps = values["profile_steps"].value
    return Command(config, any_path(workdir), values["xla_dump_to"].value or "")


def _define(values: flags.FlagValues, arguments: list[str], default_config: str) -> None:
    config_flags.DEFINE_config_file(
        "config",
        default_config,
        "NAME or FILE[:ARGUMENT] of the config; --config.KEY=VALUE changes a value.",
        flag_values=values,
        sys_argv=arguments,
    )
    flags.DEFINE_string(
        "workdir",
        "",
        "Folder of checkpoints and results, local or gs://BUCKET/...; resumed when it holds a "
        "checkpoint. Default: "
        "runs/NAME_OF_THE_CONFIG.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "profile_steps",
        "",
        "FIRST:LAST, steps to write a profiler trace of (into WORKDIR/profile), such as 10:15.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "xla_dump_to",
        "",
        "Folder into which XLA writes every program that it compiles.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "no-verify",
        False,
        "Do not compare weights and checkpoints with their hashes.",
        flag_values=values,
    )
    flags.DEFINE_bool("help", False, "Show this help and exit.", short_name="h", flag_values=values)


def _config_file(arguments: list[str], default: str) -> str:
    """The FILE[:ARGUMENT] named on the command line, for messages and the default folder.

    Raises:
        UserError: two are.
    """
    if sum(one.partition("=")[0] in ("--config", "-config") for one in arguments) > 1:
        raise UserError("--config is given twice; name one config")
    for number, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value or (arguments[number + 1] if number + 1 < len(arguments) else default)
    return default


def _resolved(arguments: list[str], file: str) -> list[str]:
    """The command line with the config's file in place of its name."""
    found = list(arguments)
    for number, argument in enumerate(found):
        name, equals, _ = argument.partition("=")
        if name in ("--config", "-config"):
            if equals:
                found[number] = f"--config={file}"
            elif number + 1 < len(found):
                found[number + 1] = file
            break
    return found


_FLAGS = ("config", "workdir", "profile_steps", "xla_dump_to", "no-verify", "help")


def _meanings(values: flags.FlagValues) -> dict[str, str]:
    return {name: str(values[name].help) for name in _FLAGS if name != "config"}


def _unknown_flag(name: str) -> str:
    start, dot, rest = name.partition(".")
    near = difflib.get_close_matches(start, _FLAGS, n=1)
    meant = f"; did you mean --{near[0]}{dot}{rest}?" if near else ""
    return f"unknown flag --{name}{meant} (--help lists all)"


# What ml_collections and Python say of a key or a value, and how it is said here.
_UNKNOWN_KEY = re.compile(r"'(\w+)'(?: Did you mean \"(\w+)\".*)?$")
_SAID_HERE = (
    (r"^ValueError: ", ""),
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no whole number"),
    (r"could not convert string to float: (.*)", r"\1 is no number"),
    (r"\('Non-boolean argument to boolean flag', (.*)\)", r"\1 is neither true nor false"),
    (r"Attribute .* Attempting to lookup: (.*)", r"there is no config.\1 (--help lists all keys)"),
)


def _refusal(error: BaseException, arguments: list[str]) -> str:
    """Why a command line was refused, with the whole key of a flag that changes the config."""
    reason = _reason(error)
    keys = [one.partition("=")[0].lstrip("-") for one in arguments if "config." in one]
    found = _UNKNOWN_KEY.match(reason)
    key = next((key for key in keys if found and found[1] in key.split(".")), None)
    if found and key:
        near = f"; did you mean {found[2]!r} instead of {found[1]!r}?" if found[2] else ""
        return f"there is no {key}{near} (--help lists all keys)"
    for theirs, ours in _SAID_HERE:
        reason = re.sub(theirs, ours, reason)
    return reason


def _reason(error: BaseException) -> str:
    """The last line of the message: flag parsers put the reason behind their own words."""
    text = str(error)
    if text[:1] in "'\"" and text[-1:] == text[:1]:
        # A KeyError's text is written as Python writes it.
        with contextlib.suppress(SyntaxError, ValueError):
            return " ".join(str(ast.literal_eval(text)).split())
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
