"""Tokens per second of a `raster` prior, beside no cache and a PyTorch Llama, on this machine.

    python -m benchmarks.generation_speed [--width 192] [--layers 6] [--clip 9x64x64] [--rows 1]

Random weights: speed does not depend on them. Three ways to draw the tokens of one clip:
the sampler with its KV cache; the training pass run again for every token, which needs no cache
(measured on a few tokens, scaled to all); `LlamaForCausalLM.generate` of transformers, with its
cache, of the same width, layers, heads and number of tokens, over a vocabulary of 256 ids. Each
is run once before it is measured. Prints JSON.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pyratok_jax.models.prior import raster
from pyratok_jax.models.prior.conditioning import Condition
from pyratok_jax.models.prior.config import PriorConfig, Sampling
from pyratok_jax.models.prior.layout import Layout
from pyratok_jax.models.prior.model import Prior
from pyratok_jax.models.prior.sampling import row_keys
from pyratok_jax.nn.grids import grid_shape
from pyratok_jax.nn.settings import PRESETS

_FEW = 4


def seconds(run: Callable[[], object]) -> float:
    """Of the second call."""
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure_ours(prior: Prior, layout: Layout, rows: int) -> dict[str, float]:
    """Seconds of a clip with the cache, and without it."""
    condition, keys = Condition(rows), row_keys(0, np.arange(rows))

    def cached() -> None:
        state = raster.raster_start(prior, condition, rows=rows, layout=layout)
        for _ in range(raster.raster_chunks(layout)):
            state, part = raster.raster_chunk(
                prior, state, keys, None, layout=layout, sampling=Sampling()
            )
            part.block_until_ready()

    whole = nnx.jit(lambda prior, codes: prior.raster(codes, condition, layout)[:, -1])
    codes = jnp.ones((rows, layout.size, prior.config.bits))

    def uncached() -> None:
        for _ in range(_FEW):
            whole(prior, codes).block_until_ready()

    return {"cached": seconds(cached), "uncached": seconds(uncached) * layout.size / _FEW}


def measure_llama(config: PriorConfig, tokens: int, rows: int) -> float:
    """Seconds of transformers' `generate`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=tokens + 8,
        )
    ).eval()
    prompt = torch.ones((rows, 1), dtype=torch.long)
    settings: dict[str, Any] = {"do_sample": True, "pad_token_id": 0, "eos_token_id": None}
    with torch.inference_mode():
        return seconds(
            lambda: model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, **settings)
        )


def main() -> None:
    """Measure all three in one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--clip", default="9x64x64")
    parser.add_argument("--rows", type=int, default=1)
    args = parser.parse_args()
    strides = PRESETS["pyramid"]
    config = PriorConfig(
        strides=strides, order="raster", width=args.width, layers=args.layers, heads=args.heads,
        kv_heads=1, condition="none",
    )  # fmt: skip
    t, h, w = (int(part) for part in args.clip.split("x"))
    grids = tuple(grid_shape(stride, t, h, w) for stride in strides)
    layout = Layout(grids, strides, config.latent_stride)
    found = measure_ours(Prior(config, rngs=nnx.Rngs(0)), layout, args.rows)
    found["llama"] = measure_llama(config, layout.size, args.rows)
    print(
        json.dumps(
            {
                "tokens": layout.size,
                "rows": args.rows,
                "cores": len(os.sched_getaffinity(0)),
                "backend": jax.default_backend(),
                "seconds": found,
                "tokens_per_second": {
                    name: args.rows * layout.size / value for name, value in found.items()
                },
            }
        )
    )


if __name__ == "__main__":
    main()
