"""Token datasets: what `export_tokens` writes, for people who train on it.

    from pyratok_jax.tokens import TokenDataset, flatten, unflatten
    dataset = TokenDataset("tokens/")           # len(dataset), dataset[i].tokens, .caption, ...
    source = dataset.sequences()                # flat sequences; a grain data source

Using these loads neither the models nor TensorFlow. They are imported when they are first used, so
that commands of this package answer --help at once.
"""

from typing import TYPE_CHECKING

from pyratok_jax.lazy import lazy_names

if TYPE_CHECKING:
    from pyratok_jax.tokens.dataset import SequenceSource as SequenceSource
    from pyratok_jax.tokens.dataset import TokenDataset as TokenDataset
    from pyratok_jax.tokens.dataset import flatten as flatten
    from pyratok_jax.tokens.dataset import iterate as iterate
    from pyratok_jax.tokens.dataset import read_all as read_all
    from pyratok_jax.tokens.dataset import separator_id as separator_id
    from pyratok_jax.tokens.dataset import soi_id as soi_id
    from pyratok_jax.tokens.dataset import unflatten as unflatten
    from pyratok_jax.tokens.schema import SCHEMA_VERSION as SCHEMA_VERSION
    from pyratok_jax.tokens.schema import DamagedRecordError as DamagedRecordError
    from pyratok_jax.tokens.schema import TokenRecord as TokenRecord

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


_OF_SCHEMA = ("SCHEMA_VERSION", "DamagedRecordError", "TokenRecord")
__getattr__ = lazy_names(
    __name__,
    {name: f"{__name__}.{'schema' if name in _OF_SCHEMA else 'dataset'}" for name in __all__},
)
