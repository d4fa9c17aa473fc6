"""What `train --help` prints: examples, flags, and every key of the config with its value."""

import textwrap
from collections.abc import Iterator, Mapping

from ml_collections import ConfigDict

from pyratok_jax.training.config_keys import flattened, known_values

EXAMPLES = (
    ("a few steps, to see that all works", "--config demo:smoke"),
    ("your videos", "--config demo --config.data.sources=\"('my_videos',)\" --workdir runs/1"),
    ("another learning rate and batch", "--config demo --config.optimizer.learning_rate=1e-4 "
     "--config.batch_size=4"),
    ("resume: the same command again", "--config demo --workdir runs/1"),
)  # fmt: skip
_WIDTH = 80


def help_text(named: str, config: ConfigDict | None, flags: Mapping[str, str]) -> str:
    """The help page, in lines of at most 80 columns.

    Args:
        named: the config as it was named on the command line.
        config: what its file gives.
        flags: the other flags of the command, with their meanings.
    """
    lines = [
        "usage: python -m pyratok_jax.train --config NAME_OR_FILE[:ARGUMENT]",
        "       [--config.KEY=VALUE ...] [--workdir DIR] [flags]",
        "",
        "examples:",
    ]
    for what, words in EXAMPLES:
        lines += [f"  # {what}", *_command(f"python -m pyratok_jax.train {words}")]
    lines += ["", "flags:"]
    for name, meaning in flags.items():
        lines += [f"  --{name}", *_indented(meaning)]
    lines += ["", "Exit codes: 0 finished, 2 a mistake in the input, 3 another host was lost,",
              "130 stopped with a checkpoint saved, 1 a defect."]  # fmt: skip
    if config is not None:
        lines += ["", f"keys of {named}, with their values here:"]
        lines += _keys(config)
    return "\n".join(lines)


def _keys(config: ConfigDict) -> Iterator[str]:
    for key, value in flattened(config):
        text = f"  --config.{key}={value!r}"
        yield text if len(text) <= _WIDTH else f"{text[: _WIDTH - 4]} ..."
        known = known_values(config.task, key)
        if known is not None:
            yield from _indented(f"{known[1]} ({known[0].expected})")


def _command(text: str) -> list[str]:
    lines = textwrap.wrap(
        text, _WIDTH - 6, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return [f"  {line}" + (" \\" if line != lines[-1] else "") for line in lines]


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
