"""Small programs through the real TPU compiler, where it is installed."""

import importlib.util
import json
import subprocess
import sys

import jax
import pytest
from ml_collections import ConfigDict

from configs import generator
from configs.demo import get_config
from pyratok_jax.compile_report import STEPS, parser
from pyratok_jax.data.buckets import Bucket
from pyratok_jax.errors import UserError
from pyratok_jax.pods.plan import choose_steps, make_program, model_flops
from pyratok_jax.training.abstract_generator import abstract_generator
from pyratok_jax.training.distributed.sharding import make_mesh
from tests.compiler_flags import plain_environment
from tests.processes import ROOT, run_script


def needs_libtpu(test):
    missing = importlib.util.find_spec("libtpu") is None
    return pytest.mark.tpu_compile(pytest.mark.skipif(missing, reason="needs libtpu")(test))


def answers(name, topology):
    done = run_script("tpu_reports", name, topology, environment=plain_environment())
    return json.loads(done.stdout.splitlines()[-1])


@needs_libtpu
def test_gradients_cross_slices_in_parts():
    """Each of four chips holds the sum of its quarter and exchanges it with the other slice."""
    for facts in answers("slices", "v5p:2x2x1"):
        across = {name: one["across_slices"] for name, one in facts["collectives"].items()}
        assert across.pop("all-reduce") == 512 * 1024 * 4 / 4
        assert set(across.values()) == {0}
        # Within a slice: the sum is scattered over four chips.
        assert facts["collectives"]["reduce-scatter"]["bytes"] == 512 * 1024 * 4 * 3 / 4


@needs_libtpu
def test_kernels_are_gathered_and_not_clips_however_many_chips():
    """Left to the compiler, 128 chips send all clips to all: 1.4 GB of each chip, by all-reduce."""
    (facts,) = answers("convolution", "v5p:4x4x8")
    assert "all-reduce" not in facts["collectives"]
    clip = 5 * 32 * 32 * 512 * 2
    assert facts["memory"]["by_kind"]["temporaries"] < 16 * clip


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5p:2x2x1", "v5e:2x2"])
def test_attention_is_a_kernel_whose_cycles_count(topology):
    """Scores stay on the chip; left to XLA they go through its memory, float32."""
    kernel, plain = answers("attention", topology)
    assert kernel["operations_without_estimate"] == plain["operations_without_estimate"] == []
    part = [facts["cycles_by_part"]["prior_attention"] for facts in (kernel, plain)]
    assert 0 < part[0] < 0.7 * part[1]
    # A clip on a chip: in the backward pass one core of v5p's two has it. Masked scores count too.
    assert 0.1 < kernel["mfu"] < 1.0
    assert not kernel["collectives"]


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5p:2x2x1", "v5e:2x2"])
def test_programs_are_measured_and_want_of_memory_is_an_answer(topology):
    small, early, huge = answers("programs", topology)
    assert small["memory"]["fits"] and small["error"] == ""
    # A quarter of the rows of x and w, and the code.
    arguments = small["memory"]["by_kind"]["arguments"]
    assert arguments == early["memory"]["by_kind"]["arguments"] == (512 + 1024) * 1024 * 2 / 4
    assert small["loops_without_count"] == 0
    assert 0 < small["mfu"] < 1
    # The weights are gathered from four chips.
    assert small["collectives"]["all-gather"]["bytes"] >= 1024 * 1024 * 2 * 3 / 4
    assert "step_seconds" not in early
    assert huge["memory"]["verdict"].startswith("does not fit by")
    assert huge["error"] == ""


def reported(tmp_path, *flags):
    """What the command writes of the demo: clips and parameters over two chips, frames over two."""
    report = tmp_path / "report.json"
    command = [
        sys.executable, "-m", "pyratok_jax.compile_report", "--config=configs/demo.py:smoke",
        "--topology=v6e:2x2", "--bucket=5x64x64*2", f"--output={report}",
        "--config.mesh.fsdp=2", "--config.mesh.spatial=2", *flags,
    ]  # fmt: skip
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=plain_environment()
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert f"report: {report}" in ended.stdout.replace("\n", "")
    found = json.loads(report.read_text())
    assert found["mesh"]["fsdp"] == found["mesh"]["spatial"] == 2 and found["chips"] == 4
    assert found["large_arrays_on_every_chip"] == []
    # SmolLM2-135M and the small networks beside it; adapters, levels and synthesis.
    assert 134e6 < found["parameters"]["frozen"] < 160e6
    assert 0 < found["parameters"]["trainable"] < 5e6
    for step in found["steps"].values():
        assert step["error"] == "" and step["memory"]["fits"] and step["collectives"]
    half = found["parameters"]["frozen"] * 4 / 2
    return found["steps"], half


