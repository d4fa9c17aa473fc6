"""Forms in which the VAE is traced: the same values, laid out for the backend at hand."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

FORMS = ("conv3d", "shifts", "tpu")
LANES = 128  # width of a TPU register
IMAGES = 8  # height of one, and how many images a convolution there works on at a time
# None: choose by backend. Ahead-of-time compilation for another device sets it explicitly.
_CONV_FORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("conv_form", default=None)
_FILL_LANES: contextvars.ContextVar[bool] = contextvars.ContextVar("fill_lanes", default=False)


@contextlib.contextmanager
def conv_form(form: str) -> Iterator[None]:
    """Trace 3-D convolutions in a given form within this block.

    "shifts" is a sum of 2-D ones, "conv3d" one operation, "tpu" the same over frames cut into
    strips (`height.cut`), with narrow stages of the VAE zero-padded to whole registers and sums
    over channels as matrix products. The default is "shifts" on the CPU, where it is several times
    faster, "tpu" on TPUs, and "conv3d" elsewhere. The function computed is the same.
    """
    if form not in FORMS:
        raise ValueError(f"conv form {form!r}: expected one of {', '.join(FORMS)}")
    token = _CONV_FORM.set(form)
    try:
        yield
    finally:
        _CONV_FORM.reset(token)


def current_form() -> str:
    """The form in force: the one set, or the backend's."""
    by_backend = {"cpu": "shifts", "tpu": "tpu"}
    return _CONV_FORM.get() or by_backend.get(jax.default_backend(), "conv3d")


@contextlib.contextmanager
def filled_lanes(allowed: bool = True) -> Iterator[None]:
    """Within this block layers may put out more channels than they have, the rest being zeros.

    Only on TPUs: 96 channels cost as much as 128 there, and moving them costs more. Use `trim`
    before a consumer from outside.
    """
    token = _FILL_LANES.set(allowed and current_form() == "tpu")
    try:
        yield
    finally:
        _FILL_LANES.reset(token)


def filled(features: int) -> int:
    """How many channels a layer of `features` puts out: a whole register from half a one up."""
    return LANES if _FILL_LANES.get() and LANES // 2 < features < LANES else features


def trim(x: Float[Array, "*n c"], features: int) -> Float[Array, "*n d"]:
    """The channels of `x` that are no filling."""
    return x[..., :features]


def conv3d(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt kh kw c d"],
    padding: tuple[tuple[int, int], ...] = ((0, 0),) * 3,
    strides: tuple[int, int, int] = (1, 1, 1),
    dtype=None,
) -> Float[Array, "b t2 h2 w2 d"]:
    """One convolution over (t, h, w); `dtype` of the result if not the input's."""
    y = lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        preferred_element_type=dtype,
    )
    if current_form() != "tpu" or y.shape[0] % IMAGES or y.shape[-1] <= LANES // 2:
        return y
    # What convolutions read and write best; left alone, the compiler converts to and fro.
    return with_layout_constraint(y, Layout((1, 2, 3, 0, 4)))


@jax.custom_vjp
def channel_sums(x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    """The sum over channels at every channel, for TPUs: terms rounded to bfloat16, float32 sums.

    A product with a matrix of ones: the matrix unit has the time, and what follows needs no second
    pass over memory.
    """
    features = x.shape[-1]
    ones = jnp.ones((1, 1, 1, features, features), jnp.bfloat16)
    return conv3d(x.astype(jnp.bfloat16), ones, dtype=jnp.float32)


# The matrix is symmetric: the gradient is the same sum.
channel_sums.defvjp(lambda x: (channel_sums(x), None), lambda _, given: (channel_sums(given),))
