"""Weight-only quantisation of SmolLM2: logits error, agreement of the likeliest token, memory."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pyratok_jax.models.language.quantization import parameter_bytes, quantize_model
from weights_conversion.language_model import load_language_model

TEXT = (
    "A red car drives along a coastal road while waves break on the rocks. The camera follows "
    "it from above, then turns towards the setting sun; birds cross the frame and the sky fades "
    "from orange to violet. At the end of the bridge the driver stops and looks back at the town."
)


@nnx.jit
def _logits(model, ids):
    return model.logits(model(ids).hidden)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", default="builtin:smollm2")
    arguments = parser.parse_args()
    model, tokenizer = load_language_model(arguments.spec, dtype="float32")
    ids = jnp.asarray([tokenizer(TEXT)["input_ids"]])
    exact = np.asarray(_logits(model, ids))[0]
    shares = jax.nn.log_softmax(exact)
    print(f"{'weights':>16} {'MB':>8} {'rel. error':>10} {'KL nats':>8} {'same top':>8}")
    print(f"{'float32':>16} {parameter_bytes(model) / 1e6:8.1f} {0:10.4f} {0:8.4f} {1:8.3f}")
    for bits, group in ((8, 0), (8, 32), (4, 64), (4, 32)):
        quantised = quantize_model(nnx.clone(model), bits, group)
        got = np.asarray(_logits(quantised, ids))[0]
        error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
        kl = jnp.mean(jnp.sum(jnp.exp(shares) * (shares - jax.nn.log_softmax(got)), axis=-1))
        same = np.mean(got.argmax(-1) == exact.argmax(-1))
        name = f"int{bits}, {'column' if not group else f'groups {group}'}"
        size = parameter_bytes(quantised) / 1e6
        print(f"{name:>16} {size:8.1f} {error:10.4f} {float(kl):8.4f} {same:8.3f}")


if __name__ == "__main__":
    main()
