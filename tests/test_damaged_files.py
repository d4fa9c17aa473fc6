"""Damaged manifests, token shards, checkpoints and settings: a result, or a refusal in one line."""

import csv
import dataclasses
import io
import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from pyratok_jax.checkpoints.foreign.language_config import parse_config
from pyratok_jax.checkpoints.weights import FORMAT, read_config
from pyratok_jax.checkpoints.working_folder import read_parameters
from pyratok_jax.data.caption_embeddings import StoredCaptions, write_embeddings
from pyratok_jax.data.clip_shards import plan_shards
from pyratok_jax.data.options import PrepareOptions
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.evaluation.peers import other_results
from pyratok_jax.generator import publishing
from pyratok_jax.io.sharded_job import ShardedJob
from pyratok_jax.io.shards import ShardWriter
from pyratok_jax.report import results_of
from pyratok_jax.tokenizer.loading import read_description, stored_config, write_description
from pyratok_jax.tokenizer.publishing import card_of
from pyratok_jax.tokens import TokenDataset, read_all
from pyratok_jax.tokens.decoding import Selection, decode_all
from pyratok_jax.tokens.inspection import Inspection
from pyratok_jax.tokens.options import ExportOptions
from pyratok_jax.tokens.plan import ExportPlan, provenance_of, source_fingerprint
from pyratok_jax.tokens.schema import DamagedRecordError, TokenRecord, encode_record
from pyratok_jax.tokens.shards import ARRAY_RECORD_OPTIONS
from pyratok_jax.training.checkpoints import Checkpoints
from pyratok_jax.training.config import training_config
from pyratok_jax.training.loop.metrics_log import read_metrics
from pyratok_jax.training.step import initial_state
from tests.damage import STRANGE, damaged, mistaken, survives
from tests.tiny_tokenizer import tiny_config
from tests.tokens.tiny import PixelTokenizer

ROWS = [
    {"id": "a", "path": "a.mp4", "caption": "one", "start": 0.5, "end": 2.5, "width": 64},
    {"id": "b", "path": "b/c.mp4", "text": ["two", "three"], "duration": 3.0, "fps": 25.0},
    {"videoid": 7, "page_dir": "p", "name": "four", "height": 48},
]
COCO = {
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": 4, "height": 4},
        {"id": 2, "file_name": "b"},
    ],
    "annotations": [{"image_id": 1, "caption": "one"}, {"image_id": 2, "caption": "two"}],
}


def generator(name):
    return np.random.default_rng([0, *name.encode()])


def csv_of(rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, sorted({key for row in rows for key in row}, key=str))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def parquet_of(rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = io.BytesIO()
    rows = [rows[0] | {"id": f"{n}", "path": f"{n}.mp4"} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), data)
    return data.getvalue()


MANIFESTS = {
    ".json": lambda rows: json.dumps(rows).encode(),
    ".jsonl": lambda rows: "\n".join(map(json.dumps, rows)).encode(),
    ".csv": csv_of,
    ".parquet": parquet_of,
}


def use_manifest(path):
    """What every command does with the clips of a source."""
    records = load_source(str(path))
    source_fingerprint(records)
    for shard in plan_shards(records, str(path.parent), PrepareOptions(shards=2)):
        shard.key()


@pytest.mark.parametrize("suffix", MANIFESTS)
def test_manifests(tmp_path, suffix):
    path, rng = tmp_path / f"m{suffix}", generator(suffix)
    whole = MANIFESTS[suffix](ROWS)
    path.write_bytes(whole)
    assert survives(lambda: use_manifest(path))
    results = []
    for turn in range(150):
        data = damaged(whole, rng, 0)
        if turn % 2 and suffix in (".json", ".jsonl"):
            rows = mistaken(ROWS, rng)
            data = MANIFESTS[suffix](rows if isinstance(rows, list) else [rows])
        path.write_bytes(data)
        results.append(survives(lambda: use_manifest(path)))
    assert any(results) and not all(results)


def test_annotations_of_coco(tmp_path):
    path, rng = tmp_path / "captions_val.json", generator("coco")
    path.write_text(json.dumps(COCO))
    assert survives(lambda: use_manifest(path))
    for _ in range(150):
        path.write_text(json.dumps(mistaken(COCO, rng)))
        survives(lambda: use_manifest(path))


@pytest.fixture(scope="module")
def tokenizer():
    return PixelTokenizer()


