"""Read an exported token dataset with TFDS alone: python read_with_tfds.py FOLDER."""

import sys

import tensorflow_datasets as tfds

records = tfds.builder_from_directory(sys.argv[1]).as_data_source(split="train")
for record in records:
    levels = [record[f"tokens_{n}"] for n in range(1, record["levels"] + 1)]  # uint16 (t, h, w)
    print(record["id"].decode(), record["caption"].decode(), *(level.shape for level in levels))
