"""Loads weights of some kind onto four devices, each of which must hold its part alone.

Arguments: language_model or wan_vae, and folders or files with the same weights.
"""

import sys
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pyratok_jax.checkpoints.foreign.language_model import load_language_model
from pyratok_jax.checkpoints.partition import module_arrays
from weights_conversion.networks.wan_vae import load_wan_vae

LOADERS: dict[str, Callable[..., nnx.Module]] = {
    "language_model": lambda path, **options: load_language_model(path, **options)[0],
    "wan_vae": load_wan_vae,
}


def main(kind: str, *paths: str) -> None:
    load = LOADERS[kind]
    mesh = Mesh(np.array(jax.devices()), ("fsdp",))

    def place(name: str, shape: tuple[int, ...]) -> NamedSharding:
        last = "fsdp" if shape[-1] % 4 == 0 else None
        return NamedSharding(mesh, P(*[None] * (len(shape) - 1), last))

    whole = module_arrays(load(paths[0]))
    for path in paths:
        held = wanted = total = 0
        for name, array in module_arrays(load(path, sharding=place)).items():
            assert array.sharding.is_equivalent_to(place(name, array.shape), array.ndim), name
            assert np.array_equal(array, whole[name]), name
            held += array.addressable_shards[0].data.nbytes
            wanted += array.nbytes // (1 if array.shape[-1] % 4 else 4)
            total += array.nbytes
        assert held == wanted < total / 2, (held, wanted, total)


if __name__ == "__main__":
    main(*sys.argv[1:])
