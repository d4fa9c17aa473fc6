"""A prior from token files to videos: training, exact resume, the command, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax import embed_captions, generate, publish
from pyratok_jax.checkpoints.working_folder import read_parameters
from pyratok_jax.data.caption_embeddings import write_embeddings
from pyratok_jax.data.video.files import iter_frames
from pyratok_jax.data.video.pictures import read_image
from pyratok_jax.data.video.writer import VideoWriter
from pyratok_jax.errors import UserError
from pyratok_jax.generator import load_generator, loading, publishing
from pyratok_jax.generator.loading import DESCRIPTION, FrozenText, read_description
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.tokenizer import Tokenizer
from pyratok_jax.tokens.dataset import TokenDataset, read_all
from pyratok_jax.tokens.decoding import Selection, decode_all
from pyratok_jax.training import generator_system
from pyratok_jax.training.loop.loop import train
from pyratok_jax.training.tasks import generator as task_module
from pyratok_jax.training.tasks.generator import GeneratorTask
from tests.gcs_server import upload
from tests.generator.tiny import CAPTIONS, GRIDS, config, same, tokenizer, write_tokens
from tests.training.worker import without_tensorboard


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp("data") / "tokens")


@pytest.fixture(scope="module")
def patched():
    """The tiny tokenizer wherever one is loaded, and no TensorBoard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_module, "load_tokenizer", lambda path: tokenizer())
        patch.setattr(loading, "load_tokenizer", lambda path: tokenizer())
        patch.setitem(__import__("sys").modules, "clu.metric_writers", None)
        without_tensorboard()
        yield


@pytest.fixture(scope="module")
def workdir(tokens, patched, tmp_path_factory):
    """A trained generator of order blocks."""
    folder = tmp_path_factory.mktemp("run") / "work"
    folder.mkdir()
    outputs = task_module.run(config(tokens, "blocks"), folder)
    assert outputs["generator"] == folder
    return folder


def test_a_training_leaves_what_generate_needs(workdir):
    assert (workdir / DESCRIPTION).exists()
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    terms = "nats nats_level_1 nats_level_2 nats_first_group nats_later_groups bit_accuracy"
    assert set(terms.split()) <= rows[-1].keys()
    assert rows[-1]["random_nats"] == pytest.approx(6 * np.log(2), rel=1e-6)
    # Frozen weights are not in the checkpoint.
    assert all(name.startswith("prior.") for name in read_parameters(workdir, 6))


def test_a_resumed_training_is_the_unbroken_one(tokens, patched, tmp_path):
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    for steps in (3, 6):
        made = config(tokens, "raster", steps=steps)
        train(made, parts, GeneratorTask(made))
    unbroken = config(tokens, "raster")
    # Measuring held-out tokens changes nothing.
    evaluator = {"name": "heldout_tokens", "every": 6, "path": str(tokens), "batches": 2}
    unbroken.evaluators = (evaluator,)
    train(unbroken, whole, GeneratorTask(unbroken))
    assert same(read_parameters(parts, 6), read_parameters(whole, 6))
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    found = {name.removeprefix("heldout_tokens/"): value for name, value in rows[-1].items()}
    gain = found["nats_none"] - found["nats"]
    assert found["nats_gain"] == pytest.approx(gain, abs=1e-5) and gain != 0
    assert not same(read_parameters(parts, 3), read_parameters(whole, 6))


def test_a_prior_keeps_its_words_and_classes(tokens, patched, workdir, tmp_path, monkeypatch):
    for change, start, place, message in (
        ({"language": FrozenText("", "ab" * 32, 8)}, "", workdir, "weights of the language model"),
        ({"classes": ("a", "b")}, str(workdir), tmp_path, "conditioning.classes are not those of"),
    ):
        other = dataclasses.replace(read_description(workdir), **change)
        monkeypatch.setattr(task_module, "read_description", lambda folder, other=other: other)
        with pytest.raises(UserError, match=message):
            made = config(tokens, "blocks", steps=1, init_from=start)
            made.conditioning.classes = ("b", "a") if start else ()
            task_module.run(made, place)


