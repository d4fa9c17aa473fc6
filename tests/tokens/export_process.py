"""The export command on the pixel tokenizer; after $FAST batches it stands still."""

import os
import time

from pyratok_jax import export_tokens, tokenizer
from pyratok_jax.errors import run_cli
from tests.tokens.tiny import PixelTokenizer


def load(checkpoint):
    made = PixelTokenizer(int(checkpoint))
    encode, left = made.encode_padded, [int(os.environ.get("FAST", 1 << 30))]

    def limited(video, captions=None):
        left[0] -= 1
        time.sleep(0 if left[0] >= 0 else 600)
        return encode(video, captions)

    made.encode_padded = limited
    return made


def main():
    tokenizer.load_tokenizer = load
    run_cli(export_tokens.main)


if __name__ == "__main__":
    main()
