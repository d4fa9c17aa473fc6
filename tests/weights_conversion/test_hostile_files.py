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
import safetensors.numpy

from pyratok_jax.checkpoints.conversion import Entry, load_arrays, match, write_checkpoint
from pyratok_jax.checkpoints.foreign import language_tokenizer
from pyratok_jax.checkpoints.foreign.language_config import parse_config
from pyratok_jax.checkpoints.foreign.pickles import read_numpy_pickle
from pyratok_jax.checkpoints.foreign.sources import check_header, open_tensors, sources_from_arrays
from pyratok_jax.data import captions
from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.errors import UserError
from tests.training.tiny import write_tokenizer_files

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


def _text(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


# 40 pairs of pairs: a tuple of 2^40 parts to whoever walks over it.
_PAIRS = _text("a") + b"q\x000" + b"h\x00h\x00\x86q\x000" * 40


def hashed_pairs(path):
    return archive(path, b"\x80\x02}" + _PAIRS + b"h\x00K\x01s.")


def pairs_for_a_storage(path):
    return archive(path, b"\x80\x02}" + _text("a") + _PAIRS + b"(h\x00K\x01K\x01K\x01K\x01tQs.")


def pairs_for_a_storage_name(path):
    pid = b"(" + _text("storage") + b"ctorch\nFloatStorage\nh\x00K\x01K\x01tQ"
    return archive(path, b"\x80\x02}" + _text("a") + _PAIRS + pid + b"s.")


def pairs_for_a_shape(path):
    pid = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") * 2 + b"K\x01tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + b"K\x00h\x00h\x00tR"
    return archive(path, b"\x80\x02}" + _text("a") + _PAIRS + call + b"s.")


def copied_dictionaries(path):
    """One dictionary, copied again and again: gigabytes of a few bytes each."""
    entries = b"".join(_text(f"k{n}") + b"N" for n in range(10_000))
    copies = b"".join(_text(f"c{n}") + b"h\x01h\x00\x85R" for n in range(2000))
    begin = b"\x80\x02}q\x00(" + entries + b"u0ccollections\nOrderedDict\nq\x010}("
    return archive(path, begin + copies + b"u.")


def large_numbers(path):
    call = b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + _text("V100000000") + b"\x85R\x85R"
    path.write_bytes(b"\x80\x02}(" + b"".join(_text(f"a{n}") + call for n in range(200)) + b"u.")
    return path


def long_names(path):
    return archive(path, b"\x80\x02c" + b"a" * (1 << 20) + b"\nb\n.")


def long_keys(path):
    """A name of a megabyte in 60 dictionaries, one in the other."""
    body = b"\x80\x02" + _text("a" * (1 << 20)) + b"q\x000" + b"}h\x00" * 60 + b"}"
    return archive(path, body + b"s" * 60 + b".")


def operations(path):
    path.write_bytes(b"\x80\x02N" + b"2" * (3 << 20) + b".")
    return path


HOSTILE = [
    memo, memo_in_an_archive, operations, hashed_pairs, pairs_for_a_storage,
    pairs_for_a_storage_name, pairs_for_a_shape, copied_dictionaries, large_numbers, long_names,
    long_keys, bomb, shared, encrypted, unknown_compression,
    index_of_itself, index_of_a_folder, empty_index, deep_index, pipe, gguf_array, gguf_strings,
    gguf_counts, gguf_nested, gguf_numbers, gguf_lists,
]  # fmt: skip


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_hostile_weight_files_are_refused(tmp_path, make):
    path = make(tmp_path / "weights.bin")
    with pytest.raises(UserError, match=str(path)) as caught:
        open_tensors(path)
    assert len(str(caught.value)) < 600


def test_a_header_of_torch_older_than_1_6_is_walked_over_first(tmp_path):
    path = tmp_path / "old.pth"
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.arange(4.0)[1:]}, path, _use_new_zipfile_serialization=False)
    assert np.array_equal(open_tensors(path).read("a"), [1, 2, 3])
    pickled = b"".join(pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {}))
    path.write_bytes(pickled + b"\x80\x02}" + _PAIRS + b"h\x00K\x01s.")
    with pytest.raises(UserError, match="a tuple for a key"):
        open_tensors(path)


