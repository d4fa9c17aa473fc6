"""Samples as a token dataset, which `decode_tokens` and every reader of tokens take."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pyratok_jax.generator.generator import Clip
from pyratok_jax.io.atomic import atomic_path
from pyratok_jax.io.shards import FORMATS, ShardWriter, shard_name
from pyratok_jax.tokens.plan import DATASET
from pyratok_jax.tokens.schema import TokenRecord, encode_record, token_dtype
from pyratok_jax.tokens.shards import ARRAY_RECORD_OPTIONS


def sample_record(
    clip: Clip, name: str, *, fps: float, checkpoint: str, generator: str
) -> TokenRecord:
    """A sample as the record of a video of one block.

    Args:
        clip: the sample.
        name: its id.
        fps: frames per second to show it at.
        checkpoint: of the tokenizer that decodes it.
        generator: hash of the generator, in place of the encoder's code.
    """
    encoded, size = clip.encoded, clip.encoded.padding
    dtype = token_dtype(encoded.bits_per_token)
    return TokenRecord(
        tokens=tuple(np.ascontiguousarray(level, dtype) for level in encoded.ids),
        id=name, video=name, path="", caption=clip.prompt, text_encoder="", code=generator[:16],
        checkpoint=checkpoint, fps=fps, start=-1.0, end=-1.0, block=0, blocks=1, first_frame=0,
        top=0, left=0, overlap=0, frames=size.frames, height=size.height, width=size.width,
        padded_frames=size.padded_frames, padded_height=size.padded_height,
        padded_width=size.padded_width, video_frames=size.frames, video_height=size.height,
        video_width=size.width, bits=encoded.bits_per_token,
        vocabulary=2**encoded.bits_per_token, levels=len(encoded.ids),
    )  # fmt: skip


def write_samples(folder: Path, records: Iterable[TokenRecord]) -> Path:
    """Write records as the one shard of a dataset, which appears when it is complete."""
    kind = FORMATS[0]
    path = folder / shard_name(DATASET, kind, 0, 1)
    with (
        atomic_path(path) as part,
        ShardWriter(Path(part), kind, ARRAY_RECORD_OPTIONS) as writer,
    ):
        for record in records:
            writer.write(encode_record(record))
    return path
