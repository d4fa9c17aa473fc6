"""TensorFlow Datasets is loaded before there are threads.

While it is imported, `etils.epy.lazy_imports` replaces Python's import for the whole process, and
relative imports in all threads fail. Pillow has one in every reading of an image: a reader's thread
then took a good image for a broken one.
"""

import json

import numpy as np
import pytest
from PIL import Image

from pyratok_jax.data.prepare import main as prepare
from tests.data.synthetic import numbered_frames, write_video
from tests.processes import run_script

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    for number in range(3):
        write_video(folder / f"clip{number}.mp4", numbered_frames(9, 32, 32))
        pixels = np.full((32, 32, 3), 50 * number, np.uint8)
        Image.fromarray(pixels).save(folder / f"still{number}.png")
    return folder


def test_an_export(folder, tmp_path):
    arguments = ("--checkpoint", 0, "--input", folder, "--output", tmp_path / "o")
    options = ("--shards", 2, "--window", 5, "--batch", 2)
    run_script("guard_lazy_imports", "tests.tokens.export_process", *arguments, *options)
    assert (tmp_path / "o" / "rejected.jsonl").read_text() == ""


@pytest.mark.parametrize("prepared", [False, True])
def test_a_training_pipeline(folder, tmp_path, prepared):
    source = str(folder)
    if prepared:
        source = str(tmp_path / "shards")
        prepare(["--input", str(folder), "--output", source, "--shards", "2", "--runner", "none",
                 "--min-side", "16", "--buckets", "5x32x32"])  # fmt: skip
    config = {"sources": (source,), "buckets": ("5x32x32", "1x32x32"), "threads": 2}
    job = {"config": config, "seed": 0, "batch_size": 2, "steps": 4}
    run_script("guard_lazy_imports", "tests.data.stream_process", json.dumps(job))
