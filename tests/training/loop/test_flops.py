import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pyratok_jax.training.loop.flops import traced_flops


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_products_and_loops():
    def run(x, w):
        x, _ = lax.scan(lambda x, _: (x @ w, None), x, None, length=3)
        return jnp.einsum("bi,bj->ij", x, x)

    assert traced_flops(run, shape(5, 7), shape(7, 7)) == 3 * 2 * 5 * 7 * 7 + 2 * 7 * 7 * 5


def test_gradients_cost_twice_the_forward_pass():
    def loss(w, x):
        return jnp.sum((x @ w) @ w.T)

    forward = traced_flops(loss, shape(4, 6), shape(5, 4))
    # The input's gradient of the first product is not needed.
    assert traced_flops(jax.grad(loss), shape(4, 6), shape(5, 4)) == forward / 2 * 5


@pytest.mark.parametrize(
    ("size", "window", "padding", "stride", "dilation"),
    [(6, 3, (1, 1), 1, 1), (7, 3, (0, 1), 2, 1), (5, 3, (2, 2), 1, 2), (4, 4, (0, 0), 1, 1)],
)
def test_convolutions_count_only_real_values(size, window, padding, stride, dilation):
    def run(x, w):
        return lax.conv_general_dilated(
            x, w, (stride,), [padding], lhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )  # fmt: skip

    # With ones everywhere the sum of a single channel's output is the number of multiply-adds.
    pairs = float(np.sum(run(jnp.ones((1, size, 1)), jnp.ones((window, 1, 1)))))
    assert traced_flops(run, shape(2, size, 3), shape(window, 3, 5)) == 2 * pairs * 2 * 3 * 5
