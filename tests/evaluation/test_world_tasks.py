"""The zero-shot tasks of the world: their videos, and what is left of broken ones."""

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