def test_bytes_of_an_array_that_many_share_are_not_copied(tmp_path):
    raw, count = bytes(1 << 20), 2000
    values = np.zeros(1 << 18, ">f4")
    state = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    dtype = b"cnumpy\ndtype\n" + _text("f4") + b"\x85R(K\x03" + _text(">") + b"NNNJ\xff\xff\xff\xff"
    dtype += b"J\xff\xff\xff\xffK\x00tb"
    call = state + b"(K\x01J" + struct.pack("<i", values.size) + b"\x85" + dtype + b"\x89h\x00tb"
    body = b"\x80\x04B" + struct.pack("<I", len(raw)) + raw + b"q\x000}("
    body += b"".join(_text(f"a{n}") + call for n in range(count)) + b"u."
    (tmp_path / "w.pkl").write_bytes(body)
    found = read_numpy_pickle(tmp_path / "w.pkl")
    assert len(found) == count and found["a7"].dtype == ">f4" and found["a7"].base is not None
    assert np.shares_memory(found["a0"], found["a1999"])


@pytest.mark.parametrize(("kind", "shape", "size"), [("F8_E4M3", [2], 2), ("F32", [0, 1 << 62], 0)])
def test_tensors_that_numpy_cannot_hold_are_refused(tmp_path, kind, shape, size):
    facts = {"a": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}
    header = json.dumps(facts).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    with pytest.raises(UserError, match="tensor a of .* cannot be read"):
        open_tensors(path).read("a")


ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("a", np.arange(6, dtype=np.int8).reshape(2, 3), r"1 keys of no real numbers: a \(int8"),
        ("b", np.ones(4, bool), r"1 keys of no real numbers: b \(bool"),
        ("b", np.ones(4, np.complex64), r"1 keys of no real numbers: b \(complex64"),
        ("b", np.array([1, 2, np.nan, 4], np.float32), "b has values that are not finite"),
        ("a", np.full((2, 3), -np.inf, np.float16), "a has values that are not finite"),
        ("b", np.full(4, 1e39), "b has values that are not finite as float32"),
    ],
)
def test_weights_that_are_no_finite_real_numbers_are_refused(tmp_path, name, value, message):
    path = tmp_path / "w.safetensors"
    if np.iscomplexobj(value):
        source = sources_from_arrays(ARRAYS | {name: value}, str(path))
    else:
        safetensors.numpy.save_file(ARRAYS | {name: value}, path)
        source = open_tensors(path)
    shapes = {key: array.shape for key, array in ARRAYS.items()}
    plan = match(source, [Entry(key, key) for key in ARRAYS], shapes)
    for convert in (
        lambda: write_checkpoint(tmp_path / "out", kind="wan_vae", config={}, plan=plan),
        lambda: load_arrays(plan),
    ):
        with pytest.raises(UserError, match=f"{path}.*{message}"):
            convert()
    assert not (tmp_path / "out").exists()


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_max_length": "long"}, "model_max_length 'long' .* no number"),
        ({"model_max_length": -3}, "model_max_length"),
        ({"model_max_length": float("nan")}, "model_max_length|no readable tokenizer"),
        ({"chat_template": 5}, "chat_template 5|no readable tokenizer"),
        ({"chat_template": {"default": 5}}, "chat_template|no readable tokenizer"),
    ],
)
def test_settings_of_a_tokenizer_are_checked_where_it_is_loaded(tmp_path, settings, message):
    write_tokenizer_files(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(UserError, match=message) as raised:
        language_tokenizer.load_tokenizer_files(tmp_path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 700


def test_a_chat_template_without_end_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "_TEMPLATE_SECONDS", 0.2)
    write_tokenizer_files(tmp_path)
    tokenizer = language_tokenizer.load_tokenizer_files(tmp_path)
    loops = "{% for a in range(4000) %}{% for b in range(5000) %}{% endfor %}{% endfor %}"
    tokenizer.chat_template = loops
    with pytest.raises(UserError, match=r"more than 0\.2 s for one caption"):
        CaptionTokenizer(tokenizer, 4, chat=True)(["a"])


def test_a_huge_file_is_no_tokenizer(tmp_path):
    write_tokenizer_files(tmp_path)
    with (tmp_path / "merges.txt").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match=r"merges.txt has 1024 MiB"):
        language_tokenizer.load_tokenizer_files(tmp_path)


@pytest.mark.parametrize("merges", [["a zebra"], ["a"], [5]])
def test_merges_of_unknown_words_in_a_gguf_file_are_one_line(merges):
    facts = {"model": "gpt2", "pre": "llama-bpe", "tokens": ["a", "b", "ab"], "merges": merges}
    metadata = {f"tokenizer.ggml.{name}": value for name, value in facts.items()}
    source = SimpleNamespace(path="model.gguf", metadata=metadata)
    with pytest.raises(UserError, match=r"model.gguf: the tokenizer in its header") as raised:
        language_tokenizer.gguf_tokenizer(source)
    assert "\n" not in str(raised.value)
