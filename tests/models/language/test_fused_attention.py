"""The kernel's values and gradients in JAX's interpreter, and where it is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pyratok_jax.models.language import fused_attention as fused
from pyratok_jax.models.language import layers
from pyratok_jax.models.language.config import tiny
from pyratok_jax.models.language.fused_attention import (
    Blocks,
    KernelWork,
    can_fuse,
    fused_attention,
)
from pyratok_jax.models.language.model import LanguageModel
from pyratok_jax.models.prior import attention as prior_attention
from pyratok_jax.models.prior.layout import NEVER, Visibility, visible
from pyratok_jax.nn.lowering import conv_lowering
from pyratok_jax.nn.partitioning import over_devices
from pyratok_jax.nn.trace import Split
from tests.processes import run_script

D = 128


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(fused, "SIZES", ((128, 256), (256, 128), (128, 128)))
    monkeypatch.setattr(fused, "_VISIT", 1_000)


@pytest.fixture
def interpreted(monkeypatch):
    """Models take the kernel, in the interpreter; the list counts how often."""
    calls = []

    def run(*arguments, **named):
        calls.append(arguments[0].shape)
        return fused_attention(*arguments, **named, interpret=True)

    for module in (layers, prior_attention):
        monkeypatch.setattr(module, "can_fuse", lambda query, key: True)
        monkeypatch.setattr(module, "fused_attention", run)
    return calls


def plain(query, key, value, mask, scale):
    """In float64; heads in groups share keys and values."""
    shared = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x, shared, axis=2) for x in (key, value))
    scores = jnp.einsum("bthd,bshd->bhts", query, key) * scale
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshd->bthd", weights, value)


def masks(t, s):
    causal = np.tri(t, s, s - t, dtype=bool)
    prefix = causal | (np.arange(s) < 40)
    own = np.arange(t)[:, None] // 90 == np.arange(s) // 90
    return {"causal": causal, "prefix": prefix, "parts": own | (np.arange(s) < 3)}


@pytest.mark.parametrize(("kind", "t", "s"), [("causal", 131, 389), ("prefix", 389, 389),
                                              ("parts", 300, 300)])  # fmt: skip
def test_values_and_gradients_are_those_of_plain_attention(kind, t, s):
    """Odd sizes, shared heads, keys that are not there, more keys than queries."""
    mask = masks(t, s)[kind]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(2, n, heads, D)) for n, heads in ((t, 4), (s, 2), (s, 2))]
    valid = rng.random((2, s)) < 0.8
    valid[:, 0] = True
    scale = 0.07
    if kind == "causal":  # a query sees at least itself
        valid[:, s - t :] = True
    given = rng.normal(size=arrays[0].shape)

    def both(run, dtype):
        out, back = jax.vjp(run, *(jnp.asarray(x, dtype) for x in arrays))
        return out, *back(jnp.asarray(given, dtype))

    found = both(
        lambda *x: fused_attention(*x, mask, jnp.asarray(valid), scale, interpret=True), jnp.float32
    )
    with jax.enable_x64(True):
        whole = jnp.asarray(mask[None] & valid[:, None])
        expected = both(lambda *x: plain(*x, whole, scale), jnp.float64)
        expected = [np.asarray(x) for x in expected]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_bfloat16_is_as_near_to_float64_as_plain_attention_in_it():
    """Scores and sums are float32 inside; inputs, weights and outputs are rounded."""
    t = 300
    mask, valid = np.tri(t, t, dtype=bool), jnp.ones((2, t), bool)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(2, t, heads, D)) for heads in (4, 2, 2)]

    def both(run, dtype):
        out, back = jax.vjp(run, *(jnp.asarray(x, jnp.bfloat16).astype(dtype) for x in arrays))
        return [np.asarray(x, np.float64) for x in (out, *back(jnp.ones_like(out)))]

    found = both(lambda *x: fused_attention(*x, mask, valid, 0.07, interpret=True), jnp.bfloat16)
    rounded = both(lambda *x: plain(*x, mask[None], 0.07), jnp.bfloat16)
    with jax.enable_x64(True):
        exact = both(lambda *x: plain(*x, mask[None], 0.07), jnp.float64)
    for a, b, c in zip(found, rounded, exact, strict=True):
        errors = [np.sqrt(np.mean((x - c) ** 2) / np.mean(c**2)) for x in (a, b)]
        assert errors[0] < 1.5 * errors[1] < 0.03


@pytest.mark.process
def test_several_devices_compute_what_one_does():
    """Clips over both axes of a mesh, odd rows of keys that are not there; gradients too."""
    run_script("sharded_attention", devices=4)


def test_a_query_of_which_no_key_is_there_stays_finite():
    """So do the gradients of the others, which are not asked of it."""
    t = 200
    mask = np.eye(t, dtype=bool) | (np.arange(t) >= 100)[:, None] & (np.arange(t) < 50)
    x = jax.random.normal(jax.random.key(0), (1, t, 1, D))
    valid = jnp.ones((1, t), bool).at[0, 60].set(False)

    def loss(q, k, v):
        out = fused_attention(q, k, v, mask, valid, 1.0, interpret=True)
        return jnp.sum(jnp.square(jnp.delete(out, 60, axis=1))), out

    with pytest.raises(ValueError, match="every query must see some key"):
        fused_attention(x, x, x, mask & (np.arange(t) != 60), valid, 1.0, interpret=True)
    gradients, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, x, x)
    assert all(bool(jnp.isfinite(one).all()) for one in (*gradients, out))


def test_a_language_model_gives_the_same_with_it(interpreted):
    """Behind a cached text with padding, as the autoregressive loss reads; gradients too."""
    model = LanguageModel(tiny(head_dim=D), rngs=layers.nnx.Rngs(0))
    ids = jax.random.randint(jax.random.key(0), (2, 9), 0, 96)
    mask = jnp.ones((2, 9), bool).at[0, 5:].set(False).at[1].set(False)
    x = jax.random.normal(jax.random.key(1), (2, 140, 32))

    def run(room):
        cache = model.read(ids, mask)[1]
        if room:
            cache = cache.extended(room)
        calls = len(interpreted)

        def loss(x):
            hidden = model(x, cache=cache).hidden
            return jnp.sum(hidden**2 * jnp.linspace(0, 1, 32)), hidden

        gradient, hidden = jax.grad(loss, has_aux=True)(x)
        return hidden, gradient, len(interpreted) - calls

    *found, fused_calls = run(0)
    # Which slots are free is not static, so that the order of tokens is not.
    *expected, plain_calls = run(150)
    assert fused_calls > 0 and plain_calls == 0
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("window", [0, 2])
def test_a_prior_gives_the_same_with_it(interpreted, monkeypatch, window):
    """A prefix of which a key is not there, and parts that see themselves and the past."""
    parts = np.repeat(np.arange(5), 60).astype(np.int32)
    writes = np.where(parts == 0, -1, np.where(parts % 2, parts, NEVER)).astype(np.int32)
    seen = Visibility(writes, parts, np.where(parts == 0, -1, parts).astype(np.int32))
    keys = jax.random.split(jax.random.key(0), 3)
    query = jax.random.normal(keys[0], (2, 300, 4, D))
    key, value = (jax.random.normal(k, (2, 300, 2, D)) for k in keys[1:])
    valid = jnp.ones((2, 300), bool).at[1, 3:20].set(False)
    assert visible(seen, seen, window).any(axis=1).all()

    def run():
        return prior_attention.attend_static(query, key, value, seen, valid, window)

    found = run()
    assert len(interpreted) == 1
    monkeypatch.setattr(prior_attention, "can_fuse", lambda query, key: False)
    np.testing.assert_allclose(found, run(), atol=1e-5)


def test_only_long_sequences_on_tpus_take_it():
    def takes(t=4096, s=4096, d=D):
        return can_fuse(*(jnp.zeros((1, n, 2, d), jnp.bfloat16) for n in (t, s)))

    assert not takes()
    with conv_lowering("tpu"):
        assert takes()
        assert not takes(t=1024) and not takes(s=2047) and not takes(d=64)
        with fused.attention_kernel(False):
            assert not takes()
        with jax.default_matmul_precision("high"):
            assert not takes()


def test_meshes_over_which_anything_but_clips_is_sharded_do_not_take_it():
    query = jnp.zeros((4, 4096, 2, D), jnp.bfloat16)
    for sizes, taken in (((4, 1), True), ((2, 2), False)):
        mesh = jax.sharding.AbstractMesh(sizes, ("data", "tensor"))
        with (
            jax.sharding.use_abstract_mesh(mesh),
            conv_lowering("tpu"),
            over_devices(Split(("data",))),
        ):
            assert can_fuse(query, query) == taken
            assert not can_fuse(query[:3], query[:3])


def test_what_a_kernel_computes_is_in_its_name():
    mask = np.tri(512, 512, dtype=bool)
    work = KernelWork(2, 3, D, Blocks.of(mask))
    assert work.blocks == Blocks(128, 128, 4, 4, 10)
    assert KernelWork.parse(f"jit(step)/transpose(jvp({work.scope}))/pallas_call") == work
    assert KernelWork.parse("jit(step)/fused_attention_1_2/dot") is None
    assert KernelWork.parse(work.scope + "0") != work


def test_blocks_are_small_where_that_skips_more(monkeypatch):
    """Causal: 6 of 8 large ones or 10 of 16 small ones, which skip more than visits cost."""
    mask = np.tri(512, 512, dtype=bool)
    assert Blocks.of(mask).keys == 128
    monkeypatch.setattr(fused, "_VISIT", 10_000)
    assert Blocks.of(mask) == Blocks(128, 256, 4, 2, 6)


def test_rematerialised_layers_run_the_kernel_of_each_pass_once():
    """The outputs and the residual are kept by name: else the forward pass would run again."""
    t = 300
    mask, valid = np.tri(t, t, dtype=bool), jnp.ones((1, t), bool)
    kept = jax.checkpoint_policies.save_only_these_names("kept")

    def layer(x):
        x = jnp.sin(x)
        return fused_attention(x, x, x, mask, valid, 1.0, name="kept")

    def loss(x):
        return jnp.sum(jax.checkpoint(layer, policy=kept)(x) ** 2)

    traced = jax.jit(jax.grad(loss)).trace(jax.ShapeDtypeStruct((1, t, 2, D), jnp.bfloat16))
    lowered = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert lowered.count("tpu_custom_call") == 3
