"""Gaussian filtering in many dimensions on the permutohedral lattice (Adams et al., 2010).

A value v_j at position f_j (in units of the standard deviation, so that the kernel is
exp(-|f_i - f_j|^2 / 2)) is spread onto the corners of the lattice simplex around f_j, blurred along
each lattice direction, and read back at the same corners. The cost grows linearly with the number
of points and not with the size of the kernel.

The lattice is built on the host, once per video; filtering is JAX.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_CHUNK = 1 << 18


class Lattice(NamedTuple):
    """A lattice around n points in d dimensions, with m corners in use; row m is always zero.

    Attributes:
        corners: (d+1, n) the corners of each point's simplex.
        weights: (d+1, n) its barycentric coordinates; they sum to 1.
        before: (d+1, m) each corner's neighbour along each lattice direction (m: none in use).
        after: (d+1, m) the neighbour on the other side.
    """

    corners: Int[Array, "v n"]
    weights: Float[Array, "v n"]
    before: Int[Array, "v m"]
    after: Int[Array, "v m"]


def build_lattice(positions: np.ndarray) -> Lattice:
    """The lattice around positions (n, d), float32, in units of the kernel's standard deviation.

    Raises:
        ValueError: not two axes, no point, or positions that are not finite.
    """
    if positions.ndim != 2 or not positions.size:
        raise ValueError(f"positions must be (n, d) and not empty, got {positions.shape}")
    if not np.isfinite(positions).all():
        raise ValueError("positions must be finite")
    n, d = positions.shape
    # A corner is named by a random linear function of its coordinates modulo 2^64, so that the
    # name of a neighbour is a sum too. Two corners of a lattice share a name with a chance of
    # about m^2 / 2^65. The last coordinate follows from the others: all sum to zero.
    factors = np.random.default_rng(977).integers(1, 2**63, (2, d + 1), dtype=np.uint64) * 2 + 1
    factors[0, d] = 0
    weights = np.empty((d + 1, n), np.float32)
    chunks = []
    for start in range(0, n, _CHUNK):
        part = np.asarray(positions[start : start + _CHUNK], np.float32)
        size = len(part)
        part = np.pad(part, ((0, -size % min(_CHUNK, n)), (0, 0)))
        origin, rank, weight = (np.asarray(x)[:, :size] for x in _enclose(_elevate(part)))
        weights[:, start : start + size] = weight
        chunks.append(_corner_names(origin, rank, factors))
    corners = np.unique(np.concatenate([names.ravel() for names, _ in chunks]))
    index = np.empty((d + 1, n), np.int32)
    for number, (names, simplex) in enumerate(chunks):
        part = np.searchsorted(corners, names).astype(np.int32)
        index[:, number * _CHUNK : number * _CHUNK + len(simplex)] = part[:, simplex]
    # Few sizes are compiled when the number of corners is rounded up.
    room = -len(corners) % (1 << max(len(corners).bit_length() - 3, 0))
    before, after = _neighbours(corners, factors[0], room)
    return Lattice(*(jnp.asarray(x) for x in (index, weights, before, after)))


@jax.jit
def _enclose(elevated: Float[Array, "v n"]) -> tuple[Array, Array, Array]:
    """The simplex around each elevated position: corner of colour 0, ranks, barycentric weights.

    Returns:
        The corner's coordinates, the rank of each coordinate when the offsets from that corner
        are sorted (greatest first), and the weights of the corners; all (d+1, n).
    """
    dims = len(elevated)
    origin = jnp.rint(elevated * np.float32(1 / dims)) * dims
    excess = jnp.rint(jnp.sum(origin, axis=0) / dims).astype(jnp.int32)
    offset = elevated - origin
    ranks = []
    for i in range(dims):
        above = [offset[j] > offset[i] for j in range(i + 1, dims)]
        ties = [offset[j] >= offset[i] for j in range(i)]
        ranks.append(sum((x.astype(jnp.int32) for x in above + ties), jnp.int32(0)))
    # Rounding may have left the plane: the coordinates that moved furthest go back a step.
    rank = jnp.stack(ranks) + excess
    wrap = (rank < 0).astype(jnp.int32) - (rank >= dims)
    rank, origin = rank + wrap * dims, origin + wrap * dims
    offset = (elevated - origin) / dims
    ordered = [jnp.sum(jnp.where(rank == k, offset, 0), axis=0) for k in range(dims)]
    weights = [1 + ordered[-1] - ordered[0]]
    weights += [ordered[dims - 1 - r] - ordered[dims - r] for r in range(1, dims)]
    return origin.astype(jnp.int32), rank, jnp.stack(weights)


def _corner_names(
    origin: np.ndarray, rank: np.ndarray, factors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Names (d+1, s) of the corners of the s simplices in use, and each point's simplex (n,).

    Corner r is r steps up from the origin, its coordinates of the last r ranks d+1 lower.
    """
    dims = len(origin)
    base = np.zeros(origin.shape[1], np.uint64)
    order = np.zeros(origin.shape[1], np.uint64)
    for i in range(dims):
        base += origin[i].astype(np.int64).view(np.uint64) * factors[0, i]
        order += rank[i].astype(np.uint64) * factors[1, i]
    _, first, simplex = np.unique(base + order, return_index=True, return_inverse=True)
    base, rank = base[first], rank[:, first]
    by_rank = np.empty(rank.shape, np.uint64)
    np.put_along_axis(by_rank, rank, np.broadcast_to(factors[0][:, None], rank.shape), axis=0)
    names = np.empty(rank.shape, np.uint64)
    names[0] = base
    for r in range(1, dims):
        names[r] = names[r - 1] + factors[0].sum() - by_rank[dims - r] * np.uint64(dims)
    return names, simplex


