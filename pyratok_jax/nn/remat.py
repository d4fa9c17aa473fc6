"""Rematerialisation policies of the video VAEs."""

import jax
from flax import nnx

from pyratok_jax.nn.causal_conv import KEPT
from pyratok_jax.nn.settings import POLICIES
from pyratok_jax.nn.trace import checkpoint

# Pixels of a device's clips up to which "auto" keeps the outputs of convolutions.
LARGE = 2 * 17 * 512**2


def rematerialised(policy: str, pixels: int = 0, *, inner: bool = False):
    """How a part of the network is run: plainly, or recomputing its activations going backward.

    Args:
        policy: "none" keeps all activations; "convs" what convolutions give, so that going
            backward only norms are computed again; "stages" keeps each stage's input; "all" also,
            while a stage is recomputed, keeps only the input of each of its residual blocks;
            "auto" is "convs" for up to two clips of 17x512x512 on a device and "stages" beyond.
        pixels: of the device's clips.
        inner: for the residual blocks inside a stage, not a stage.

    Returns:
        a function (module, x, cache) -> output. With a cache (inference) all is run plainly.
    """
    if policy not in POLICIES:
        raise ValueError(f"remat policy {policy!r}: expected one of {', '.join(POLICIES)}")
    if policy == "auto":
        policy = "convs" if pixels <= LARGE else "stages"
    plain = policy == "none" or (inner and policy != "all")
    keep = jax.checkpoint_policies.save_only_these_names(KEPT) if policy == "convs" else None

    def run(module, x, cache=None):
        if plain or cache is not None:
            return module(x, cache)
        # Split and merged by hand: nnx.remat writes the state back, which a frozen module forbids.
        graph, state = nnx.split(module)
        return checkpoint(lambda state, x: nnx.merge(graph, state)(x), policy=keep)(state, x)

    return run
