"""The stream is a function of (seed, step): shown with real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "tests" / "data" / "stream_process.py"
STEPS, BATCH = 12, 4


def start(folder, **changes):
    config = {
        "sources": [str(folder)],
        "buckets": ["5x32x32", "9x24x32@0.5"],
        "decode_time_limit": 0.0,
        "any_bucket": True,
        "zoom": 1.3,
        "mirror": True,
        "caption_dropout": 0.25,
        "max_broken_share": 0.5,
    } | changes.pop("config", {})
    job = {"config": config, "seed": 5, "batch_size": BATCH, "steps": STEPS} | changes
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), json.dumps(job)],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )


def collect(process):
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    *steps, last = [json.loads(line) for line in out.splitlines()]
    return steps, last["broken"]


@pytest.fixture(scope="module")
def folder(clips_folder, tmp_path_factory):
    """The clips, with one that cannot be read among them."""
    folder = tmp_path_factory.mktemp("with_broken")
    for file in clips_folder.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "clip4x.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    return collect(start(folder))


def test_one_process_uses_both_buckets_and_skips_the_broken_clip(reference):
    steps, broken = reference
    assert [s["step"] for s in steps] == list(range(STEPS))
    assert {s["bucket"] for s in steps} == {"5x32x32", "9x24x32"}
    assert [Path(b).name for b in broken] == ["clip4x.mp4"]
    hashes = [row[1] for s in steps for row in s["rows"]]
    assert len(set(hashes)) == len(hashes) == STEPS * BATCH
    captions = {row[2] for s in steps for row in s["rows"]}
    assert None in captions and len(captions) > 4


def test_same_stream_with_another_number_of_workers(folder, reference):
    runs = [start(folder, config={"workers": w}) for w in (1, 3)]
    runs.append(start(folder, config={"threads": 4, "decode_time_limit": 30.0}))
    for run in runs:
        assert collect(run)[0] == reference[0]


@pytest.mark.parametrize("save_at", [1, 7])
def test_resuming_from_a_grain_checkpoint_with_other_workers(folder, reference, tmp_path, save_at):
    saving = {"save_at": save_at, "checkpoint": str(tmp_path), "steps": save_at + 1}
    assert collect(start(folder, **saving, config={"workers": 2}))[0] == reference[0][: save_at + 1]
    resumed = start(folder, first=save_at, checkpoint=str(tmp_path), config={"workers": 1})
    assert collect(resumed)[0] == reference[0][save_at:]


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_out_the_same_steps(folder, reference, hosts):
    runs = [start(folder, process_index=i, process_count=hosts) for i in range(hosts)]
    parts = [collect(run)[0] for run in runs]
    for step in range(STEPS):
        here = [part[step] for part in parts]
        assert {s["bucket"] for s in here} == {reference[0][step]["bucket"]}
        assert [len(s["rows"]) for s in here] == [BATCH // hosts] * hosts
        assert [row for s in here for row in s["rows"]] == reference[0][step]["rows"]


def test_another_seed_is_another_stream(folder, reference):
    assert collect(start(folder, seed=6))[0] != reference[0]
