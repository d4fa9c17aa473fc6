"""Shapes as level functions: negative inside, about the distance to the outline in radii."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Plane = Float[np.ndarray, "*n"]


def _radius(u: Plane, v: Plane) -> Plane:
    return np.sqrt(u * u + v * v)


def _box(u: Plane, v: Plane, width: float, height: float) -> Plane:
    return np.maximum(np.abs(u) - width, np.abs(v) - height)


def _circle(u: Plane, v: Plane) -> Plane:
    return _radius(u, v) - 0.95


def _square(u: Plane, v: Plane) -> Plane:
    return _box(u, v, 0.82, 0.82)


def _triangle(u: Plane, v: Plane) -> Plane:
    return np.maximum(v - 0.7, 0.866 * np.abs(u) - 0.5 * v - 0.5)


def _star(u: Plane, v: Plane) -> Plane:
    turn = (np.arctan2(u, -v) * (5 / (2 * np.pi))) % 1.0
    return 0.6 * (_radius(u, v) - (0.42 + 0.63 * np.abs(2 * turn - 1)))


def _cross(u: Plane, v: Plane) -> Plane:
    return np.minimum(_box(u, v, 0.95, 0.3), _box(u, v, 0.3, 0.95))


def _ring(u: Plane, v: Plane) -> Plane:
    return np.abs(_radius(u, v) - 0.72) - 0.25


def _heart(u: Plane, v: Plane) -> Plane:
    lobes = np.sqrt((np.abs(u) - 0.45) ** 2 + (v + 0.35) ** 2) - 0.52
    point = np.maximum(0.774 * np.abs(u) + 0.632 * v - 0.58, -(v + 0.35))
    return np.minimum(lobes, point)


def _diamond(u: Plane, v: Plane) -> Plane:
    return 0.8 * np.abs(u) + 0.55 * np.abs(v) - 0.55


def _hexagon(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(v), 0.866 * np.abs(u) + 0.5 * np.abs(v)) - 0.85


def _crescent(u: Plane, v: Plane) -> Plane:
    return np.maximum(_radius(u, v) - 0.95, 0.78 - _radius(u - 0.5, v))


LEVELS: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "diamond": _diamond,
    "hexagon": _hexagon,
    "crescent": _crescent,
}