def _elevate(positions: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "v n"]:
    """Positions on the plane of d+1 coordinates that sum to zero.

    The scale makes the lattice's blur a kernel of standard deviation 1.

    On the host, one rounding per operation: pixels of whole-numbered places and colours often lie
    on the border of two simplices. Either side gives the same weights, but not the same corners,
    and the blur passes through corners in use only. Products and sums in one rounding, as
    compilers like to make of them, would choose the side by chance.
    """
    d = positions.shape[1]
    deviation = float(np.float32(np.sqrt(2 / 3) * (d + 1)))
    rows, tail = [], np.zeros(len(positions), np.float32)
    for j in range(d, 0, -1):
        scaled = positions[:, j - 1] * np.float32(1 / np.sqrt(j * (j + 1.0)) * deviation)
        rows.append(tail - np.float32(j) * scaled)
        tail = tail + scaled
    return np.stack([tail, *rows[::-1]])


def _neighbours(
    corners: np.ndarray, factors: np.ndarray, room: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (d+1, m) of the neighbours of sorted corner names along each direction.

    The last `room` of the m corners are not in use.
    """
    dims, m = len(factors), len(corners)
    steps = factors * np.uint64(dims) - factors.sum(dtype=np.uint64)
    found = []
    for signed in (steps, ~steps + np.uint64(1)):
        rows = np.full((dims, m + room), m + room, np.int32)
        for j in range(dims):
            wanted = corners + signed[j]
            place = np.minimum(np.searchsorted(corners, wanted), m - 1)
            rows[j, :m] = np.where(corners[place] == wanted, place, m + room)
        found.append(rows)
    return found[0], found[1]


@jax.jit
def lattice_filter(lattice: Lattice, values: Float[Array, "n c"]) -> Float[Array, "n c"]:
    """sum_j exp(-|f_i - f_j|^2 / 2) values_j, for every point i, itself included."""
    dims, m = lattice.before.shape
    table = jnp.zeros((m + 1, values.shape[1]), values.dtype)
    for r in range(dims):
        table = table.at[lattice.corners[r]].add(lattice.weights[r, :, None] * values)
    for j in range(dims):
        sides = table[lattice.before[j]] + table[lattice.after[j]]
        table = table.at[:m].add(0.5 * sides)
    result = jnp.zeros_like(values)
    for r in range(dims):
        result = result + lattice.weights[r, :, None] * table[lattice.corners[r]]
    # What the blur along d+1 directions adds up to at the centre, against a kernel of height 1.
    return result / (1 + 2.0 ** -(dims - 1))
