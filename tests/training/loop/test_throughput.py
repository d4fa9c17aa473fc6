"""Rates of a training, MFU where the device's peak is known, and the page that shows them."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from pyratok_jax.nn.trace import checkpoint
from pyratok_jax.training.loop import throughput
from pyratok_jax.training.loop.contracts import Evaluation
from pyratok_jax.training.loop.loop import train
from pyratok_jax.training.loop.progress_page import ProgressPage
from pyratok_jax.training.loop.throughput import Throughput
from tests.training.loop.test_evaluators import NORM, config
from tests.training.worker import LineTask

pytestmark = pytest.mark.usefixtures("no_tensorboard")


def mesh():
    return Mesh(np.array(jax.devices()[:1]), ("data",))


def step(state, frozen, batch, seed):
    """Two products forward, four backward, whatever is computed again."""

    @checkpoint
    def layer(x):
        return jnp.tanh(x @ state)

    return jax.grad(lambda x: jnp.sum(layer(layer(x))))(batch["x"]), {}


@pytest.fixture
def known_peak(monkeypatch):
    monkeypatch.setitem(throughput.PEAKS, jax.devices()[0].device_kind, 1e9)


def test_model_flops_leave_rematerialised_products_out(known_peak):
    rates = Throughput(step, mesh(), steps=10)
    batch = {"x": jnp.zeros((3, 8))}
    inputs = (jnp.zeros((8, 8)), {}, batch, jnp.uint32(0))
    for _ in range(4):
        rates.add(3, batch, inputs)
    rates.close()
    found = rates.rates(4, seconds_per_step=0.5)
    # Forward twice, and backward twice towards the input.
    assert found["mfu"] == pytest.approx(4 * 2 * 3 * 8 * 8 / 0.5 / 1e9)
    assert found["teraflops_per_second"] == pytest.approx(found["mfu"] * 1e-3)
    assert found["clips_per_second"] == 6.0 and found["seconds_left"] == 3.0
    assert not rates.failure


def test_an_unknown_device_has_no_mfu_and_videos_have_pixels():
    rates = Throughput(step, mesh(), steps=2)
    rates.add(2, {"video": jnp.zeros((2, 5, 100, 200, 3), jnp.uint8)}, ())
    found = rates.rates(1, seconds_per_step=0.1)
    assert found == pytest.approx(
        {"seconds_left": 0.1, "clips_per_second": 20.0, "megapixels_per_second": 2.0}
    )
    rates.close()


def test_a_step_that_cannot_be_counted_is_told_and_stops_nothing(known_peak):
    def broken(*inputs):
        raise TypeError("no such thing")

    rates = Throughput(broken, mesh(), steps=2)
    rates.add(1, {"x": jnp.zeros(2)}, (jnp.zeros(2),))
    rates.close()
    assert "mfu" not in rates.rates(1, 1.0) and rates.failure == "TypeError: no such thing"


def test_a_training_logs_its_rates(tmp_path, known_peak):
    train(config(log_every=2), tmp_path, LineTask(8))
    rows = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10]
    for row in rows:
        assert row["clips_per_second"] == pytest.approx(8 / row["seconds_per_step"])
        assert row["seconds_left"] == pytest.approx((10 - row["step"]) * row["seconds_per_step"])
    assert rows[-1]["mfu"] > 0


def test_the_page_refreshes_while_steps_follow_and_ends_with_the_run(tmp_path):
    page = ProgressPage(tmp_path, 20, primary=True, period=0.0)
    page.metrics(5, {"loss": 2.0, "autoregressive": 11.0, "autoregressive/chance": 11.09})
    page.metrics(10, {"loss": 1.0, "autoregressive": 10.0, "autoregressive/chance": 11.09})
    page.timing(10, {"seconds_per_step": 0.25, "seconds_left": 3725.0, "mfu": 0.4123})
    grey = np.full((2, 2, 3), 7, np.uint8)
    page.evaluation(10, "heldout", Evaluation({"psnr": 24.5}, {"cat": grey}))
    page.write()
    page._drawing.result()
    text = (tmp_path / "progress.html").read_text()
    assert re.search(r"http-equiv='refresh' content='30'", text)
    assert "step 10 of 20, 1:02:05 left" in text and "41.2% MFU" in text
    assert "heldout/psnr" in text and "alt='heldout/cat'" in text and "chance: 11.09" in text
    page.close(ended=True)
    text = (tmp_path / "progress.html").read_text()
    assert "http-equiv='refresh'" not in text and "step 10 of 20, stopped" in text
    assert [path.name for path in tmp_path.iterdir()] == ["progress.html"]


def test_a_short_run_and_other_processes_leave_no_page(tmp_path):
    train(config(NORM), tmp_path / "short", LineTask(8))
    assert not (tmp_path / "short" / "progress.html").exists()
    page = ProgressPage(tmp_path, 20, primary=False, period=0.0)
    page.metrics(1, {"loss": 1.0})
    page.write()
    page.close(ended=True)
    assert not (tmp_path / "progress.html").exists()
