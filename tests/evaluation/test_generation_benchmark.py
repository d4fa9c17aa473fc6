"""The benchmark of priors: what it trains anew, what it refuses, and its table."""

import json

import pytest

from benchmarks.world import generation

OPTIONS = [
    "--orders",
    "blocks",
    "--samples",
    "4",
    "--guidance",
    "3",
    "--steps",
    "8",
    "--clips",
    "6",
]


@pytest.fixture
def commands(monkeypatch):
    """Of all processes that would run, which leave what the real ones would leave."""
    made = []

    def call(*words):
        made.append(words)
        named = dict(word.partition("=")[::2] for word in words if "=" in word)
        if words[0] == "benchmarks.world.generation":
            folder = generation.Path(words[words.index("--tokens-to") + 1])
            folder.mkdir()
            asked = {name: named[f"--{name}"] for name in generation.OF_TOKENS[:-1]}
            numbers = {name: int(asked[name]) for name in ("clips", "things", "frames", "side")}
            asked |= numbers | {"shuffled": "--shuffled" in words}
            (folder / generation.MADE).write_text(json.dumps(asked))
        if words[0] == "pyratok_jax.evaluate":
            folder = generation.Path(words[words.index("--output") + 1])
            folder.mkdir(parents=True)
            metrics = {"samples": 4, "nats": 2.0, "random_nats": 8.0, "faithful": 0.5,
                       "faithful_chance": 0.1}  # fmt: skip
            (folder / "results.json").write_text(json.dumps({"metrics": metrics}))

    monkeypatch.setattr(generation, "call", call)
    return made


def run(folder, *more):
    generation.main([*OPTIONS, "--output", str(folder), *more])


def test_finished_rows_are_kept_and_other_options_refused(tmp_path, commands, capsys):
    run(tmp_path)
    kinds = [words[0].rpartition(".")[2] for words in commands]
    assert kinds == ["generation", "embed_captions", "train", "evaluate"]
    run(tmp_path)
    assert len(commands) == 4
    with pytest.raises(SystemExit, match="'steps': 8.* choose another --name"):
        run(tmp_path, "--steps", "9", "--guidance", "1")
    with pytest.raises(SystemExit, match="has world, blocks with"):
        run(tmp_path, "--tokenizer", "runs/mine")
    assert len(commands) == 4
    assert "| world | blocks | own | 3 |" in capsys.readouterr().out


def test_tokens_of_other_options_are_refused(tmp_path, commands):
    run(tmp_path)
    with pytest.raises(SystemExit, match="tokens_world was made with"):
        run(tmp_path, "--orders", "raster", "--side", "96")


def test_a_tokenizer_of_each_seed_has_tokens_of_its_own(tmp_path, commands):
    run(tmp_path, "--tokenizer", "runs/{odd}-{seed}", "--seeds", "0,1", "--name", "odd",
        "--config", "model.layers=2")  # fmt: skip
    trained = [words for words in commands if words[0] == "pyratok_jax.train"]
    assert [f"--config.tokenizer=runs/{{odd}}-{n}" in words for n, words in enumerate(trained)]
    assert all("--config.model.layers=2" in words for words in trained)
    folders = {path.name for path in tmp_path.iterdir() if path.name.startswith("tokens")}
    assert folders == {"tokens_odd_0", "tokens_odd_1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "200", "--things", "1"], "has 191 films"),
        (["--samples", "1"], "two prompts"),
        (["--frames", "4"], "motions are read off"),
        (["--fvd"], "takes 16 frames"),
    ],
)
def test_what_would_fail_after_the_trainings_is_refused_before(
    tmp_path, commands, arguments, message
):
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, *arguments)
    assert not commands


def test_samples_that_could_not_be_measured_are_no_row(tmp_path, commands, monkeypatch):
    with pytest.raises(SystemExit, match="4 of 5 samples"):
        run(tmp_path, "--samples", "5")
    assert not (tmp_path / "results.json").exists()
