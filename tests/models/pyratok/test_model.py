"""The tokenizer on a tiny VAE: shapes, the one rule, gradients, text and the null caption."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.models.pyratok import lapq, lfq
from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.nn.lora import LoRAParam, add_lora, without_adapters
from pyratok_jax.nn.text_attention import TextCondition
from tests.tiny_tokenizer import GRIDS, tiny_config, tiny_tokenizer

# Compiled as a whole: one by one, a model's operations take minutes to compile.
encode = nnx.jit(PyraTok.encode)
tokenize = nnx.jit(PyraTok.tokenize)
decode_bits = nnx.jit(PyraTok.decode_bits)
run = nnx.jit(lambda module, *given: module(*given))


def tiny_model() -> PyraTok:
    return tiny_tokenizer().model


def clip(batch=2, t=5, h=32, w=48):
    return jax.random.uniform(jax.random.key(1), (batch, t, h, w, 3), minval=-1.0)


def captions(batch=2, length=3):
    embeddings = jax.random.normal(jax.random.key(2), (batch, length, 12))
    return TextCondition(embeddings, jnp.arange(length)[None] < jnp.array([[length], [2]]))


def open_text_path(model: PyraTok) -> PyraTok:
    """A copy whose text attention is no longer switched off by its zero start."""
    graphdef, state = nnx.split(model)
    model = nnx.merge(graphdef, jax.tree.map(jnp.copy, state))
    for block in model.quantizer.blocks:
        kernel = block.attention.out.kernel
        kernel[...] = jax.random.normal(jax.random.key(7), kernel.shape)
        block.head.kernel[...] = jax.random.normal(jax.random.key(8), block.head.kernel.shape)
    return model


def test_tokens_lie_on_the_stated_grids():
    ids = tokenize(tiny_model(), clip(), captions())
    shapes = tiny_model().grid_shapes(5, 32, 48)
    assert shapes == ((5, 2, 3), (3, 2, 3), (2, 2, 3), (2, 4, 6))
    assert [level.shape for level in ids] == [(2, *shape) for shape in shapes]
    assert all(int(level.max()) < 64 for level in ids)


def smoothing_model() -> PyraTok:
    """A model whose synthesis also smooths: its last convolution starts at zero."""
    graphdef, state = nnx.split(tiny_model())
    model = nnx.merge(graphdef, jax.tree.map(jnp.copy, state))
    for level, synthesis in enumerate(model.quantizer.synthesis):
        kernel = synthesis.smooth_out.kernel
        kernel[...] = 0.3 * jax.random.normal(jax.random.key(level), kernel.shape)
    return model


def stored(levels) -> tuple[np.ndarray, ...]:
    """Token ids as a file holds them."""
    return tuple(np.asarray(lfq.bits_to_ids(level.q), np.uint16) for level in levels)


def test_training_decodes_the_synthesis_of_the_codes():
    """`encode().latent`, which the loss decodes, is `synthesize` of the stored ids, to the bit."""
    model = smoothing_model()
    output = encode(model, clip(), captions())
    codes = tuple(lfq.ids_to_bits(jnp.asarray(ids, jnp.uint32), 6) for ids in stored(output.levels))
    latent = nnx.jit(PyraTok.synthesize)(model, codes)
    assert np.std(latent) > 0.01
    np.testing.assert_array_equal(output.latent, latent)


def test_decoding_tokens_is_exactly_the_forward_reconstruction():
    """Training's program, encode and decode in one, against `detokenize` of ids from a file."""
    model = smoothing_model()

    @nnx.jit
    def forward(model, video):
        output = model.encode(video)
        return output.levels, jnp.clip(model.decode(output.latent), -1.0, 1.0)

    levels, rebuilt = forward(model, clip())
    ids = tuple(jnp.asarray(level, jnp.uint32) for level in stored(levels))
    decoded = nnx.jit(PyraTok.detokenize)(model, ids)
    assert np.std(decoded) > 0.01
    # Two programs may round differently: far below half a step of uint8, 1 / 255.
    np.testing.assert_allclose(decoded, rebuilt, atol=1e-5)


