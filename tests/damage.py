"""Seeded damage to files and documents, and what reading them has to come to."""

import copy
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pyratok_jax.errors import UserError

SECONDS, MEGABYTES, LONGEST = 5.0, 600, 2000
# Values that a field of a document does not expect, whatever it is.
STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 3, 2**40, -(2**70), 10**400, 1e300, float("nan"), float("inf"), 0.5, "",
    "wide", "\ud800", "a\u2028b\n\x1b[31m", "[red]$x^{", "../../etc/passwd", "http:x.mp4",
    "/dev/zero", "x" * 3000, [], [[]], [1, 2, 3], {}, {"a": {"b": None}}, [None], "NaN", "1e400",
    "00:99:00",
)  # fmt: skip


def damaged(data: bytes, rng: np.random.Generator, start: int = 8) -> bytes:
    """One of: cut off, bytes changed, a part moved, a part repeated, a length made absurd.

    Args:
        data: the file.
        rng: decides which.
        start: bytes at the beginning that are kept.
    """
    changed = bytearray(data)
    way, place = rng.integers(5), int(rng.integers(start, len(data)))
    if way == 0:
        return data[:place]
    if way == 1:
        for at in rng.integers(start, len(data), int(rng.integers(1, 20))):
            changed[at] = rng.integers(256)
    elif way == 2:
        size = int(rng.integers(1, 200))
        part = changed[place : place + size]
        del changed[place : place + size]
        other = int(rng.integers(min(start, len(changed)), len(changed) + 1))
        changed[other:other] = part
    elif way == 3:
        changed[place:place] = data[place : place + int(rng.integers(1, 500))]
    else:
        place = int(rng.integers(start, min(len(data), 400)))
        changed[place : place + 4] = rng.choice(
            [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0" * 4]
        )
    return bytes(changed)


def mistaken(value: Any, rng: np.random.Generator) -> Any:
    """A copy of a JSON value in which one or two fields are strange, missing or of other names."""
    whole = copy.deepcopy(value)
    for _ in range(int(rng.integers(1, 3))):
        places = list(_places(whole))
        if not places:
            return STRANGE[rng.integers(len(STRANGE))]
        holder, key = places[rng.integers(len(places))]
        way = rng.integers(8)
        if way == 0:
            del holder[key]
        elif way == 1 and isinstance(holder, dict):
            holder[f"{key}_"] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(STRANGE[rng.integers(len(STRANGE))])
    return whole


def _places(value: Any):
    """(container, key) of everything below a value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def survives(read: Callable[[], Any], refusal: type[UserError] = UserError) -> bool:
    """Whether a reader gave a result; it may refuse in one line, within time and memory."""
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read()
        good = True
    except refusal as error:
        text = " ".join(str(error).split("\n"))
        assert text == str(error) and 10 < len(text) < LONGEST, text[:LONGEST]
        good = False
    assert time.process_time() - begin < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES << 10
    return good
