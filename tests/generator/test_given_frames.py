"""Frames that a clip begins with: how many there are, and how they become tokens."""

import argparse

import numpy as np
import pytest
from flax import nnx

from pyratok_jax import generate
from pyratok_jax.data.video.writer import VideoWriter
from pyratok_jax.errors import UserError
from pyratok_jax.generator import Generator, Request
from pyratok_jax.generator.token_dataset import sample_record, write_samples
from pyratok_jax.models.prior.config import PriorConfig, Sampling
from pyratok_jax.models.prior.model import Prior
from tests.generator.tiny import LANGUAGE, tokenizer


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A video of 4 frames, each of its own brightness."""
    path = tmp_path_factory.mktemp("video") / "short.mp4"
    with VideoWriter(path, fps=8.0) as writer:
        for number in range(4):
            writer.write(np.full((32, 32, 3), 40 * number, np.uint8))
    return path


def given(video, keep=0, task="prediction"):
    asked = argparse.Namespace(image=None, video=str(video), task=task, keep_frames=keep)
    return generate.given_frames(asked, 33, (32, 32), 8.0)


def test_a_short_video_is_never_continued_from_a_standstill(short):
    found = given(short)
    assert found.shape == (4, 32, 32, 3)
    np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), [0, 40, 80, 120], atol=3)
    assert len(given(short, keep=3)) == 3
    assert len(given(short, task="inpainting")) == 4  # refused later: fewer than the clip's
    with pytest.raises(UserError, match=r"has 4 frames at 8 per second, fewer than .* at most 4"):
        given(short, keep=29)


def test_a_picture_is_no_video(tmp_path):
    from PIL import Image

    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "p.png")
    with pytest.raises(UserError, match="give it as --image"):
        given(tmp_path / "p.png")


def make(order="blocks", *, captioned=True, condition="text"):
    made = tokenizer()
    sizes = PriorConfig(
        strides=made.config.grids, bits=6, latent_stride=made.config.latent_stride,
        latent_channels=made.config.vae.z_dim, order=order, width=32, layers=1, heads=2,
        kv_heads=1, context_patch=1, condition=condition, text_width=LANGUAGE.width,
    )  # fmt: skip
    return Generator(
        Prior(sizes, rngs=nnx.Rngs(0)), made, text=made.text, captions=made.captions,
        size=(5, 16, 16), fps=8.0, sampling=Sampling(steps=(1,)), captioned=captioned,
    )  # fmt: skip


@pytest.mark.parametrize("captioned", [True, False])
def test_given_frames_are_encoded_as_the_training_clips_were(captioned, monkeypatch):
    """Under the prompt where those were encoded under their captions, else without."""
    generator, seen = make(captioned=captioned), []
    original = type(generator.tokenizer).encode_padded

    def encode(self, video, captions=None):
        seen.append((len(video), captions))
        return original(self, video, captions)

    monkeypatch.setattr(type(generator.tokenizer), "encode_padded", encode)
    picture = np.full((1, 16, 16, 3), 200, np.uint8)
    first, second = generator.generate(["a b", "c c d"], video=picture)
    assert seen == ([(2, ["a b", "c c d"])] if captioned else [(1, None)])
    for clip in (first, second):
        own = original(generator.tokenizer, picture[None], [clip.prompt] if captioned else None)
        for level, expected in zip(clip.encoded.ids, own, strict=True):
            np.testing.assert_array_equal(level[:1], expected[0])


def test_the_record_says_how_many_frames_were_kept():
    generator = make()
    video = np.zeros((4, 16, 16, 3), np.uint8)
    assert generator.kept_frames(Request(["a"])) == 0
    assert generator.kept_frames(Request(["a"], video=video)) == 1  # one latent frame is whole
    assert generator.kept_frames(Request(["a"], video=np.zeros((5, 16, 16, 3), np.uint8))) == 5
    assert generator.kept_frames(Request(["a"], video=video, task="inpainting")) is None


REFUSED = [
    (["--keep-frames", "3"], "--keep-frames says"),
    (["--video", "v.mp4", "--task", "inpainting", "--keep-frames", "3"], "--keep-frames says"),
    (["--video", "v.mp4", "--task", "inpainting", "--stream"], "--stream continues"),
    (["--seconds", "1e308"], "--seconds 1e.308: expected at most"),
    (["--negative-prompt", "blue", "--guidance", "1"], "does nothing at guidance 1"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_would_change_nothing_is_refused(arguments, message, tmp_path, monkeypatch):
    import pyratok_jax.generator

    monkeypatch.setattr(pyratok_jax.generator, "load_generator", lambda *a, **k: make())
    base = ["--checkpoint", "x", "--output", str(tmp_path / "o"), "--prompt", "a"]
    with pytest.raises(UserError, match=message):
        generate.main([*base, *arguments])


def test_a_prior_without_prompts_refuses_one(tmp_path, monkeypatch):
    import pyratok_jax.generator

    plain = make(condition="none")
    monkeypatch.setattr(pyratok_jax.generator, "load_generator", lambda *a, **k: plain)
    base = ["--checkpoint", "x", "--output", str(tmp_path / "o")]
    with pytest.raises(UserError, match="trained without prompts"):
        generate.main([*base, "--prompt", "a"])
    with pytest.raises(UserError, match="no --negative-prompt"):
        generate.main([*base, "--prompt", "", "--negative-prompt", "a", "--guidance", "3"])


def test_samples_appear_when_all_are_written(tmp_path):
    def interrupted():
        yield sample_record(make().generate(["a"], seed=0)[0], "0", fps=8.0, checkpoint="",
                            generator="")  # fmt: skip
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path, interrupted())
    assert not list(tmp_path.iterdir())
