"""What a preparation of clips keeps, and how it stores it."""

import dataclasses
import hashlib
import json
import math
import re
from typing import Literal

from pyratok_jax.errors import UserError

_NOT_NEGATIVE = ("clip_seconds", "min_side", "min_seconds", "max_seconds", "max_aspect")


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What is kept and how it is stored; the shards depend on these and the input alone.

    `store` is "bytes" (the compressed stream as it is), "reencode" (H.264) or "frames" (JPEG).
    `clip_seconds` cuts longer videos (0: not at all). `height` shrinks the short side when frames
    or re-encoded video are stored (0: not). `crf` is the H.264 quality of what is encoded, which
    "bytes" does with cuts whose packets cannot be copied exactly, `quality` that of the JPEGs of
    "frames". `time_limit` is seconds per decode (0: none). The rest are filters (0: none).
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

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            UserError: naming the option.
        """
        if re.fullmatch(r"[A-Za-z]\w*", self.name, re.ASCII) is None:
            raise UserError(f"--name {self.name!r}: expected a letter, then letters, digits and _")
        if self.shards < 1:
            raise UserError(f"--shards is {self.shards}; expected at least 1")
        if self.height < 0 or self.height == 1:
            raise UserError(f"--height {self.height}: expected pixels from 2, or 0: as they are")
        for name, least, most in (("crf", 0, 51), ("quality", 1, 100)):
            if not least <= getattr(self, name) <= most:
                raise UserError(f"--{name} {getattr(self, name)} is not within {least} .. {most}")
        for name in (*_NOT_NEGATIVE, "time_limit"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                option = name.replace("_", "-")
                raise UserError(f"--{option} {value}: expected a number above 0, or 0 for none")
        if 0 < self.max_aspect < 1:
            raise UserError(f"--max-aspect {self.max_aspect:g}: the long by the short side, from 1")
        if 0 < self.max_seconds < self.min_seconds:
            raise UserError(
                f"--max-seconds {self.max_seconds:g} is below --min-seconds {self.min_seconds:g}: "
                "no clip would be kept"
            )

    def fingerprint(self) -> str:
        """Short hash of everything that decides the shards' content."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
