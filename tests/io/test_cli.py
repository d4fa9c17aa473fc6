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