def test_nothing_continuous_reaches_the_decoder():
    """Two videos with the same codes but other continuous latents have one latent, to the bit."""
    model = smoothing_model()
    one, other = encode(model, clip()), encode(model, clip() * (1 + 1e-6))
    for a, b in zip(one.levels, other.levels, strict=True):
        np.testing.assert_array_equal(a.q, b.q)
        assert np.any(np.asarray(a.z) != np.asarray(b.z))
    assert np.any(np.asarray(one.target) != np.asarray(other.target))
    np.testing.assert_array_equal(one.latent, other.latent)


def test_the_size_of_the_logits_does_not_reach_the_latent(monkeypatch):
    """Logits on another scale have the same signs, and so the same latent."""
    plain = encode(smoothing_model(), clip())
    quantize = lfq.quantize
    monkeypatch.setattr(lapq, "quantize", lambda z, *given: quantize(3.7 * z, *given))
    scaled = nnx.jit(lambda model, video: model.encode(video))(smoothing_model(), clip())
    np.testing.assert_array_equal(scaled.latent, plain.latent)


LATENT_CHECKS = (
    test_training_decodes_the_synthesis_of_the_codes,
    test_nothing_continuous_reaches_the_decoder,
)


@pytest.mark.parametrize(
    "leak, checks",
    [
        ("latent", (*LATENT_CHECKS, test_decoding_tokens_is_exactly_the_forward_reconstruction)),
        ("logits", LATENT_CHECKS),
    ],
)
def test_a_leak_is_seen(leak, checks, monkeypatch):
    """The checks above object to a decoder that is given continuous values."""
    real = PyraTok.encode

    def leaking(self, video, text=None, key=None):
        output = real(self, video, text, key)
        if leak == "latent":
            return output._replace(latent=output.target)
        return output._replace(latent=self.synthesize(tuple(level.z for level in output.levels)))

    monkeypatch.setattr(PyraTok, "encode", leaking)
    monkeypatch.setitem(globals(), "encode", nnx.jit(lambda model, *given: model.encode(*given)))
    for check in checks:
        with pytest.raises(AssertionError):
            check()


def test_a_fresh_block_ignores_the_text_and_a_trained_one_does_not():
    fresh = tiny_model()
    without = tokenize(fresh, clip())
    for a, b in zip(without, tokenize(fresh, clip(), captions()), strict=True):
        np.testing.assert_array_equal(a, b)
    trained = open_text_path(fresh)
    with_text = tokenize(trained, clip(), captions())
    other = captions()._replace(embeddings=-captions().embeddings)
    changed = [
        (np.asarray(a) != np.asarray(b)).mean()
        for a, b in zip(with_text, tokenize(trained, clip(), other), strict=True)
    ]
    assert min(changed) > 0.05


def test_an_empty_mask_means_the_null_caption_and_padding_does_not_matter():
    model = open_text_path(tiny_model())
    text = captions()
    empty = text._replace(mask=jnp.zeros_like(text.mask))
    for a, b in zip(tokenize(model, clip(), empty), tokenize(model, clip()), strict=True):
        np.testing.assert_array_equal(a, b)
    junk = jnp.where(text.mask[..., None], text.embeddings, 99.0)
    for a, b in zip(
        encode(model, clip(), text).levels,
        encode(model, clip(), text._replace(embeddings=junk)).levels,
        strict=True,
    ):
        np.testing.assert_allclose(a.z, b.z, atol=1e-5)


def test_attention_weights_are_a_distribution_over_real_words():
    model, text = open_text_path(tiny_model()), captions()
    x = jax.random.normal(jax.random.key(0), (2, 2, 2, 3, 16))
    weights = model.quantizer.blocks[0].attention.weights(x, text)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-5)
    assert (np.asarray(weights)[1, ..., 2] == 0).all()


