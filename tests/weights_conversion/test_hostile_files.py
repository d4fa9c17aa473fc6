"""Weight files made to harm: refused in one line, within seconds and bounded memory."""

import json
import os
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from types import SimpleNamespace

import jinja2
import numpy as np
import pytest

from pyratok_jax.checkpoints.foreign import language_tokenizer
from pyratok_jax.checkpoints.foreign.language_config import parse_config
from pyratok_jax.checkpoints.foreign.pickles import read_numpy_pickle
from pyratok_jax.checkpoints.foreign.sources import check_header, open_tensors
from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.errors import UserError

SMALL = {"model_type": "llama", "num_attention_heads": 2, "hidden_size": 8, "vocab_size": 9,
         "num_hidden_layers": 1, "intermediate_size": 8}  # fmt: skip


def archive(path, pickled, *, compress=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compress) as file:
        file.writestr("archive/data.pkl", pickled)
    return path


def bomb(path):
    return archive(path, bytes(100 << 20), compress=zipfile.ZIP_DEFLATED)


def shared(path):
    tree = {}
    for _ in range(40):
        tree = {"a": tree, "b": tree}
    return archive(path, pickle.dumps(tree))


def patched(path, at, value):
    """A valid archive whose member has another flag or compression in both of its headers."""
    data = bytearray(archive(path, pickle.dumps({})).read_bytes())
    for signature, offset in ((b"PK\x03\x04", at), (b"PK\x01\x02", at + 2)):
        struct.pack_into("<H", data, data.index(signature) + offset, value)
    path.write_bytes(data)
    return path


def encrypted(path):
    return patched(path, 6, 1)


def unknown_compression(path):
    return patched(path, 8, 99)


def index_of_itself(path):
    path = path.with_name("m.safetensors.index.json")
    path.write_text(json.dumps({"weight_map": {"a": path.name}}))
    return path


def index_of_a_folder(path):
    path = path.with_name("m.safetensors.index.json")
    path.write_text(json.dumps({"weight_map": {"a": "..", "b": "/etc/hostname"}}))
    return path


def empty_index(path):
    path = path.with_name("m.safetensors.index.json")
    path.write_text('{"weight_map": {}}')
    return path


def deep_index(path):
    path = path.with_name("m.safetensors.index.json")
    path.write_text("[" * 200_000)
    return path


def pipe(path):
    os.mkfifo(path)
    return path


def gguf(facts, tensors=0, body=b""):
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, facts) + body


def gguf_array(path):
    body = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, 1 << 40)
    path.write_bytes(gguf(1, 0, body))
    return path


def gguf_strings(path):
    body = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 1 << 40)
    path.write_bytes(gguf(1, 0, body + bytes(64)))
    return path


def gguf_counts(path):
    path.write_bytes(gguf(1 << 60, 1 << 60))
    return path


def gguf_nested(path):
    body = struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9)
    path.write_bytes(gguf(1, 0, body + struct.pack("<IQ", 9, 1) * 5000))
    return path


def gguf_numbers(path):
    """Ten million bytes as a list of as many numbers."""
    body = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, 10**7)
    path.write_bytes(gguf(1, 0, body + bytes(10**7)))
    return path


def gguf_lists(path):
    body = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 9, 5000)
    path.write_bytes(gguf(1, 0, body + struct.pack("<IQ", 4, 0) * 5000))
    return path


def memo(path):
    """Six bytes that make Python's unpickler ask for gigabytes."""
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x0f.")
    return path


def memo_in_an_archive(path):
    return archive(path, b"\x80\x02}r\xff\xff\xff\x0f.")


def operations(path):
    path.write_bytes(b"\x80\x02N" + b"2" * (3 << 20) + b".")
    return path


HOSTILE = [
    memo, memo_in_an_archive, operations, bomb, shared, encrypted, unknown_compression,
    index_of_itself, index_of_a_folder, empty_index, deep_index, pipe, gguf_array, gguf_strings,
    gguf_counts, gguf_nested, gguf_numbers, gguf_lists,
]  # fmt: skip


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_hostile_weight_files_are_refused(tmp_path, make):
    path = make(tmp_path / "weights.bin")
    with pytest.raises(UserError, match=str(path)) as caught:
        open_tensors(path)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(("kind", "shape", "size"), [("F8_E4M3", [2], 2), ("F32", [0, 1 << 62], 0)])