@pytest.fixture(scope="module")
def blocks(tokenizer):
    """Records of two videos, one of two blocks."""
    rng, records = np.random.default_rng(0), []
    for video, number, count in (("a.mp4", 0, 2), ("a.mp4", 1, 2), ("b/c.mp4", 0, 1)):
        pixels = rng.integers(0, 256, (1, 5, 32, 48, 3), dtype=np.uint8)
        levels = tokenizer.encode_padded(pixels, ["noise"])
        values = {field.name: 0 for field in dataclasses.fields(TokenRecord)} | {
            "tokens": tuple(level[0].astype(np.uint16) for level in levels),
            "id": f"{video}#{number}", "video": video, "path": video, "caption": "noise",
            "block": number, "blocks": count, "first_frame": 5 * number, "frames": 5,
            "height": 32, "width": 48, "padded_frames": 5, "padded_height": 32,
            "padded_width": 48, "video_frames": 5 * count, "video_height": 32,
            "video_width": 48, "fps": 25.0, "bits": 6, "vocabulary": 64, "levels": 4,
            "schema": 1, "checkpoint": tokenizer.checkpoint_hash, "code": "x",
            "text_encoder": "", "source": "",
        }  # fmt: skip
        names = {field.name for field in dataclasses.fields(TokenRecord)}
        records.append(TokenRecord(**{k: v for k, v in values.items() if k in names}))
    return records


def shard_of(path, records, packed=False):
    kind = "tfrecord" if ".tfrecord" in path.name else "array_record"
    if kind == "tfrecord":
        from tests.io.test_tfrecords import framed

        path.write_bytes(framed([encode_record(record, packed) for record in records]))
        return path
    with ShardWriter(path, kind, ARRAY_RECORD_OPTIONS) as writer:
        for record in records:
            writer.write(encode_record(record, packed))
    return path


