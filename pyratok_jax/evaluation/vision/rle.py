"""Masks as run lengths: ground truth has lists of numbers or polygons, predictions are packed."""

from typing import Any

import numpy as np
from pycocotools import mask as coco


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A bool mask (h, w) as packed run lengths, JSON-able."""
    packed = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(n) for n in packed["size"]], "counts": packed["counts"].decode("ascii")}


def pack(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Run lengths in any published form, or polygons, as packed run lengths.

    Raises:
        ValueError: of another size than the video, or no mask at all.
    """
    if isinstance(segmentation, list):
        packed = coco.merge(coco.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        packed = coco.frPyObjects(segmentation, height, width)
    else:
        packed = segmentation
    if [int(n) for n in packed["size"]] != [height, width]:
        raise ValueError(f"a mask of {packed['size']} in a video of {[height, width]}")
    counts = packed["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [height, width], "counts": text}


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The bool mask (height, width) of a segmentation in any published form.

    Raises:
        ValueError: as `pack`.
    """
    return coco.decode(pack(segmentation, height, width)).astype(bool)