@needs_libtpu
def test_the_train_step_of_a_config_is_compiled_until_its_memory_is_known(tmp_path):
    steps, half = reported(tmp_path, "--step=train", "--effort=memory")
    # Half of the float32 weights, most of which are the language model's.
    assert half <= steps["train"]["memory"]["by_kind"]["arguments"] < 1.3 * half
    assert "step_seconds" not in steps["train"]


@needs_libtpu
def test_tokenising_and_decoding_by_a_config_are_compiled_to_code(tmp_path):
    steps, half = reported(tmp_path, "--step=tokenise,decode", "--effort=low")
    assert list(steps) == ["tokenise", "decode"]
    assert all(0 < step["mfu"] < 1 and step["step_seconds"] > 0 for step in steps.values())
    # Decoding has none of the language model.
    assert 0 < steps["decode"]["memory"]["by_kind"]["arguments"] < 0.1 * half


@needs_libtpu
def test_a_priors_training_and_sampling_are_compiled_to_code(tmp_path):
    report = tmp_path / "report.json"
    command = [
        sys.executable, "-m", "pyratok_jax.compile_report", "--config=configs/generator.py:smoke",
        "--tokenizer=configs/demo.py:smoke", "--topology=v6e:2x2", "--bucket=5x32x32*4",
        f"--output={report}", "--effort=low", "--config.mesh.fsdp=2", "--config.mesh.tensor=2",
        "--config.mesh.data=1", "--config.sampling.guidance=3.0",
        "--config.conditioning.kind=none", "--config.model.layers=2", "--config.model.width=96",
        "--config.sampling.steps=(2, 1)",
    ]  # fmt: skip
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=plain_environment()
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(report.read_text())
    assert found["bucket"] == "5x32x32" and list(found["steps"]) == ["generator", "generate"]
    assert found["large_arrays_on_every_chip"] == []
    train, draw = found["steps"].values()
    for step in (train, draw):
        assert step["error"] == "" and step["memory"]["fits"]
        assert 0 < step["mfu"] < 1 and step["cycles_by_part"]["prior_attention"] > 0
    # All clips of the batch; a clip for each pair of chips that share weights.
    assert (train["clips"], draw["clips"]) == (4, 2)
    assert "tokens_per_second" not in train
    # A latent frame of 32x32: 4 + 2 x 4 + 4 + 16 tokens, four frames.
    rate = 2 / draw["step_seconds"]
    assert draw["tokens_per_second"] == pytest.approx(32 * rate)
    assert draw["frames_per_second"] == pytest.approx(4 * rate)


def test_steps_of_another_task_are_refused():
    prior, tokenizer = ConfigDict({"task": "generator"}), ConfigDict({"task": "tokenizer"})
    assert choose_steps(prior, STEPS) == ("generator", "generate")
    assert choose_steps(tokenizer, STEPS) == ("train", "tokenise", "decode")
    assert choose_steps(prior, ("generate",)) == ("generate",)
    with pytest.raises(UserError, match="--step train: the config's task is generator"):
        choose_steps(prior, ("train", "generate"))
    with pytest.raises(UserError, match="whose steps are train, tokenise, decode"):
        choose_steps(tokenizer, ("generate",))


@pytest.mark.parametrize(("order", "tokens"), [("raster", 64), ("masked", 356 / 21)])
def test_every_order_has_a_sampling_step(order, tokens):
    config = generator.get_config("smoke")
    config.model.order, config.conditioning.kind = order, "none"
    training = abstract_generator(config, get_config("smoke"))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    bucket = Bucket(9, 64, 64)
    program = make_program("generate", training, config, bucket, mesh, 2)
    assert program.tokens == pytest.approx(tokens)
    assert program.frames == pytest.approx(9 * tokens / 356)
    one = make_program("generate", training, config, bucket, mesh, 1)
    flops = [model_flops("generate", config, bucket, step) for step in (program, one)]
    assert flops[0] == pytest.approx(2 * flops[1], rel=0.01) and flops[1] > 0


def test_steps_that_do_not_exist_are_refused():
    assert parser().parse_args(["--config=x", "--topology=v5e:2x2"]).step == STEPS
    with pytest.raises(SystemExit):
        parser().parse_args(["--config=x", "--topology=v5e:2x2", "--step=train,sing"])


def test_steps_come_in_one_order_and_once():
    given = ["--config=x", "--topology=v5e:2x2", "--step=decode,train,decode"]
    assert parser().parse_args(given).step == ("train", "decode")