def test_tensors_that_numpy_cannot_hold_are_refused(tmp_path, kind, shape, size):
    facts = {"a": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}
    header = json.dumps(facts).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    with pytest.raises(UserError, match="tensor a of .* cannot be read"):
        open_tensors(path).read("a")


class Call:
    def __init__(self, *call):
        self._call = call

    def __reduce__(self):
        return self._call


@pytest.mark.parametrize(
    "tree",
    [
        {"a": Call(np.ndarray, ((1 << 40,),))},
        {"a": np.array([{}], object)},
        OrderedDict(a=Call(os.getcwd, ())),
    ],
    ids=["absurd array", "objects", "call"],
)
def test_hostile_numpy_pickles_are_refused(tmp_path, tree):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(tree))
    with pytest.raises(UserError, match="w.pkl"):
        read_numpy_pickle(tmp_path / "w.pkl")


def test_arrays_of_a_numpy_pickle_are_read(tmp_path):
    tree = {"a": {"b": np.arange(6.0).reshape(2, 3)}, "c": np.ones((2, 2), np.int8, "F")}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(tree))
    found = read_numpy_pickle(tmp_path / "w.pkl")
    assert np.array_equal(found["a/b"], tree["a"]["b"]) and np.array_equal(found["c"], tree["c"])


def test_a_header_of_all_types_of_facts_is_accepted(tmp_path):
    import gguf as library

    writer = library.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_array("strings", ["a", "bc"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_float32("one", 1.0)
    writer.add_bool("true", True)
    writer.add_tensor("t", np.ones((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_header(tmp_path / "a.gguf")
    source, plain = open_tensors(tmp_path / "a.gguf"), library.GGUFReader(tmp_path / "a.gguf")
    assert source.info["t"].shape == (2, 2)
    assert {key: source.metadata[key] for key in plain.fields} == {
        key: field.contents() for key, field in plain.fields.items()
    }


def test_long_lists_of_a_header_are_read_at_once(tmp_path):
    """The gguf package alone takes 25 microseconds for every entry."""
    count, path = 1 << 17, tmp_path / "a.gguf"
    body = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, count)
    path.write_bytes(gguf(1, 0, body + (struct.pack("<Q", 1) + b"x") * count))
    begin = time.process_time()
    assert open_tensors(path).metadata["a"] == ["x"] * count
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    "values",
    [
        [],
        SMALL | {"num_attention_heads": 0},
        SMALL | {"num_hidden_layers": -3},
        SMALL | {"hidden_size": "wide"},
        SMALL | {"vocab_size": 1e400},
        SMALL | {"text_config": [1]},
        SMALL | {"model_type": []},
        {"model_type": "llama"},
    ],
)
def test_absurd_language_configs_are_refused(values):
    with pytest.raises(UserError, match=r"config\.json"):
        parse_config(values)


def test_code_beside_a_tokenizer_is_never_run_nor_asked_about(tmp_path, monkeypatch):
    settings = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine"}))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked"))
    with pytest.raises(UserError, match="no readable tokenizer"):
        language_tokenizer.load_tokenizer_files(tmp_path)
    assert not (tmp_path / "ran").exists()


class PanicException(BaseException):
    """As Rust's panics reach Python."""


@pytest.mark.parametrize(
    ("error", "chat", "message"),
    [(PanicException("retry-limit"), False, "fails on captions"),
     (jinja2.TemplateSyntaxError("x", 1), True, "chat template fails")],
)  # fmt: skip
def test_failing_tokenizers_are_one_line(error, chat, message):
    def fail(*arguments, **options):
        raise error

    class Failing(SimpleNamespace):
        __call__ = fail

    tokenizer = Failing(chat_template="x", apply_chat_template=fail, pad_token_id=0)
    with pytest.raises(UserError, match=message):
        CaptionTokenizer(tokenizer, 4, chat=chat)(["a" * 50])
