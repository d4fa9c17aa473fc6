"""The zero-shot tasks of the world: their videos, and what is left of broken ones."""

from pathlib import Path

import pytest

from pyratok_jax.data.video.opening import BrokenVideoError
from pyratok_jax.evaluation import world_tasks
from pyratok_jax.evaluation.models.features import OracleFeatures
from pyratok_jax.evaluation.task import BrokenItemError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return world_tasks.world_videos(tmp_path_factory.mktemp("videos"), 2, 5)


def test_videos_are_written_once(data):
    stamp = (data / "vis").stat().st_mtime_ns
    assert world_tasks.world_videos(data.parent, 2, 5) == data
    assert (data / "vis").stat().st_mtime_ns == stamp
    assert [folder.name for folder in data.parent.iterdir()] == ["set_5_2"]


def test_two_processes_may_write_them_at_once(tmp_path, monkeypatch):
    """The second finds that the first was faster, and takes its videos."""

    def written(words):
        (Path(words[1]) / "vis").mkdir(parents=True)
        if len(list(tmp_path.iterdir())) == 1:
            first.append(world_tasks.world_videos(tmp_path, 2, 5))

    first = []
    monkeypatch.setattr(world_tasks, "write_set", written)
    assert world_tasks.world_videos(tmp_path, 2, 5) == first[0]
    assert [folder.name for folder in tmp_path.iterdir()] == ["set_5_2"]


@pytest.mark.parametrize("error", [BrokenItemError("x"), BrokenVideoError("x", "y")])
def test_videos_that_cannot_be_evaluated_are_left_out(data, monkeypatch, error):
    def broken(self, clip, truth=None, caption=None):
        raise error

    monkeypatch.setattr(OracleFeatures, "video", broken)
    task = world_tasks.load_task("segmentation")(
        data=str(data / "vis"), **world_tasks.SETTINGS["segmentation"]
    )
    monkeypatch.setattr(type(task), "wrap", lambda self, tokenizer: OracleFeatures())
    assert world_tasks.metric_of(task, None, "j") is None
    monkeypatch.undo()
    monkeypatch.setattr(type(task), "wrap", lambda self, tokenizer: OracleFeatures())
    assert world_tasks.metric_of(task, None, "j") > 50