def test_a_prior_starts_from_another(tokens, patched, workdir, tmp_path, capfd):
    """What both have is taken over, before the first step; what is new is named."""
    made = config(tokens, "blocks", steps=1, init_from=str(workdir))
    made.optimizer.learning_rate = 0.0
    made.model.head = "mbm"
    made.model.head_layers = 1
    assert task_module.run(made, tmp_path / "tuned") is not None
    before, after = read_parameters(workdir, 6), read_parameters(tmp_path / "tuned", 1)
    shared = [n for n in before if n in after and "text_statistics" not in n]
    assert len(shared) > 20 and all(np.array_equal(before[n], after[n]) for n in shared)
    said = capfd.readouterr().out
    assert "arrays taken over" in said and "prior.head.known.kernel" in said
    made = config(tokens, "raster", steps=1, init_from=str(workdir))
    made.model.width = 16
    with pytest.raises(UserError, match=r"init_from .* does not fit"):
        task_module.run(made, tmp_path / "other")


def test_batches_are_the_records(tokens, patched):
    task = GeneratorTask(config(tokens, "raster"))
    loader = task.make_loader(lambda rows: (0, 1))
    batch = next(loader)
    loader.close()
    assert [batch.arrays[f"level_{n}"].shape[1:] for n in (1, 2)] == list(GRIDS)
    records = {r.tokens[1].tobytes(): r for r in TokenDataset(str(tokens))}
    for row in range(2):
        own = records[batch.arrays["level_2"][row].astype("<u2").tobytes()]
        for number, level in enumerate(own.tokens, start=1):
            np.testing.assert_array_equal(batch.arrays[f"level_{number}"][row], level)
    assert batch.arrays["text_ids"].shape == (2, 4)