def use_tokens(path, output, tokenizer, crf=None):
    """Decode and count whatever can be read."""
    items = list(read_all(str(path)))
    decode_all(items, tokenizer, output, Selection(), crf=crf, force=True)
    inspection = Inspection()
    inspection.add_all(items, 2, len(items))
    json.dumps(inspection.summary())
    return [item for item in items if not isinstance(item, DamagedRecordError)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_token_shards(tmp_path, tokenizer, blocks, kind, packed):
    path = shard_of(tmp_path / f"t-train.{kind}-00000-of-00001", blocks, packed)
    assert len(use_tokens(path, tmp_path / "out", tokenizer)) == 3
    whole, rng = path.read_bytes(), generator(kind)
    for turn in range(10 if packed else 40):  # Packed ones are slow.
        path.write_bytes(damaged(whole, rng))
        survives(lambda turn=turn: use_tokens(path, tmp_path / f"{turn}", tokenizer))
        survives(lambda: len(list(TokenDataset(str(path)))))


def test_token_records_of_strange_numbers_and_names(tmp_path, tokenizer, blocks):
    """Their checksums are right: they were made to harm."""
    rng, path = generator("records"), tmp_path / "t-train.tfrecord-00000-of-00001"
    fields = [field for field in dataclasses.fields(TokenRecord) if field.name != "tokens"]
    integers = [v for v in STRANGE if isinstance(v, int) and abs(v) < 2**63] + [2**62, -(2**62), 5]
    texts = [v for v in STRANGE if isinstance(v, str)] + ["a\0b", "..", "b/c.mp4/d", "é" * 300]
    reals = [float(v) for v in STRANGE if isinstance(v, float)] + [1e-30, 1e9]
    for turn in range(120):
        records = list(blocks)
        for _ in range(int(rng.integers(1, 4))):
            number, field = rng.integers(3), fields[rng.integers(len(fields))]
            kind = type(getattr(blocks[0], field.name))
            values = {int: integers, str: texts, float: reals}[kind]
            value = values[rng.integers(len(values))]
            tokens = records[number].tokens
            if rng.integers(8) == 0:
                tokens = tuple(level[:, :, : rng.integers(3)] for level in tokens)
            if rng.integers(8) == 0:
                tokens = tuple(np.full_like(level, 65535) for level in tokens)
            records[number] = dataclasses.replace(
                records[number], **({field.name: value} | {"tokens": tokens})
            )
        try:
            shard_of(path, records)
        except (ValueError, OverflowError, TypeError):  # What protocol buffers cannot hold.
            continue
        inside = tmp_path / f"{turn}" / "inside"
        survives(lambda inside=inside: use_tokens(path, inside, tokenizer, crf=None))
        assert not inside.parent.exists() or list(inside.parent.iterdir()) == [inside]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    state = initial_state({"w": jnp.arange(5.0), "v": jnp.ones((2, 2))}, optax.adam(1e-3))
    checkpoints = Checkpoints(folder, training_config())
    checkpoints.save(state._replace(step=jnp.asarray(2, state.step.dtype)), {"loader": {}})
    checkpoints.close()
    return folder


def test_checkpoints(run_folder, monkeypatch):
    monkeypatch.delenv("PYRATOK_VERIFY", raising=False)
    files = [p for p in sorted((run_folder / "checkpoints" / "2").rglob("*")) if p.is_file()]
    whole, rng = {path: path.read_bytes() for path in files}, generator("checkpoint")
    expected = read_parameters(run_folder, 2)
    for turn in range(24):
        path = files[turn % len(files)]
        if not whole[path]:
            continue
        path.write_bytes(damaged(whole[path], rng, 0))

        def read():
            found = read_parameters(run_folder, 2)
            assert all(np.array_equal(found[name], expected[name]) for name in expected)

        survives(read)
        path.write_bytes(whole[path])


def settings(tmp_path, tokenizer):
    """File name -> (its content, how it is read)."""
    config = tiny_config()
    write_description(
        tmp_path, config, backbone={"spec": "builtin:demo", "sha256": "0"},
        language_model={"spec": "x", "sha256": "0", "length": 8, "bits": 0},
        alignment={"width": 8, "depth": 1},
    )  # fmt: skip
    description = json.loads((tmp_path / "tokenizer.json").read_text())

    def described():
        values = read_description(tmp_path)
        stored_config(values, str(tmp_path / "tokenizer.json"))

    converted = {"format": FORMAT, "kind": "wan-vae", "config": config.vae.to_dict(),
                 "shapes": {"a": [2, 3]}, "dtype": "float32", "sha256": "0" * 64,
                 "source": ["x"]}  # fmt: skip
    language = {"model_type": "llama", "num_attention_heads": 2, "hidden_size": 8,
                "vocab_size": 9, "num_hidden_layers": 1, "intermediate_size": 8,
                "rope_scaling": {"rope_type": "linear", "factor": 2.0}}  # fmt: skip
    plan = ExportPlan(
        str(tmp_path), ExportOptions().resolved(4), provenance_of(tokenizer), "x", "0", 1
    )
    job = ShardedJob(str(tmp_path), "tokens", "tfrecord", 1)
    (tmp_path / "tokens-train.tfrecord-00000-of-00001").write_bytes(b"")
    report = {"clips": 3, "rejected": [], "file_bytes": 0, "sha256": {"": "0"}}
    (tmp_path / "reports").mkdir()
    (tmp_path / "t-train.tfrecord").write_bytes(b"")
    write_embeddings(
        tmp_path / "captions", ["one", "two"],
        lambda texts: (np.ones((len(texts), 3, 4), np.float32), np.ones((len(texts), 3), bool)),
        length=8, model="x", batch=2,
    )  # fmt: skip
    index = json.loads((tmp_path / "captions" / "index.json").read_text())
    metrics = {"step": 1, "loss": 2.0, "psnr": 20.0, "heldout_tokens/nats": 3.0}
    model = {"role": "model", "name": "full", "psnr": 20.0, "ssim": None, "lpips": 0.1, "bpp": 0.2}
    words = ("prompts", "number", "colour", "shape", "count", "motion", "everything")
    results = {"task": "generation", "data": "d", "protocol": {"samples": 3}, "items_hash": "0",
               "method": "m", "bpp": 0.1, "checkpoint": {"generator": "ab" * 32},
               "metrics": {"nats": 3.0, "faithfulness": [dict.fromkeys(words, 0.5)]}}  # fmt: skip

    def compared():
        other_results([str(tmp_path)], results)
        publishing._results(str(tmp_path), "ab" * 32)

    return {
        "tokenizer.json": (description, described),
        "config.json": (converted, lambda: read_config(tmp_path, "wan-vae")),
        "language.json": (
            language, lambda: parse_config(json.loads((tmp_path / "language.json").read_text()))
        ),
        "export.json": (plan.to_dict(), plan.write_or_compare),
        "reports/00000.json": (report, lambda: (job.finished_report(0), job.is_intact(0))),
        "dataset_card.json": ({"frames": 3}, lambda: TokenDataset(str(tmp_path)).card),
        "captions/index.json": (index, lambda: StoredCaptions(tmp_path / "captions")(["one"])),
        "metrics.jsonl": (metrics, lambda: read_metrics(epath.Path(tmp_path) / "metrics.jsonl")),
        "./metrics.jsonl": (metrics, lambda: publishing._logged(tmp_path, 5)),
        "metrics.json": (
            {"steps": 3, "heldout": [model, {"name": "random", "psnr": 9.0}], "checkpoint": "a"},
            lambda: (results_of(tmp_path), card_of(tmp_path, description, 3, "", "a")),
        ),
        "results.json": (results, compared),
    }  # fmt: skip


def test_settings_and_records_of_a_run(tmp_path, tokenizer):
    for name, (value, read) in settings(tmp_path, tokenizer).items():
        path, rng = tmp_path / name, generator(name)
        whole = json.dumps(value).encode()
        path.write_bytes(whole + b"\n")
        assert survives(read), name
        for turn in range(120):
            text = json.dumps(mistaken(value, rng)).encode() if turn % 2 else damaged(whole, rng, 0)
            path.write_bytes(text + b"\n")
            if name == "language.json" and not turn % 2:
                continue
            survives(read)
        path.unlink()
