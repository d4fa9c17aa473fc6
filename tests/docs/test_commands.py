"""The commands that the guides tell to type are understood: every flag, value and config key."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.training.config import parse_command

DOCS = Path(__file__).parents[2] / "docs"


def commands(page: str) -> list[list[str]]:
    """The words of each `python -m pyratok_jax...` in the indented blocks and lists of a page."""
    text = (DOCS / page).read_text().replace("\\\n", " ")
    lines = re.findall(r"^(?:    |- `)(python -m pyratok_jax\.[^`\n]*)", text, re.M)
    return [shlex.split(line, comments=True)[2:] for line in lines]


def understood(words: list[str]) -> None:
    """Parse a command line as the command does, without running it."""
    module, *arguments = words
    if module == "pyratok_jax.train":
        parse_command([module, *arguments], default_config="demo")
    elif module == "pyratok_jax.compile_report":
        importlib.import_module(module).parser().parse_known_args(arguments)
    else:
        importlib.import_module(module).parser().parse_args(arguments)


@pytest.mark.parametrize(
    ("page", "least"), [("guide.md", 10), ("small_data.md", 6), ("../README.md", 6)]
)
def test_every_command_of_a_guide_is_understood(page, least):
    found = commands(page)
    assert len(found) >= least
    for words in found:
        understood(words)


def test_a_wrong_flag_or_key_is_seen():
    with pytest.raises(SystemExit):
        understood(["pyratok_jax.publish", "runs/own", "--outptu", "x"])
    with pytest.raises(UserError):
        understood(["pyratok_jax.train", "--config", "demo", "--config.stepps=3"])
