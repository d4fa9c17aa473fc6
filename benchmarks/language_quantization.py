"""Weight-only quantisation of a language model: error of the logits, and memory. Prints JSON."""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pyratok_jax.checkpoints.foreign.language_model import load_language_model
from pyratok_jax.models.language.model import parameter_bytes, quantize_model

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
    parser.add_argument("--spec", default="builtin:smollm2", help="language model")
    arguments = parser.parse_args()
    model, tokenizer = load_language_model(arguments.spec, dtype="float32")
    ids = jnp.asarray([tokenizer(TEXT)["input_ids"]])
    exact = np.asarray(_logits(model, ids))[0]
    rows = [{"weights": "float32", "megabytes": parameter_bytes(model) / 1e6}]
    for bits, group in ((8, 0), (8, 32), (4, 64), (4, 32)):
        quantised = quantize_model(nnx.clone(model), bits, group)
        got = np.asarray(_logits(quantised, ids))[0]
        rows.append(
            {
                "weights": f"int{bits}, {f'groups of {group}' if group else 'per output'}",
                "megabytes": parameter_bytes(quantised) / 1e6,
                **compare(got, exact),
            }
        )
    print(json.dumps({"model": arguments.spec, "tokens": int(ids.size), "rows": rows}, indent=1))


def compare(got: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    ours, theirs = (np.asarray(jax.nn.log_softmax(x)) for x in (got, exact))
    return {
        "relative_error_of_logits": float(np.linalg.norm(got - exact) / np.linalg.norm(exact)),
        "kl_nats": float(np.mean(np.sum(np.exp(theirs) * (theirs - ours), axis=-1))),
        "same_likeliest_token": float(np.mean(got.argmax(-1) == exact.argmax(-1))),
    }


if __name__ == "__main__":
    main()
