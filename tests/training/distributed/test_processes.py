"""Real processes on a small problem: they end together, stop together, and resume elsewhere.

What a kill leaves is tested with the demo, in `test_meshes`.
"""

import time

import numpy as np
import pytest

from tests.training.processes import arrays, execute, finish, launch, rows

CONFIG = {
    "steps": 20,
    "batch_size": 8,
    "log_every": 5,
    "checkpoint": {"every": 4, "keep": 2, "keep_every": 0},
    "evaluators": [{"name": "weight_norm", "every": 8}],
}


def line(folder, **changes):
    """Settings of a training of `worker.LineTask`."""
    config = CONFIG | changes.pop("config", {})
    output = str(folder.with_suffix(".npz"))
    return {"task": "line", "workdir": str(folder), "output": output, "config": config} | changes


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Twenty steps without interruption, in one process: its folder."""
    folder = tmp_path_factory.mktemp("whole") / "one"
    execute([line(folder)])
    return folder


@pytest.mark.parametrize(
    ("accident", "codes", "message"),
    [
        ((1, 5, "error"), [3, 1], "process 1 on .* failed: RuntimeError: the disk is on fire"),
        ((1, 5, "SIGKILL"), [3, -9], "process 1 on .* was not heard of for .* s"),
        (
            (0, 5, "SIGKILL"),
            [-9, 3],
            "process 0 on .*coordination service, is gone",
        ),
        ((1, 5, "sleep"), [3, 3], "no step was done for 3 s, behind is process 1 on .*for data"),
    ],
)
def test_a_lost_process_ends_the_others_and_is_named(tmp_path, accident, codes, message):
    import re

    settings = line(tmp_path / "run", accident=accident, config={"steps": 10**6})
    settings |= {"host_timeout": 5.0, "step_timeout": 3.0 if accident[2] == "sleep" else 60.0}
    processes = launch([settings], count=2)
    begin = time.monotonic()
    ended = finish(processes, timeout=120)
    assert [code for code, _ in ended] == codes, [text[-2000:] for _, text in ended]
    # Whoever outlived the accident says so in its last line.
    for code, text in ended:
        if code == 3:
            last = text.strip().splitlines()[-1]
            assert last.startswith("error: ") and re.search(message, last), text[-2000:]
    assert time.monotonic() - begin < 100


def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path, whole):
    settings = line(tmp_path / "run", accident=[1, 7, "SIGTERM"])
    ended = finish(launch([settings], count=2))
    assert [code for code, _ in ended] == [130, 130], ended
    assert "checkpoint saved; the same command resumes from here" in ended[0][1]
    execute([line(tmp_path / "run")], count=2)
    # The evaluator's rows are those of steps 8, 16 and 20.
    assert [row["step"] for row in rows(tmp_path / "run")] == [5, 8, 10, 15, 16, 20, 20]
    for a, b in zip(rows(tmp_path / "run"), rows(whole), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    timing = rows(tmp_path / "run", "timing.jsonl")[-1]
    assert timing["data_wait_min"] <= timing["data_wait_max"] and timing["slowest_process"] in (
        0,
        1,
    )


def test_a_checkpoint_resumes_on_other_meshes_and_process_counts(tmp_path, whole):
    """9 steps on 8 devices (data 2, fsdp 4) and 1 process, then up to 20 on 2 processes."""
    folder = tmp_path / "run"
    split = line(folder, mesh={"data": 2, "fsdp": 4}, accident=[0, 9, "SIGTERM"])
    ((code, text),) = finish(launch([split], devices=8))
    assert code == 130, text[-2000:]
    execute([line(folder, mesh={"data": 1, "fsdp": 2})], count=2)
    found, wanted = arrays(folder.with_suffix(".npz")), arrays(whole.with_suffix(".npz"))
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-7, err_msg=name)
    for a, b in zip(rows(folder), rows(whole), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
