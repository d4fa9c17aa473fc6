"""The data part of a training config, with its defaults."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from pyratok_jax.io import Json


def data_config(**changes: Any) -> ConfigDict:
    """All keys that `pipeline.make_loader` reads; `changes` replace defaults.

    - sources, weights: what to train on (`sources.load_source`), and how often each is drawn;
      empty weights mean by number of clips.
    - heldout: sources of the split "heldout".
    - buckets: clip shapes with weights, see `buckets`.
    - fps: frames per second to sample at; 0 keeps each video's own.
    - crop: "random" or "center"; zoom: largest random enlargement before cropping (1: none);
      mirror: whether to mirror half of the clips.
    - caption_dropout: share of clips that lose their caption.
    - any_bucket: every clip is used for every bucket, whatever its size; headers are not read.
    - workers, threads, prefetch: processes (0: none), reading threads in each, batches ahead.
    - cache_decoded: keep whole decoded clips in memory, shrunk to the largest bucket; for small
      sources such as the demo.
    - decode_time_limit: seconds until a decoder that hangs is ended; 0 decodes in the process.
    - retries, retry_delay: back-off for remote files.
    - max_broken_share: share of unreadable clips at which training stops.

    Raises:
        KeyError: an unknown key in `changes`.
    """
    config = ConfigDict(
        {
            "sources": ("builtin:demo",),
            "weights": (),
            "heldout": ("builtin:demo-heldout",),
            "buckets": ("17x96x96",),
            "fps": 0.0,
            "crop": "random",
            "zoom": 1.0,
            "mirror": False,
            "caption_dropout": 0.1,
            "any_bucket": False,
            "workers": 0,
            "threads": 2,
            "prefetch": 2,
            "cache_decoded": False,
            "decode_time_limit": 60.0,
            "retries": 4,
            "retry_delay": 1.0,
            "max_broken_share": 0.1,
        }
    )
    return updated(config, changes, "the data config")


def updated(config: ConfigDict, changes: Mapping[str, Json], what: str) -> ConfigDict:
    """The config with new values, in place.

    Raises:
        KeyError: a key that it does not have; names it and those of the config, `what`.
    """
    for key in changes:
        if key not in config:
            raise KeyError(f"unknown key {key} of {what}; known: {', '.join(config)}")
    with config.ignore_type():
        config.update(changes)
    return config
