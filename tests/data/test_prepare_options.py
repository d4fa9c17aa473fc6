"""The command line of a preparation: what it means, and what it refuses."""

import pytest

from pyratok_jax.data.options import PrepareOptions
from pyratok_jax.data.prepare import options_of, parser
from pyratok_jax.errors import UserError


def options(*more):
    return options_of(parser().parse_args(["--input", "in", "--output", "out", *more]))


def test_what_is_stored_follows_from_what_is_asked_for():
    assert options() == options("--height", "0") == PrepareOptions()
    assert options("--height", "720") == PrepareOptions(store="reencode", height=720)
    assert options("--crf", "0") == PrepareOptions(store="reencode", crf=0)
    assert options("--store", "bytes", "--crf", "30") == PrepareOptions(crf=30)
    frames = options("--store", "frames", "--height", "64", "--quality", "80")
    assert frames == PrepareOptions(store="frames", height=64, quality=80)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--store", "bytes", "--height", "720"), "--height does nothing with --store bytes"),
        (("--quality", "80"), "--quality does nothing with --store bytes; .*--store frames"),
        (("--store", "reencode", "--quality", "80"), "--quality does nothing with .*reencode"),
        (("--store", "frames", "--crf", "0"), "--crf does nothing with --store frames"),
    ],
)  # fmt: skip
def test_options_without_a_use_are_refused(more, message):
    with pytest.raises(UserError, match=message):
        options(*more)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("height", ("-8", "1")),
        ("crf", ("-1", "99")),
        ("quality", ("0", "-3", "500")),
        ("shards", ("0",)),
        ("min-side", ("-1",)),
        ("clip-seconds", ("-1", "nan")),
        ("min-seconds", ("-1", "nan", "inf")),
        ("max-seconds", ("-1", "nan", "inf")),
        ("max-aspect", ("-1", "nan", "0.5")),
        ("time-limit", ("-1", "nan", "inf")),
        ("name", ("", "a/b", "1", "ä", "a b", "..")),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(name, values):
    for value in values:
        store = ("--store", "frames") if name == "quality" else ()
        with pytest.raises(UserError, match=f"--{name} ") as refused:
            options(f"--{name}={value}", *store)
        assert "\n" not in str(refused.value)


def test_no_length_fits():
    with pytest.raises(UserError, match="--max-seconds 1 is below --min-seconds 2"):
        options("--max-seconds", "1", "--min-seconds", "2")
    options("--max-seconds", "0", "--min-seconds", "2")
