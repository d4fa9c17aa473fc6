"""Records as tf.train.Example messages, by a declared schema of scalar keys.

An Example's bytes are parsed as a protocol buffer only; TensorFlow is not loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

# Not where it is used: while TFDS is imported, imports in other threads fail.
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from pyratok_jax.io import text_bytes

Scalar = str | float | int
Values = list[bytes] | list[float] | list[int]


class _Items(Protocol):
    value: Any


class Feature(Protocol):
    """One key's values, a protocol buffer of which one of the three lists is filled."""

    bytes_list: _Items
    float_list: _Items
    int64_list: _Items

    def WhichOneof(self, oneof_group: str) -> str | None:
        """The name of the list that is filled."""


Features = Mapping[str, Feature]


@dataclass(frozen=True)
class ExampleSchema:
    """The scalar keys of a kind of record, each of which holds exactly one value.

    Attributes:
        texts: stored as UTF-8 bytes.
        floats: stored as float32.
        integers: stored as int64.
    """

    texts: tuple[str, ...]
    floats: tuple[str, ...]
    integers: tuple[str, ...]

    def encode(
        self,
        values: Mapping[str, Any],
        arrays: Mapping[str, Sequence[bytes] | Sequence[int]] | None = None,
    ) -> bytes:
        """A serialised Example; equal content gives equal bytes.

        Args:
            values: by key; a missing or None text is stored as "", a missing number as -1.
            arrays: lists of bytes or of integers under further keys.
        """
        example = tf_example_pb2.Example()
        feature = example.features.feature
        for key in self.texts:
            feature[key].bytes_list.value.append(text_bytes(values.get(key) or ""))
        for key in self.floats:
            number = values.get(key)
            feature[key].float_list.value.append(-1.0 if number is None else number)
        for key in self.integers:
            number = values.get(key)
            feature[key].int64_list.value.append(-1 if number is None else number)
        for key, items in (arrays or {}).items():
            holds_bytes = len(items) > 0 and isinstance(items[0], bytes)
            kind = feature[key].bytes_list if holds_bytes else feature[key].int64_list
            kind.value.extend(items)
        return example.SerializeToString(deterministic=True)

    def scalars(self, features: Features) -> dict[str, Any]:
        """The values of all keys of the schema.

        Raises:
            IndexError: a key is missing or of another type.
        """
        values: dict[str, Scalar] = {}
        values |= {
            k: features[k].bytes_list.value[0].decode("utf-8", "surrogateescape")
            for k in self.texts
        }
        values |= {k: features[k].float_list.value[0] for k in self.floats}
        values |= {k: features[k].int64_list.value[0] for k in self.integers}
        return values

    def tfds_features(self) -> dict[str, tfds.features.FeatureConnector]:
        """TFDS's feature connectors, by key."""
        features: dict[str, Any] = {key: tfds.features.Text() for key in self.texts}
        features |= {key: tfds.features.Scalar(np.float32) for key in self.floats}
        features |= {key: tfds.features.Scalar(np.int64) for key in self.integers}
        return features

    def parsing_spec(self) -> dict[str, str]:
        """The feature spec for `tf.io.parse_single_example`, as source text by key."""
        kinds = (self.texts, "string"), (self.floats, "float32"), (self.integers, "int64")
        return {
            key: f"tf.io.FixedLenFeature([], tf.{kind})" for keys, kind in kinds for key in keys
        }


def parse_example(data: bytes) -> Features:
    """The features of a serialised Example; a key that is not there reads as an empty one.

    Raises:
        ValueError: not an Example.
    """
    try:
        return tf_example_pb2.Example.FromString(data).features.feature
    except DecodeError as error:
        raise ValueError(f"not a tf.train.Example ({error})") from error


def feature_values(feature: Feature) -> Values:
    """The items of a feature, whichever of the three types it has; empty where it has none."""
    kind = feature.WhichOneof("kind")
    return [] if kind is None else list(getattr(feature, kind).value)
