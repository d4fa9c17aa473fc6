"""CLIP and CLIPSIM against transformers' PyTorch model with the same random weights."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from pyratok_jax import evaluate
from pyratok_jax.checkpoints.scorers import load_clip
from pyratok_jax.errors import UserError
from pyratok_jax.metrics.text_similarity import TextSimilarity, square
from pyratok_jax.models.perceptual.clip import MEAN, STD
from tests.models.perceptual import clip_reference as reference
from weights_conversion import clip


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def both(request, tmp_path_factory):
    """(transformers' model, the folder that the converter wrote)."""
    folder = tmp_path_factory.mktemp("clip")
    model = reference.write(folder / "theirs", hidden_act=request.param)
    clip.main(["--input", str(folder / "theirs"), "--output", str(folder / "ours")])
    return model, folder / "ours"


def test_vectors_equal_the_reference(both):
    model, folder = both
    ours, rng = load_clip(folder).model, np.random.default_rng(0)
    pictures = rng.random((3, 24, 24, 3), np.float32)
    normal = ((pictures - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    expected = reference.images(model, normal)
    found = ours.images(jnp.asarray(pictures))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    ids = np.array([[0, 3, 4, 6, 1, 1, 1, 1], [0, 5, 6, 7, 8, 9, 10, 1], [0, 1, 1, 1, 1, 1, 1, 1]])
    np.testing.assert_allclose(
        ours.texts(jnp.asarray(ids)), reference.texts(model, ids), atol=1e-5, rtol=1e-5
    )


def test_similarity_is_the_mean_cosine_over_frames(both):
    model, folder = both
    rng = np.random.default_rng(1)
    video = rng.integers(0, 256, (5, 30, 40, 3), np.uint8)
    measure = TextSimilarity(load_clip(folder))
    frames = np.stack([square(frame, 24) for frame in video])  # Fewer than 16: each once.
    pictures = ((frames - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    a = reference.images(model, pictures)
    b = reference.texts(model, np.array([[0, 3, 4, 6, 1, 1, 1, 1]]))[0]
    cosines = a @ b / np.linalg.norm(a, axis=1) / np.linalg.norm(b)
    assert measure(video, "a red circle") == pytest.approx(cosines.mean(), abs=1e-5)
    assert measure(video, "a red circle") != pytest.approx(
        measure(video, "a blue circle"), abs=1e-4
    )
    # Longer than the network's eight tokens: cut, and ended all the same.
    assert np.isfinite(measure(video, "a video of a red circle of a blue circle"))


def test_the_task_measures_it_of_samples_and_of_real_clips(both, tmp_path):
    run = ["--task", "generation", "--checkpoint", "oracle", "--data", "builtin:world-heldout",
           "--set", "samples=3", "--set", "frames=5", "--set", "side=32"]  # fmt: skip
    assert evaluate.main([*run, "--output", str(tmp_path / "a"), "--set", f"clip={both[1]}"]) == 0
    found = json.loads((tmp_path / "a" / "results.json").read_text())
    assert found["metrics"]["clipsim"] == pytest.approx(found["metrics"]["clipsim_real"])
    assert abs(found["metrics"]["clipsim"]) <= 1
    assert "weights_conversion.c3d" in found["protocol"]["metrics"]["inception_score"]
    with pytest.raises(UserError, match=r"no config\.json"):
        evaluate.main([*run, "--output", str(tmp_path / "b"), "--set", f"clip={tmp_path}"])


def test_other_folders_are_refused(tmp_path):
    reference.write(tmp_path / "clip")
    config = tmp_path / "clip" / "config.json"
    said = json.loads(config.read_text())

    def refused(values, message):
        config.write_text(json.dumps(values))
        arguments = ["--input", str(tmp_path / "clip"), "--output", str(tmp_path / "o")]
        with pytest.raises(UserError, match=message) as caught:
            clip.main(arguments)
        assert "\n" not in str(caught.value) and not (tmp_path / "o").exists()

    refused(said | {"model_type": "bert"}, "expected clip")
    refused(said | {"projection_dim": -1}, "projection")
    refused(said | {"projection_dim": "many"}, r"config\.json")
    refused(said | {"vision_config": 3}, r"config\.json")
    refused(said | {"projection_dim": 8}, "wrong shape")
    config.unlink()
    with pytest.raises(UserError, match="config.json"):
        clip.main(["--input", str(tmp_path / "clip"), "--output", str(tmp_path / "o")])
