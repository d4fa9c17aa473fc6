"""The guide's commands in order, as it prints them, on two small videos.

What is changed: downloads are small folders of the same kind, and the trainings, clips and
compilations are made small by `CONFIGS` and the arguments in `SMALLER`.
"""

import os
import re
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pyratok_jax as pt
from tests.data.synthetic import numbered_frames, write_video
from tests.models.language.families import reference
from tests.training.tiny import VAE, write_tokenizer_files
from tests.weights_conversion.test_wan_vae import arrays_of, write

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
STEPS = ["--config.steps=2", "--config.log_every=1"]
HELDOUT = "--config.data.heldout=('my_heldout',)"
# Configs of fewer and smaller steps, in their place.
CONFIGS = {"--config demo:fine": "--config demo:smoke", "--config generator:demo":
           "--config generator:smoke"}  # fmt: skip
# Added to the command with these words; later values win.
SMALLER = {
    "compile_report": ["--config", "demo", "--topology", "v5e:2x2", "--bucket", "5x64x64",
                       "--chips", "1", "--step", "tokenise"],
    "--workdir runs/smoke": [*STEPS, HELDOUT],
    "--workdir runs/own": STEPS,
    "--workdir runs/generator": STEPS,
    "pyratok_jax.reconstruct": ["--lpips", "none", "--window", "5"],
    "pyratok_jax.evaluate": ["--limit", "1", "--set", "side=64", "--set", "fvd=false",
                             "--set", "lpips=none", "--set", "frames=5"],
    "pyratok_jax.export_tokens": ["--window", "5"],
}  # fmt: skip
# What a step must have left before the next begins.
LEAVES = {
    "--workdir runs/smoke": ["runs/smoke/report.html"],
    "data.inspect": ["inspection"],
    "data.prepare": ["data/mine/dataset_info.json", "data/mine/rejected.jsonl"],
    "weights_conversion.wan_vae": ["weights/wan21_vae/config.json"],
    "weights_conversion.language_model": ["weights/qwen25_vl_3b/config.json"],
    "--workdir runs/own": ["runs/own/tokenizer.json", "runs/own/report.html"],
    "pyratok_jax.reconstruct": ["out/metrics.json"],
    "pyratok_jax.evaluate": ["results/report.html"],
    "pyratok_jax.publish": ["my-tokenizer/model.safetensors"],
    "pyratok_jax.export_tokens": ["tokens/dataset_info.json"],
    "tokens.inspect": ["token_inspection"],
    "--workdir runs/generator": ["runs/generator/generator.json"],
    "pyratok_jax.generate": ["samples/index.html", "samples/samples.jsonl"],
}


def commands() -> list[str]:
    """The commands of the guide that are this project's, without their comments."""
    text = (ROOT / "docs" / "guide.md").read_text().replace("\\\n", " ")
    return [" ".join(line.split("#")[0].split())
            for line in re.findall(r"^    (python -m .*)$", text, re.M)]  # fmt: skip


def cpu_seconds() -> float:
    """Of all processes that have been started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture
def place(tmp_path):
    """What the guide takes for granted: videos, and the two downloads."""
    for folder, count in (("my_videos", 2), ("my_heldout", 1)):
        for number in range(count):
            path = write_video(tmp_path / folder / f"{number}.mp4", numbered_frames(9, 64, 64))
            path.with_suffix(".txt").write_text("a red square moves left")
    (tmp_path / "videos.csv").write_text("path\nmy_videos/0.mp4\nmy_videos/1.mp4\n")
    write_video(tmp_path / "clip.mp4", numbered_frames(9, 64, 64))
    write(tmp_path / "download" / "wan" / "vae", "diffusers", VAE, arrays_of(VAE))
    qwen = tmp_path / "download" / "qwen"
    reference("qwen2_5_vl").save_pretrained(qwen)
    write_tokenizer_files(qwen)
    return tmp_path


def test_every_step_of_the_guide_leaves_what_the_next_one_needs(place):
    found, left = commands(), dict(LEAVES)
    assert len(found) >= 15
    for command in found:
        more = [words for part, words in SMALLER.items() if part in command]
        small = re.sub(r"--config \S+", lambda one: CONFIGS.get(one[0], one[0]), command)
        words = [sys.executable, *shlex.split(small)[1:], *sum(more, [])]
        began, used = time.monotonic(), cpu_seconds()
        done = subprocess.run(
            words, cwd=place, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        # `pytest -s` shows what the guide says: what each step prints, and how long it takes.
        print(f"{time.monotonic() - began:.1f} s, {cpu_seconds() - used:.1f} CPU s: {command}")
        print(done.stdout)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
        for part in [part for part in left if part in command]:
            for name in left.pop(part):
                assert (place / name).exists(), f"{command} left no {name}"
    assert left == {}
    video = numbered_frames(5, 64, 64)
    tokenizer = pt.load_tokenizer(place / "my-tokenizer")
    assert tokenizer.decode(tokenizer.encode(video)).shape == video.shape
