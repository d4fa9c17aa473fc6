"""Paths on storage services."""

import sys
import types

import pytest

from pyratok_jax import ablate, compile_report, embed_captions, errors
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.data.video.files import BrokenVideoError, probe
from pyratok_jax.errors import UserError, run_cli
from pyratok_jax.evaluation import synthetic
from pyratok_jax.io import remote
from pyratok_jax.io.cli import local_path
from pyratok_jax.io.documents import read_json
from pyratok_jax.io.sharded_job import check_output
from pyratok_jax.tokens.dataset import token_shards


@pytest.fixture
def asked(monkeypatch):
    """No network; the addresses that were asked."""
    found = []
    remote._unreachable.cache_clear()
    monkeypatch.setattr(remote, "_WAIT", 0.0)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(remote, "_asked", lambda address: found.append(address) or "no network")
    yield found
    remote._unreachable.cache_clear()


@pytest.mark.parametrize(
    "read", [load_source, check_output, token_shards, read_json, probe], ids=lambda f: f.__name__
)
def test_storage_that_does_not_answer_is_asked_a_few_times_and_said(asked, read):
    for name in ("a", "b"):
        with pytest.raises(UserError, match="does not answer"):
            read(f"gs://bucket/{name}.mp4")
    assert len(asked) == 3  # Not again for the second file.


@pytest.mark.parametrize(
    "read", [load_source, check_output, token_shards, read_json, probe], ids=lambda f: f.__name__
)
def test_other_addresses_are_refused(read):
    for name in ("ftp://x/y.json", "file:///etc/passwd", "data.source=gs://b/m.jsonl"):
        with pytest.raises(UserError, match=r"^cannot (open|read)"):
            read(name)


def test_a_host_that_refuses_is_said_within_seconds():
    assert "refused" in remote._asked("http://127.0.0.1:9/")


def test_an_output_that_is_written_locally_is_no_address():
    assert local_path("a/b") == "a/b"
    with pytest.raises(UserError, match="is an address"):
        local_path("gs://bucket/out")


@pytest.mark.parametrize(
    ("main", "option"),
    [(ablate.main, "--workdir"), (compile_report.main, "--output"),
     (embed_captions.main, "--output"), (synthetic.main, "--output")],
    ids=["ablate", "compile_report", "embed_captions", "synthetic"],
)  # fmt: skip
def test_commands_that_write_to_disks_refuse_addresses(main, option, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", option, "gs://bucket/out"])
    with pytest.raises(UserError, match="is an address"):
        main()


def service_error(name, text):
    """An error as TensorFlow raises it, which is no OSError."""
    base = type("OpError", (Exception,), {"__module__": errors._TF_ERRORS})
    return type(name, (base,), {"__module__": errors._TF_ERRORS})(text)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (service_error("AbortedError", "All 2 retry\n attempts failed"), "All 2 retry attempts"),
        (ImportError("Please install gcsfs to access Google Storage"), "install gcsfs"),
    ],
    ids=["failed", "no client"],
)
def test_what_a_storage_service_refuses_is_one_line(monkeypatch, capsys, error, said):
    def fail(*_):
        raise error

    with pytest.raises(SystemExit) as ended:
        run_cli(fail)
    message = capsys.readouterr().err
    assert ended.value.code == 2 and said in message and message.count("\n") == 1
    monkeypatch.setattr(remote, "open_path", lambda path: types.SimpleNamespace(open=fail))
    with pytest.raises(BrokenVideoError, match=said) as broken:
        probe("gs://bucket/a.mp4")
    assert broken.value.transient


def test_a_defect_that_looks_alike_keeps_its_traceback():
    with pytest.raises(ImportError):
        run_cli(lambda: sys.modules["no"] if "no" in sys.modules else _missing())


def _missing():
    raise ImportError("cannot import name 'x'")
