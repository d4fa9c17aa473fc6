"""What a preparation of clips keeps, and how it stores it."""

import dataclasses
import hashlib
import json
from typing import Literal


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What is kept and how it is stored; the shards depend on these and the input alone.

    `store` is "bytes" (the compressed stream as it is), "reencode" (H.264) or "frames" (JPEG).
    `clip_seconds` cuts longer videos (0: not at all). `height` shrinks the short side when frames
    or re-encoded video are stored (0: not). The rest are filters.
    """

    name: str = "clips"
    format: Literal["array_record", "tfrecord"] = "array_record"
    store: Literal["bytes", "reencode", "frames"] = "bytes"
    shards: int = 16
    height: int = 0
    crf: int = 20
    quality: int = 95
    clip_seconds: float = 0.0
    buckets: tuple[str, ...] = ("17x256x256",)
    min_side: int = 0
    min_seconds: float = 0.0
    max_seconds: float = 0.0
    max_aspect: float = 0.0
    time_limit: float = 120.0

    def fingerprint(self) -> str:
        """Short hash of everything that decides the shards' content."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
