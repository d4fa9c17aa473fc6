"""Padded sequences with PyTorch's DataLoader: python read_with_torch.py FOLDER."""

import sys

import numpy as np
import tensorflow_datasets as tfds
import torch

PAD = -1


def collate(records):
    """Captions, and the levels of each record one after another, coarse to fine: int64 (b, n)."""
    keys = [f"tokens_{n}" for n in range(1, records[0]["levels"] + 1)]
    flat = [np.concatenate([record[key].ravel() for key in keys]) for record in records]
    rows = [torch.from_numpy(row.astype(np.int64)) for row in flat]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    return [record["caption"].decode() for record in records], padded


source = tfds.builder_from_directory(sys.argv[1]).as_data_source(split="train")
batches = torch.utils.data.DataLoader(source, batch_size=2, collate_fn=collate)
for captions, sequences in batches:
    print(captions, sequences.shape)
