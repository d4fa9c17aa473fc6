"""The entropy loss of a batch on 1 and on 8 devices: a JSON list of its figures on each."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pyratok_jax.losses import codebook
from pyratok_jax.metrics.code_usage import code_counts


def loss(z: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    value, parts = codebook.entropy(z, temperature=0.25, vocabulary=48000)
    return value, (parts["batch_entropy"], jnp.sum(code_counts(z) > 0))


def figures(z: np.ndarray, devices: int) -> list[float]:
    """Loss, batch entropy, number of codes in use, and the sum of the gradient's magnitudes."""
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec("data"))
        step = jax.jit(jax.value_and_grad(loss, has_aux=True), in_shardings=place)
        (value, (batch, used)), gradient = step(jax.device_put(z, place))
    return [float(value), float(batch), int(used), float(jnp.sum(jnp.abs(gradient)))]


def main() -> None:
    z = np.random.default_rng(0).normal(size=(16, 2, 3, 4, 16)).astype(np.float32)
    z[:8] = np.abs(z[:8])  # The halves differ: a mean of per-device entropies is another number.
    print(json.dumps([figures(z, devices) for devices in (1, 8)]))


if __name__ == "__main__":
    main()
