"""The export command on the pixel tokenizer; $SLOW seconds are added to every batch."""

import os
import time

from pyratok_jax import export_tokens
from pyratok_jax.errors import run_cli
from tests.tokens.tiny import PixelTokenizer


def load(checkpoint):
    tokenizer = PixelTokenizer(int(checkpoint))
    encode = tokenizer.encode

    def slowly(video, captions=None):
        time.sleep(float(os.environ.get("SLOW", 0)))
        return encode(video, captions)

    tokenizer.encode = slowly
    return tokenizer


if __name__ == "__main__":
    export_tokens.load_tokenizer = load
    run_cli(export_tokens.main)