def test_flipped_tokens_are_read_and_not_flipped_again(patched, tmp_path, monkeypatch):
    read = tuple(np.full(grid, 63, "<u2") for grid in GRIDS)
    flipped = write_tokens(tmp_path / "flipped", read=read)
    task = GeneratorTask(config(flipped, "raster"))
    loader = task.make_loader(lambda rows: (0, 1))
    batch = jax.tree.map(jnp.asarray, next(loader).arrays)
    loader.close()
    assert [batch[f"read_{n}"].shape for n in (1, 2)] == [(2, *grid) for grid in GRIDS]
    seen = {}
    monkeypatch.setattr(generator_system, "prior_loss", lambda *a, **k: seen.update(k, codes=a[1]))
    task.loss(task.system, batch, jax.random.key(0), None)
    assert (seen["read"] == 1).all() and not (seen["codes"] == 1).all()
    with pytest.raises(UserError, match="without --flip"):
        task.heldout_loader(str(flipped), lambda rows: (0, 1))
    made = config(flipped, "raster")
    made.objective.flip = 0.1
    with pytest.raises(UserError, match=r"objective\.flip is 0\.1.* set it to 0") as caught:
        GeneratorTask(made)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def captions(tokens, patched, tmp_path_factory):
    """What `embed_captions --tokens --checkpoint` makes of the captions."""
    folder = tmp_path_factory.mktemp("stored") / "captions"
    arguments = ["embed_captions", "--tokens", str(tokens), "--output", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyratok_jax.tokenizer.load_tokenizer", lambda path: tokenizer())
        patch.setattr("sys.argv", [*arguments, "--checkpoint", "tiny", "--batch", "2"])
        assert embed_captions.main() == 0
    return folder


def test_stored_captions_take_the_place_of_the_language_model(tokens, captions, patched):
    made = config(tokens, "raster")
    made.conditioning.drop = 0.5
    run = GeneratorTask(made)
    made.conditioning.stored = str(captions)
    read = GeneratorTask(made)
    assert run.system.text is not None and read.system.text is None
    prefixes = []
    for task in (run, read):
        loader = task.make_loader(lambda rows: (0, 1))
        batches = [next(loader).arrays for _ in range(4)]
        loader.close()
        system = task.system
        rows = [system.condition(jax.tree.map(jnp.asarray, batch), 2) for batch in batches]
        prefixes.append([system.prior.conditioner(row) for row in rows])
    for a, b in zip(*prefixes, strict=True):
        np.testing.assert_array_equal(a.valid, b.valid)
        np.testing.assert_allclose(a.x[a.valid], b.x[b.valid], atol=5e-3)
    assert sum(int(a.valid.sum()) for a in prefixes[0]) > 8


def test_stored_captions_of_another_model_or_length_are_refused(
    tokens, captions, patched, tmp_path
):
    def embed(group):
        return np.ones((len(group), 4, 12), np.float32), np.ones((len(group), 4), bool)

    made = config(tokens, "raster")
    other = write_embeddings(tmp_path / "other", CAPTIONS, embed, length=4, model="x")
    made.conditioning.stored = str(other)
    with pytest.raises(UserError, match="holds other embeddings of"):
        GeneratorTask(made)
    made.conditioning.update({"stored": str(captions), "length": 3})
    with pytest.raises(UserError, match="holds 4 tokens of width 12, not 3 of 12"):
        GeneratorTask(made)
    made.conditioning.kind = "none"
    with pytest.raises(UserError, match="needs conditioning.kind text"):
        GeneratorTask(made)


def test_classes_are_read_off_the_captions(tokens, patched):
    made = config(tokens, "masked")
    made.conditioning.update({"kind": "classes", "classes": ("a b", "b c", "c c d"), "drop": 0.5})
    task = GeneratorTask(made)
    assert task.system.text is None and task.sizes.classes == 3
    loader = task.make_loader(lambda rows: (0, 1))
    found = np.concatenate([next(loader).arrays["classes"] for _ in range(12)])
    loader.close()
    assert set(found) == {-1, 0, 1, 2}


@pytest.fixture(scope="module")
def samples(workdir, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "videos"
    arguments = ["--checkpoint", str(workdir), "--output", str(output), "--prompt", "a b",
                 "--per-prompt", "3", "--batch", "1", "--guidance", "2"]  # fmt: skip
    assert generate.main(arguments) == 0
    return output


def test_the_command_writes_videos_a_record_and_a_page(samples, workdir, tmp_path, monkeypatch):
    rows = [json.loads(line) for line in (samples / "samples.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == [f"sample{n:05d}.mp4" for n in range(3)]
    assert rows[0]["sampling"]["guidance"] == 2 and rows[0]["sampling"]["steps"] == [2, 1]
    assert rows[0]["size"] == [5, 16, 16] and rows[0]["fps"] == 8
    for row in rows:
        assert frames_of(samples / row["file"]).shape == (5, 16, 16, 3)
    page = (samples / "index.html").read_text()
    assert page.count("<video") == 3 and "a b" in page
    # A record reproduces its sample.
    generator = load_generator(workdir)
    sampling = guided(generator)
    (clip,) = generator.generate("a b", sampling=sampling, first=2, seed=rows[2]["seed"])
    video = generator.decode(clip)
    np.testing.assert_array_equal(stored(video, tmp_path), frames_of(samples / rows[2]["file"]))
    # The tokens that are decoded as they are drawn are those of the whole clip.
    chunks = []

    def decode_next(self, ids, caches=None):
        chunks.append(ids)
        return np.zeros((1, 1 if caches is None else 4, 16, 16, 3), np.uint8), "caches"

    monkeypatch.setattr(Tokenizer, "decode_next", decode_next)
    pieces = list(generator.stream("a b", sampling, first=2))
    assert [len(piece) for piece in pieces] == [1, 4]
    for level, own in zip(zip(*chunks, strict=True), clip.encoded.ids, strict=True):
        np.testing.assert_array_equal(np.concatenate(level, axis=1)[0], own)


def test_samples_are_drawn_and_a_prior_is_published_in_a_bucket(bucket, samples, workdir):
    upload(bucket, workdir, "prior")
    publish.main(["gs://bucket/prior", "--output", "gs://bucket/published"])
    given = ["--checkpoint", "gs://bucket/published", "--prompt", "a b", "--batch", "1"]
    given += ["--guidance", "2", "--output", "gs://bucket/samples"]
    assert generate.main(given) == 0
    (row,) = [json.loads(x) for x in bucket.objects["samples/samples.jsonl"][0].splitlines()]
    first = json.loads((samples / "samples.jsonl").read_text().splitlines()[0])
    assert row == first
    assert bucket.objects[f"samples/{row['file']}"][0] == (samples / row["file"]).read_bytes()
    assert b"<video" in bucket.objects["samples/index.html"][0]
    with pytest.raises(UserError, match="holds samples already"):
        generate.main(given)


def guided(generator):
    arguments = ["--checkpoint", "", "--output", "", "--guidance", "2"]
    return generate.sampling_of(generate.parser().parse_args(arguments), generator.sampling)


def frames_of(path):
    return np.stack(list(iter_frames(path)))


def stored(video, folder):
    """A video as it comes back from a file, which is lossy."""
    with VideoWriter(folder / "again.mp4", fps=8.0) as writer:
        for frame in video:
            writer.write(np.ascontiguousarray(frame))
    return frames_of(folder / "again.mp4")


@pytest.fixture(scope="module")
def aligned(workdir, patched):
    """The generator with a tokenizer whose codes lie in a text space."""
    plain = tokenizer()
    alignment = Alignment(6, 2, plain.text.width, rngs=nnx.Rngs(3), text_hidden=8)
    found = Tokenizer(plain.model, text=plain.text, captions=plain.captions, alignment=alignment,
                      checkpoint_hash=plain.checkpoint_hash)  # fmt: skip
    return load_generator(workdir, tokenizer=found)


def plain_likeness(generator, ids, prompt):
    """`ranking.says_prompt` of one clip in float64, without its functions."""
    vector = np.asarray(generator.tokenizer.text_features([prompt])[0], np.float64)
    found = []
    for level in generator.tokenizer.code_embeddings([x[None] for x in ids]):
        rows = np.asarray(level, np.float64).reshape(-1, level.shape[-1])
        peaks = np.log(np.mean(np.exp(2.0 * rows), axis=0))
        found.append(peaks @ vector / np.linalg.norm(peaks) / np.linalg.norm(vector))
    return np.mean(found)


def test_of_several_candidates_the_one_is_kept_that_says_the_prompt_best(aligned):
    prompts, many = ["a b", "c c d", "b", "d"], 4
    kept = aligned.generate(prompts, candidates=many, batch=4, seed=3)
    assert [clip.number for clip in kept] == [0, 1, 2, 3]
    keys = {}
    for tries in range(1, many + 1):  # More candidates are the fewer ones and others.
        for clip in aligned.generate(prompts, candidates=tries, batch=4, seed=3):
            keys[clip.number, clip.candidate] = clip.encoded.ids
    for clip in kept:
        best = plain_likeness(aligned, clip.encoded.ids, clip.prompt)
        assert clip.likeness == pytest.approx(best, abs=1e-5)
        ids = keys[clip.number, clip.candidate]
        assert all(map(np.array_equal, ids, clip.encoded.ids))
        others = [x for (number, _), x in keys.items() if number == clip.number]
        assert best >= max(plain_likeness(aligned, x, clip.prompt) for x in others) - 1e-6
    assert any(clip.candidate for clip in kept)
    # The first candidate is what is drawn alone, and the others are not it.
    for clip in aligned.generate(prompts, seed=3):
        assert clip.likeness is None and clip.candidate == 0
        assert all(map(np.array_equal, clip.encoded.ids, keys[clip.number, 0]))
    draws = {number: {ids[-1].tobytes() for (n, _), ids in keys.items() if n == number}
             for number in range(4)}  # fmt: skip
    assert all(len(found) > 1 for found in draws.values())


def test_candidates_need_a_prompt_and_are_recorded(aligned, workdir, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="one is empty"):
        aligned.generate(["a", ""], candidates=2)
    with pytest.raises(UserError, match="leave --candidates at 1"):
        next(aligned.stream("a", candidates=2))
    monkeypatch.setattr(generate, "keep_programs", lambda: None)
    monkeypatch.setattr(loading, "load_tokenizer", lambda path: aligned.tokenizer)
    asked = ["--checkpoint", str(workdir), "--output", str(tmp_path / "o"), "--prompt", "a b"]
    assert generate.main([*asked, "--candidates", "3", "--tokens-only"]) == 0
    (row,) = map(json.loads, (tmp_path / "o/samples.jsonl").read_text().splitlines())
    (clip,) = load_generator(workdir).generate("a b", candidates=3)
    assert (row["candidates"], row["candidate"]) == (3, clip.candidate)
    assert row["likeness"] == pytest.approx(clip.likeness, abs=1e-6)


def test_tokens_only_are_a_dataset_that_decodes(workdir, tmp_path, samples):
    output = tmp_path / "tokens"
    arguments = ["--checkpoint", str(workdir), "--output", str(output), "--prompt", "a b",
                 "--per-prompt", "2", "--batch", "1", "--guidance", "2",
                 "--tokens-only"]  # fmt: skip
    assert generate.main(arguments) == 0
    assert not list(output.glob("*.mp4"))
    (first, _) = TokenDataset(str(output))
    assert first.grids == GRIDS and first.caption == "a b" and first.fps == 8
    outcome = decode_all(
        read_all(str(output)), tokenizer(), tmp_path / "decoded", Selection(), crf=None
    )
    assert not outcome.bad and outcome.frames == 10
    pictures = sorted(outcome.videos["sample00000"].glob("*.png"))
    decoded = np.stack([read_image(path) for path in pictures])
    shown = frames_of(samples / "sample00000.mp4")
    np.testing.assert_array_equal(stored(decoded, tmp_path), shown)


def test_a_picture_begins_the_clip(workdir, monkeypatch):
    wanted = (np.array([[[[5]]]], np.uint32), np.array([[[[1, 2], [3, 4]]]], np.uint32))
    seen = []

    def encode(self, video, captions=None):
        seen.append(video)
        return wanted

    generator = load_generator(workdir)
    monkeypatch.setattr(Tokenizer, "encode_padded", encode)
    picture = np.full((1, 16, 16, 3), 200, np.uint8)
    asked = ["a b", "b c"]
    clips = generator.generate(asked, sampling=guided(generator), video=picture, batch=1)
    np.testing.assert_array_equal(seen[0][0], picture)
    for clip in clips:
        for level, own in zip(clip.encoded.ids, wanted, strict=True):
            np.testing.assert_array_equal(level[:1], own[0])
    many = np.repeat(picture, 5, axis=0)
    with pytest.raises(UserError, match="nothing is left to draw"):
        generator.generate("a b", video=many)
    with pytest.raises(UserError, match="needs a prior of order masked"):
        generator.generate("a b", video=many, task="inpainting")


def test_a_published_prior_gives_the_samples_of_the_run(workdir, patched, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    row = {"prompts": "own", "number": 4, "colour": 0.5, "shape": 0.25, "count": 1.0,
           "motion": 0.75, "everything": 0.125}  # fmt: skip
    digest = load_generator(workdir).checkpoint_hash
    found = {"task": "generation", "data": "builtin:world-heldout",
             "protocol": {"samples": 4, "guidance": -1.0}, "checkpoint": {"generator": digest},
             "metrics": {"faithfulness": [row], "nats": 1.5}}  # fmt: skip
    (results / "results.json").write_text(json.dumps(found))
    folder = tmp_path / "published"
    publish.main([str(workdir), "--output", str(folder), "--results", str(results)])
    card = (folder / "README.md").read_text()
    assert "samples 4.\n" in card and "guidance" not in card
    assert "| own | 4 | 50.0% | 25.0% | 100.0% | 75.0% | 12.5% |" in card and "1.500" in card
    ours, theirs = load_generator(workdir), load_generator(folder)
    assert ours.checkpoint_hash == theirs.checkpoint_hash
    (mine,), (other,) = ours.generate("a b", seed=3), theirs.generate("a b", seed=3)
    for a, b in zip(mine.encoded.ids, other.encoded.ids, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match="exists"):
        publish.main([str(workdir), "--output", str(folder)])
    with pytest.raises(UserError, match="published folder already"):
        publish.main([str(folder), "--output", str(tmp_path / "again")])


def test_what_cannot_be_published_is_refused(workdir, patched, tmp_path, monkeypatch):
    output = ["--output", str(tmp_path / "o")]
    with pytest.raises(UserError, match="has none"):
        publish.main([str(workdir), *output, "--bundle", "backbone"])
    (tmp_path / "results.json").write_text('{"task": "reconstruction"}')
    with pytest.raises(UserError, match="not of evaluate --task generation"):
        publish.main([str(workdir), *output, "--results", str(tmp_path)])
    other = dataclasses.replace(read_description(workdir), tokenizer_hash="cd" * 32)
    monkeypatch.setattr(publishing, "read_description", lambda folder: other)
    monkeypatch.setattr(publishing, "load_tokenizer", lambda path: tokenizer())
    with pytest.raises(UserError, match="not the one whose tokens"):
        publish.main([str(workdir), *output, "--tokenizer", "builtin:world"])
    assert not (tmp_path / "o").exists()
    with pytest.raises(UserError, match="no shipped prior builtin:other"):
        load_generator("builtin:other")


REFUSED = [
    (["--prompt", "x", "--prompts", "f"], "either --prompt"),
    ([], "either --prompt"),
    (["--prompt", "x", "--size", "0x16"], "sides must be at least 1"),
    (["--prompt", "x", "--size", "big"], "expected HEIGHTxWIDTH"),
    (["--prompt", "x", "--size", "99999x16"], "cannot be generated"),
    (["--prompt", "x", "--frames", "-1"], "--frames -1"),
    (["--prompt", "x", "--frames", "5", "--seconds", "1"], "exclude each other"),
    (["--prompt", "x", "--temperature", "hot"], "expected numbers"),
    (["--prompt", "x", "--top-p", "2"], "top_p"),
    (["--prompt", "x", "--steps", "0"], "steps"),
    (["--prompt", "x", "--task", "inpainting"], "needs --video"),
    (["--prompt", "x", "--image", "missing.png"], "missing.png"),
    (["--prompt", "x", "--batch", "0"], "--batch 0"),
    (["--prompt", "x", "--candidates", "0"], "--candidates 0"),
    (["--prompt", "x", "--candidates", "2", "--stream"], "--stream .* leave --candidates at 1"),
    (["--prompt", "x", "--candidates", "2"], "trained with a text term"),
]


def test_each_of_several_prompts_is_drawn_as_often_as_asked_for():
    given = ["--prompt", "a", "--prompt", "", "--per-prompt", "2"]
    arguments = generate.parser().parse_args(["--checkpoint", "x", "--output", "y", *given])
    assert generate.prompts_of(arguments) == ["a", "a", "", ""]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_cannot_be_generated_is_refused_in_one_line(workdir, tmp_path, arguments, message):
    base = ["--checkpoint", str(workdir), "--output", str(tmp_path / "o")]
    with pytest.raises(UserError, match=message) as caught:
        generate.main([*base, *arguments])
    assert "\n" not in str(caught.value)


def test_empty_files_other_folders_and_other_tokens_are_refused(workdir, tokens, patched, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    output = ["--output", str(tmp_path / "o")]
    with pytest.raises(UserError, match="holds no prompt"):
        generate.main(["--checkpoint", str(workdir), *output, "--prompts", str(empty)])
    with pytest.raises(UserError, match="no such folder"):
        generate.main(["--checkpoint", str(tmp_path / "none"), *output, "--prompt", "x"])
    with pytest.raises(UserError, match="holds no checkpoint"):
        generate.main(["--checkpoint", str(tokens), *output, "--prompt", "x"])
    other = write_tokens(tmp_path / "other", checkpoint="cd" * 32)
    with pytest.raises(UserError, match="tokens of another tokenizer"):
        GeneratorTask(config(other, "raster"))
    said = json.loads((workdir / DESCRIPTION).read_text())
    (tmp_path / "moved").mkdir()
    changed = json.dumps(said | {"tokenizer_hash": "cd" * 32})
    (tmp_path / "moved" / DESCRIPTION).write_text(changed)
    (tmp_path / "moved" / "checkpoints" / "6").mkdir(parents=True)
    with pytest.raises(UserError, match="another tokenizer"):
        load_generator(tmp_path / "moved")
    for order, changes, message in (
        ("raster", {"head": "softmax", "heads": 3}, "must divide"),
        ("spiral", {}, "order 'spiral'"),
    ):
        made = config(tokens, order)
        made.model.update(changes)
        with pytest.raises(UserError, match=message):
            GeneratorTask(made)
    made = config(tokens, "raster")
    made.tokens.path = ""
    with pytest.raises(UserError, match=r"config\.tokens\.path"):
        GeneratorTask(made)