def test_the_gradient_reaches_every_trainable_part():
    model = open_text_path(tiny_model())

    def loss(model):
        output = model.encode(clip(), captions())
        video = model.decode_bits(tuple(level.q for level in output.levels))
        prior = sum(jnp.mean(level.text_logits**2) for level in output.levels)
        return jnp.mean((video - clip()) ** 2) + prior

    grads = nnx.jit(nnx.grad(loss))(model)
    dead = [
        path
        for path, value in nnx.to_flat_state(grads)
        if path[0] == "quantizer" and not np.any(np.asarray(value[...]))
    ]
    # Behind a zero-initialised output layer nothing arrives at the first step.
    assert all("smooth_in" in path for path in dead)
    adapters = [v for p, v in nnx.to_flat_state(grads) if isinstance(v, LoRAParam) and p[-1] == "b"]
    assert adapters and all(np.any(np.asarray(value[...])) for value in adapters)


def test_fresh_adapters_change_nothing_and_a_view_without_them_is_the_frozen_encoder():
    model = tiny_model()
    reference = without_adapters(model.vae.encoder)
    moments = run(model.vae.encoder, clip())
    # Programs with and without adapters round sums of kernels in their own ways.
    np.testing.assert_allclose(
        jax.tree.leaves(moments)[0], jax.tree.leaves(run(reference, clip()))[0], atol=2e-6
    )
    changed = open_text_path(model)
    for _, node in nnx.iter_modules(changed.vae.encoder):
        if getattr(node, "adapter", None) is not None:
            node.adapter.b[...] = jnp.ones_like(node.adapter.b[...])
    adapted = jax.tree.leaves(run(changed.vae.encoder, clip()))[0]
    frozen = jax.tree.leaves(run(without_adapters(changed.vae.encoder), clip()))[0]
    assert not np.allclose(adapted, frozen)
    np.testing.assert_allclose(frozen, jax.tree.leaves(moments)[0], atol=2e-6)


def test_every_convolution_of_the_encoder_is_adapted():
    model = PyraTok(tiny_config(lora_rank=0), rngs=nnx.Rngs(0))
    kernels = sum(hasattr(node, "kernel") for _, node in nnx.iter_modules(model.vae.encoder))
    assert add_lora(model.vae.encoder, 2, 4.0, rngs=nnx.Rngs(0)) == kernels > 20


@pytest.mark.parametrize("levels", [2, 3])
def test_fewer_levels_use_the_last_stages(levels):
    config = tiny_config(grids=GRIDS[-levels:])
    assert config.stages == (1, 2, 3, 4)[-levels:]
    model = PyraTok(config, rngs=nnx.Rngs(0))
    there_and_back = nnx.jit(lambda model, video: model.detokenize(model.tokenize(video)))
    assert there_and_back(model, clip()).shape == clip().shape


def test_without_text_guidance_captions_change_nothing():
    model = open_text_path(PyraTok(tiny_config(text_guidance=False), rngs=nnx.Rngs(0)))
    for a, b in zip(tokenize(model, clip()), tokenize(model, clip(), captions()), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_configuration_survives_a_round_trip_and_refuses_unknown_keys():
    config = tiny_config(vocabulary=48)
    assert PyraTokConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="colour"):
        PyraTokConfig.from_dict(config.to_dict() | {"colour": 1})


def test_a_smaller_vocabulary_bounds_the_ids():
    model = PyraTok(tiny_config(vocabulary=48), rngs=nnx.Rngs(0))
    assert all(int(ids.max()) < 48 for ids in tokenize(model, clip()))


def test_in_bfloat16_training_and_export_have_the_same_tokens():
    """The program that also takes gradients, against `tokenize` alone; float32 has others."""
    half = PyraTok(tiny_config(), rngs=nnx.Rngs(0), dtype=jnp.bfloat16)

    @nnx.jit
    def step(model, video):
        def loss(model):
            output = model.encode(video, captions())
            return jnp.mean(output.latent**2), output.levels

        return nnx.value_and_grad(loss, has_aux=True)(model)[0][1]

    levels, exported = step(half, clip()), tokenize(half, clip(), captions())
    assert all(level.z.dtype == jnp.float32 for level in levels)
    for trained, ids in zip(levels, exported, strict=True):
        np.testing.assert_array_equal(lfq.bits_to_ids(trained.q), ids)
