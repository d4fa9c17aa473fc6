import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyratok_jax.tokens.options import ExportOptions
from pyratok_jax.tokens.plan import ExportPlan, provenance_of, source_fingerprint
from tests.data.synthetic import numbered_frames, write_video
from tests.tokens.tiny import PixelTokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tokenizer():
    return PixelTokenizer()


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """Seven clips of two shapes and several lengths, an image, and two broken files."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for i, frames in enumerate((5, 7, 12, 5, 9, 3, 5)):
        height, width = (40, 30) if i == 1 else (32, 48)
        video = numbered_frames(frames, height, width)
        video[:, :16] = rng.integers(0, 255, (frames, 4, width // 2, 3)).repeat(4, 1).repeat(2, 2)
        write_video(folder / f"clip{i}.mp4", video)
        if i != 3:
            (folder / f"clip{i}.txt").write_text(f"noise number {i}")
    Image.fromarray(rng.integers(0, 255, (30, 41, 3), dtype=np.uint8)).save(folder / "still.png")
    (folder / "text.mp4").write_text("no video")
    whole = write_video(folder / "whole.mp4", rng.integers(0, 255, (40, 64, 64, 3), dtype=np.uint8))
    data = whole.read_bytes()
    (folder / "cut.mp4").write_bytes(data[: int(len(data) * 0.6)])
    whole.unlink()
    return folder


def plan_of(tokenizer, records, output, **changes):
    options = ExportOptions(**({"shards": 3, "window": 5, "batch": 2} | changes)).resolved(4)
    output.mkdir(parents=True, exist_ok=True)
    return ExportPlan(str(output), options, provenance_of(tokenizer), "test",
                source_fingerprint(records), len(records))  # fmt: skip


@pytest.fixture
def make_plan(tokenizer):
    return functools.partial(plan_of, tokenizer)


@pytest.fixture
def start_export():
    """Starts the real command in a process of its own, on the pixel tokenizer."""

    def start(*arguments, wait=True, **environment):
        command = [sys.executable, str(Path(__file__).parent / "export_process.py")]
        process = subprocess.Popen(
            command + [str(a) for a in arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        )  # fmt: skip
        if not wait:
            return process
        process.out, process.err = process.communicate(timeout=300)
        return process

    return start


@pytest.fixture
def copy_of():
    return lambda source, target: Path(shutil.copytree(source, target))
