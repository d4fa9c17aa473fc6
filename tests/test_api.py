"""The public face: importing it loads nothing heavy, and the examples of docs/api.md run."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import pyratok_jax as pt
from pyratok_jax import export_tokens
from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.checkpoints.verification import weights_hash
from pyratok_jax.checkpoints.weights import read_config
from pyratok_jax.models.pyratok.model import PyraTok, PyraTokConfig
from pyratok_jax.nn.lora import LoRAParam
from pyratok_jax.tokenizer import write_description
from tests.data.synthetic import numbered_frames, write_video
from tests.training.tiny import VAE, random_vae, write_module

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
HEAVY = ("jax", "flax", "tensorflow", "numpy", "transformers", "orbax")


def save_tiny_tokenizer(folder: Path) -> Path:
    """A working folder as a training leaves it, of a tokenizer without a language model."""
    vae = random_vae()
    write_module(folder / "vae", "wan_vae", VAE.to_dict(), vae)
    config = PyraTokConfig(
        vae=VAE, grids=((1, 16), (2, 16), (4, 16), (4, 8)), bits=6, width=16, heads=2,
        text_width=12, synthesis_width=8, lora_rank=2,
    )  # fmt: skip
    model = PyraTok(config, rngs=nnx.Rngs(0), vae=vae)
    parts = Partition(
        model, lambda name, v: isinstance(v, LoRAParam) or not name.startswith("vae.")
    )
    arrays = {f"tokenizer.{name}": value for name, value in parts.trainable.items()}
    workdir = folder / "runs" / "demo"
    workdir.mkdir(parents=True)
    backbone = {
        "spec": str(folder / "vae"),
        "sha256": read_config(folder / "vae", "wan_vae")["sha256"],
    }
    write_description(workdir, config, backbone=backbone, language_model=None, alignment=None)
    with ocp.StandardCheckpointer() as checkpointer:
        state = {"params": jax.tree.map(np.asarray, arrays), "ema": {}}
        checkpointer.save((workdir / "checkpoints" / "3" / "state").absolute(), state)
    return workdir


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with runs/demo, clips and tokens."""
    folder = tmp_path_factory.mktemp("api")
    workdir = save_tiny_tokenizer(folder)
    write_video(folder / "clips" / "a.mp4", numbered_frames(7, 20, 30))
    (folder / "clips" / "a.txt").write_text("numbers")
    command = ["--checkpoint", str(workdir), "--input", str(folder / "clips")]
    command += ["--output", str(folder / "tokens"), "--window", "5", "--batch", "1"]
    export_tokens.main(command)
    return folder


def test_the_examples_of_the_page_run(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(blocks) >= 5
    exec(compile("\n".join(blocks), str(PAGE), "exec"), {})
    said = capsys.readouterr().out
    assert "bits per true pixel, 6 per token" in said and "a.mp4" in said


def test_a_loaded_tokenizer_has_the_stored_weights(place):
    tokenizer = pt.load_tokenizer(place / "runs" / "demo")
    assert isinstance(tokenizer, pt.Tokenizer) and tokenizer.folder == place / "runs" / "demo"
    again = pt.load_tokenizer(place / "runs" / "demo" / "checkpoints" / "3")
    assert again.checkpoint_hash == tokenizer.checkpoint_hash and len(again.checkpoint_hash) == 64
    states = [nnx.to_flat_state(nnx.state(t.model)) for t in (tokenizer, again)]
    arrays = [
        {".".join(map(str, path)): np.asarray(value[...]) for path, value in state}
        for state in states
    ]
    assert weights_hash(arrays[0]) == weights_hash(arrays[1])


def test_importing_the_package_is_cheap():
    code = (
        "import sys, time; t = time.process_time(); import pyratok_jax as pt; "
        f"t = time.process_time() - t; print(t < 0.3, [m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True []"


def test_public_names_are_complete_and_typed():
    assert set(pt.__all__) <= set(dir(pt))
    assert all(getattr(pt, name) is not None for name in pt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Detokenizer'"):
        _ = pt.Detokenizer
    assert (ROOT / "pyratok_jax" / "py.typed").exists()
    assert '"py.typed"' in (ROOT / "pyproject.toml").read_text()
