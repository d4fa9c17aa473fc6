"""The parsers of the commands."""

from pyratok_jax.io.cli import command_parser


def test_help_names_the_module_the_defaults_and_the_epilog() -> None:
    parser = command_parser("pyratok_jax.some.module", "Does something.", epilog="Exit code: 0.")
    parser.add_argument("--limit", type=int, default=7, help="of items")
    text = parser.format_help()
    assert text.startswith("usage: python -m pyratok_jax.some.module")
    assert "Does something." in text
    assert "of items (default: 7)" in text
    assert text.rstrip().endswith("Exit code: 0.")


def test_required_and_empty_defaults_are_not_said_and_examples_are() -> None:
    parser = command_parser("pyratok_jax.some.module", "Does something.", examples=["--name x"])
    parser.add_argument("--name", required=True, help="which")
    parser.add_argument("--other", default="", help="or that")
    text = parser.format_help()
    assert "default:" not in text
    assert text.endswith("examples:\n  python -m pyratok_jax.some.module --name x\n")
