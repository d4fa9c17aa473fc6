"""Batches of equal grids with grain: python read_with_grain.py FOLDER."""

import sys

import grain
import tensorflow_datasets as tfds

source = tfds.builder_from_directory(sys.argv[1]).as_data_source(split="train")
keys = [f"tokens_{n}" for n in range(1, source[0]["levels"] + 1)]
shapes = [source[0][key].shape for key in keys]

records = grain.MapDataset.source(source).shuffle(seed=0)
records = records.filter(lambda record: [record[key].shape for key in keys] == shapes)
records = records.map(lambda record: {key: record[key] for key in (*keys, "id", "caption")})
batches = records.to_iter_dataset().batch(2)
for batch in batches:
    print(batch["id"], *(batch[key].shape for key in keys))  # uint16 (b, t, h, w) per level
