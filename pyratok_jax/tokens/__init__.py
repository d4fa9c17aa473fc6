"""Token datasets: what `export_tokens` writes, for people who train on it.

    from pyratok_jax.tokens import TokenDataset, flatten, unflatten
    dataset = TokenDataset("tokens/")           # len(dataset), dataset[i].tokens, .caption, ...
    source = dataset.sequences()                # flat sequences; a grain data source

Importing this loads neither the models nor TensorFlow.
"""

from pyratok_jax.tokens.dataset import (
    SequenceSource,
    TokenDataset,
    flatten,
    iterate,
    read_all,
    separator_id,
    soi_id,
    unflatten,
)
from pyratok_jax.tokens.schema import SCHEMA_VERSION, DamagedRecordError, TokenRecord

__all__ = [
    "SCHEMA_VERSION",
    "DamagedRecordError",
    "SequenceSource",
    "TokenDataset",
    "TokenRecord",
    "flatten",
    "iterate",
    "read_all",
    "separator_id",
    "soi_id",
    "unflatten",
]
