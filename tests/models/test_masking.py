"""Masking: exact shares, never frame 0, reproducible, and the shuffle permutes only its frames."""

import jax
import jax.numpy as jnp
import numpy as np

from pyratok_jax.models import masking
from pyratok_jax.models.settings import MaskingConfig

VALUE = jnp.array([9.0, 9.0, 9.0])


def video(t=11, size=32):
    return jax.random.uniform(jax.random.key(5), (2, t, size, size, 3))


def test_the_exact_share_of_frames_is_hidden_and_never_frame_zero():
    for seed in range(20):
        hidden = masking.frame_mask(jax.random.key(seed), 3, 11, 0.3)
        assert not hidden[:, 0].any()
        assert hidden.sum(axis=1).tolist() == [3, 3, 3]


def test_the_spatial_share_follows_a_cosine_to_zero():
    config = MaskingConfig(spatial_ratio=0.6)
    shares = [float(masking.spatial_ratio_at(config, jnp.float32(p))) for p in (0, 0.5, 1, 2)]
    np.testing.assert_allclose(shares, [0.6, 0.3, 0.0, 0.0], atol=1e-7)


def test_hidden_pixels_take_the_learned_value_and_others_stay():
    config = MaskingConfig(frame_ratio=0.3, spatial_ratio=0.5, patch=8)
    x = video()
    masked = masking.mask_video(x, VALUE, jax.random.key(1), jnp.float32(0.0), config)
    hidden = np.all(np.asarray(masked) == 9.0, axis=-1)
    np.testing.assert_array_equal(np.asarray(masked)[~hidden], np.asarray(x)[~hidden])
    assert 0.5 < hidden[:, 1:].mean() < 0.8
    patches = hidden.reshape(2, 11, 4, 8, 4, 8)
    assert (patches.all(axis=(3, 5)) | ~patches.any(axis=(3, 5))).all()


def test_masking_is_a_function_of_the_key():
    config = MaskingConfig()
    run = lambda key: masking.mask_video(video(), VALUE, key, jnp.float32(0.2), config)  # noqa: E731
    np.testing.assert_array_equal(run(jax.random.key(3)), run(jax.random.key(3)))
    assert not np.array_equal(run(jax.random.key(3)), run(jax.random.key(4)))


def test_at_the_end_of_training_no_patch_is_hidden():
    config = MaskingConfig(frame_ratio=0.0, spatial_ratio=0.9)
    x = video()
    np.testing.assert_array_equal(
        masking.mask_video(x, VALUE, jax.random.key(0), jnp.float32(1.0), config), x
    )


def test_shuffling_moves_only_the_chosen_frames_among_their_places():
    config = MaskingConfig(frame_ratio=0.0, spatial_ratio=0.0, shuffle_ratio=0.5)
    x = video()
    moved_any = False
    for seed in range(5):
        key = jax.random.key(seed)
        out = np.asarray(masking.mask_video(x, VALUE, key, jnp.float32(0.0), config))
        chosen_key = jax.random.split(jax.random.split(key, 3)[2])[0]
        chosen = np.asarray(masking.frame_mask(chosen_key, 2, 11, 0.5))
        for row in range(2):
            origin = [
                int(np.argmin(np.abs(np.asarray(x)[row] - frame).sum(axis=(1, 2, 3))))
                for frame in out[row]
            ]
            assert sorted(origin) == list(range(11))
            stayed = [i for i in range(11) if not chosen[row, i]]
            assert [origin[i] for i in stayed] == stayed
            moved_any |= origin != list(range(11))
    assert moved_any


def test_frames_are_hidden_and_shuffled_together():
    config = MaskingConfig(frame_ratio=0.3, spatial_ratio=0.0, shuffle_ratio=0.5)
    x = np.asarray(video())
    out = np.asarray(masking.mask_video(video(), VALUE, jax.random.key(2), jnp.float32(0), config))
    hidden = (out == 9.0).all(axis=(2, 3, 4))
    assert hidden.sum(axis=1).tolist() == [3, 3]
    moved = [not np.array_equal(out[r, t], x[r, t]) for r in range(2) for t in range(11)
             if not hidden[r, t]]  # fmt: skip
    assert any(moved)


def test_a_later_stage_continues_the_spatial_schedule():
    stages = [(0.0, 1 / 9), (1 / 9, 1 / 3), (1 / 3, 1.0)]
    configs = [MaskingConfig(spatial_ratio=0.5, start=a, end=b) for a, b in stages]
    ratio = lambda config, p: float(masking.spatial_ratio_at(config, jnp.float32(p)))  # noqa: E731
    assert ratio(configs[0], 0.0) == 0.5 and abs(ratio(configs[2], 1.0)) < 1e-7
    for before, after in zip(configs[:-1], configs[1:], strict=True):
        np.testing.assert_allclose(ratio(before, 1.0), ratio(after, 0.0), rtol=1e-6)
        assert ratio(after, 0.0) > ratio(after, 1.0)


def test_the_learned_value_gets_a_gradient():
    config = MaskingConfig()
    grad = jax.grad(
        lambda v: masking.mask_video(video(), v, jax.random.key(0), jnp.float32(0.0), config).sum()
    )(VALUE)
    assert (grad > 0).all()
