"""docs/examples: exported tokens are read without this package, and are what was written."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from pyratok_jax.generator.token_dataset import write_samples
from pyratok_jax.io.shards import FORMATS, write_tfds_metadata
from pyratok_jax.tokens.plan import DATASET
from pyratok_jax.tokens.schema import TOKEN_SCHEMA, TokenRecord, tfds_features

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SMALL, LARGE = ((1, 1, 2), (1, 2, 4)), ((2, 1, 2), (2, 2, 4))
BLOCKED = ("pyratok_jax", "weights_conversion")
# Runs a script as `python SCRIPT FOLDER` does, then appends code that stores what it has read.
RUN = """
import sys
import numpy as np
for name in {blocked}:
    sys.modules[name] = None  # Any import of it fails.
script, folder, output = sys.argv[1:]
sys.argv = [script, folder]
scope = dict(__name__="__main__")
exec(compile(open(script).read(), script, "exec"), scope)
found = {{}}
exec({collect!r}, scope | dict(np=np, found=found))
np.savez(output, **found)
"""
COLLECT = {
    "tfds": """
for r in records:
    found[r["id"].decode()] = np.concatenate([r["tokens_1"].ravel(), r["tokens_2"].ravel()])
    found[r["caption"].decode() + "/2"] = r["tokens_2"]
""",
    "grain": """
for b in batches:
    for i in range(len(b["id"])):
        found[b["id"][i].decode()] = np.concatenate([b[k][i].ravel() for k in keys])
        found[b["caption"][i].decode() + "/2"] = b["tokens_2"][i]
""",
    "torch": """
for captions, rows in batches:
    for caption, row in zip(captions, rows.numpy(), strict=True):
        found[caption] = row
""",
}


def record(number: int) -> TokenRecord:
    """Every fourth record is longer than the others."""
    grids = LARGE if number % 4 == 3 else SMALL
    rng = np.random.default_rng(number)
    tokens = tuple(rng.integers(0, 2**16, grid).astype("<u2") for grid in grids)
    values = dict.fromkeys(TOKEN_SCHEMA.texts, "") | dict.fromkeys(TOKEN_SCHEMA.floats, 1.0)
    values |= dict.fromkeys(TOKEN_SCHEMA.integers, 1)
    values |= dict.fromkeys(("first_frame", "top", "left", "block", "overlap"), 0)
    values |= dict.fromkeys(("padded_frames", "padded_height", "padded_width"), 4)
    values |= {"bits": 16, "vocabulary": 2**16, "levels": 2}
    values |= {"id": f"clip{number}", "caption": f"caption {number}"}
    return TokenRecord(tokens=tokens, **values)


@pytest.fixture(scope="module")
def truth() -> list[TokenRecord]:
    return [record(number) for number in range(8)]


@pytest.fixture(scope="module")
def folder(truth, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    shard = write_samples(folder, truth)
    write_tfds_metadata(
        epath.Path(folder), dataset=DATASET, kind=FORMATS[0], features=tfds_features(16, 2, False),
        lengths=[len(truth)], size=shard.stat().st_size, description="test",
    )  # fmt: skip
    return folder


def read(name: str, folder: Path, tmp_path: Path) -> dict[str, np.ndarray]:
    """What a script reads, in a process and a directory of its own, without this package."""
    code = RUN.format(blocked=BLOCKED, collect=COLLECT[name])
    script = EXAMPLES / f"read_with_{name}.py"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(script), str(folder), str(tmp_path / "read.npz")],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    with np.load(tmp_path / "read.npz") as found:
        return dict(found)


def flat(one: TokenRecord) -> np.ndarray:
    return np.concatenate([level.ravel() for level in one.tokens])


@pytest.mark.parametrize("name", ["tfds", "grain"])
def test_levels_are_read_in_their_shapes(name, truth, folder, tmp_path):
    found = read(name, folder, tmp_path)
    # The batches of grain are the records with the grids of the first.
    expected = [one for one in truth if name == "tfds" or one.grids == SMALL]
    assert len(found) == 2 * len(expected)
    for one in expected:
        assert found[one.id].dtype == np.uint16
        np.testing.assert_array_equal(found[one.id], flat(one))
        np.testing.assert_array_equal(found[f"{one.caption}/2"], one.tokens[1], strict=True)


def test_sequences_are_padded_at_the_end(truth, folder, tmp_path):
    found = read("torch", folder, tmp_path)
    assert found.keys() == {one.caption for one in truth}
    for number, one in enumerate(truth):
        pair = truth[number - number % 2 : number - number % 2 + 2]
        row = np.full(max(r.count for r in pair), -1)
        row[: one.count] = flat(one)
        np.testing.assert_array_equal(found[one.caption], row)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_a_script_is_short_and_imports_nothing_of_ours(path):
    source = path.read_text()
    lines = {line for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)
             for line in range(node.lineno, (node.end_lineno or 0) + 1)}  # fmt: skip
    lines = {n for n in lines if source.splitlines()[n - 1].strip() and '"""' not in
             source.splitlines()[n - 1]}  # fmt: skip
    assert 0 < len(lines) <= 15
    assert not any(name in source for name in BLOCKED)
    assert source.split('"""\n\n', 1)[1] in (EXAMPLES.parent / "downstream.md").read_text()
