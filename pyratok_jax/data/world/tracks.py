"""Things of a world video found by their colour and followed over its frames.

Backgrounds are pale (their chroma, the largest channel less the smallest, stays below `CHROMA`);
things are not, and their hue does not depend on light and texture.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from pyratok_jax.data.world.vocabulary import COLOURS

CHROMA = 55.0
# Of the picture: less is noise. The smallest thing, half shrunk, covers about 0.005.
_LEAST_AREA = 0.0025
# What no thing stays below in all of its frames; the smallest thing covers 0.016 at its largest,
# and the palest has a chroma of 90.
_LEAST_PEAK, _LEAST_CHROMA = 0.012, 75.0
# A decoder leaves a pale trace where a thing was, of less than this share of its chroma.
_TRACE = 0.6
# Blobs of one colour that are looked at: of noise there are very many.
_MOST = 6
# Holes below this share of a component are texture; that of a ring is larger.
_TEXTURE_HOLE = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Track:
    """One thing over the video.

    Attributes:
        colour: word of the vocabulary.
        frames: numbers of those in which it was found, ascending.
        masks: of these, the whole picture.
        centres: (x, y) of these, shares of width and height.
        areas: of these, shares of the picture.
    """

    colour: str
    frames: Int[np.ndarray, " n"]
    masks: Bool[np.ndarray, "n h w"]
    centres: Float[np.ndarray, "n 2"]
    areas: Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, eq=False)
class _Blob:
    mask: Bool[np.ndarray, "h w"]
    centre: tuple[float, float]
    area: float
    chroma: float  # of its vivid pixels, the fifth part with most of it left out


def colour_map(video: UInt8[np.ndarray, "t h w 3"]) -> Int[np.ndarray, "t h w"]:
    """Of every pixel the number of its colour in `COLOURS`; -1 for the background."""
    pixels = video.astype(np.float32)
    high, low = pixels.max(axis=-1), pixels.min(axis=-1)
    vivid = high - low >= CHROMA
    angles = _hue(pixels[vivid])
    known = _hue(np.array(list(COLOURS.values()), np.float32))
    away = np.abs(angles[..., None] - known)
    found = np.full(vivid.shape, -1)
    found[vivid] = np.minimum(away, 360 - away).argmin(axis=-1)
    return found


def _hue(pixels: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n"]:
    """Hue in degrees, which scaling the pixel does not change."""
    r, g, b = np.moveaxis(pixels, -1, 0)
    return np.degrees(np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b)) % 360


def find_tracks(video: UInt8[np.ndarray, "t h w 3"]) -> list[Track]:
    """All things of a video without cuts; fringes, specks and pale traces are none."""
    colours = colour_map(video)
    frames = [_frame_blobs(*pair) for pair in zip(colours, _chroma(video), strict=True)]
    found = []
    for number, colour in enumerate(COLOURS):
        blobs = [frame[number] for frame in frames]
        peak = max((b.chroma for some in blobs for b in some if b.area >= _LEAST_PEAK), default=0.0)
        if peak >= _LEAST_CHROMA:
            real = [[b for b in some if b.chroma >= _TRACE * peak] for some in blobs]
            found += [t for t in _follow(colour, real) if t.areas.max() >= _LEAST_PEAK]
    return found


def _chroma(pixels: UInt8[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n"]:
    return (pixels.max(axis=-1) - pixels.min(axis=-1)).astype(np.float32)


def _frame_blobs(
    colours: Int[np.ndarray, "h w"], chroma: Float[np.ndarray, "h w"]
) -> list[list[_Blob]]:
    """Of one frame, by colour; what touches a larger blob of another colour is its fringe."""
    found = [_blobs(colours == number, chroma) for number in range(len(COLOURS))]
    everything = sorted((blob for some in found for blob in some), key=lambda b: -b.area)
    fringes = set[int]()
    for place, large in enumerate(everything):
        near = ndimage.binary_dilation(large.mask, np.ones((3, 3)))
        fringes |= {id(b) for b in everything[place + 1 :] if (b.mask & near).any()}
    return [[blob for blob in some if id(blob) not in fringes] for some in found]


def _blobs(mask: Bool[np.ndarray, "h w"], chroma: Float[np.ndarray, "h w"]) -> list[_Blob]:
    """Connected parts that are large enough, the largest first."""
    least = _LEAST_AREA * mask.size
    if mask.sum() < least:
        return []
    opened = ndimage.binary_closing(np.pad(mask, 2), np.ones((2, 2)))[2:-2, 2:-2] | mask
    labels, count = ndimage.label(opened, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    large = [n for n in np.argsort(-sizes[1:])[:_MOST] + 1 if sizes[n] >= least]
    boxes, blobs = ndimage.find_objects(labels), []
    for label in large:
        part = np.zeros(mask.shape, bool)
        box = boxes[label - 1]
        part[box] = _without_texture(labels[box] == label)
        y, x = np.nonzero(part)
        height, width = mask.shape
        centre = ((x.mean() + 0.5) / width, (y.mean() + 0.5) / height)
        vivid = float(np.percentile(chroma[part & mask], 80))
        blobs.append(_Blob(part, centre, part.sum() / mask.size, vivid))
    blobs.sort(key=lambda blob: -blob.area)
    return blobs


def _without_texture(part: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    holes, count = ndimage.label(ndimage.binary_fill_holes(part) & ~part)
    sizes = np.bincount(holes.ravel(), minlength=count + 1)
    small = sizes < _TEXTURE_HOLE * part.sum()
    small[0] = False
    return part | small[holes]


def _follow(colour: str, blobs: Sequence[list[_Blob]]) -> list[Track]:
    """As many tracks as blobs are seen at once in a fifth of the frames that show the colour."""
    counts = [len(found) for found in blobs if found]
    if len(counts) < max(2, len(blobs) // 8):
        return []
    wanted = max(2, round(0.2 * len(counts)))
    most = max(n for n in counts if sum(count >= n for count in counts) >= wanted)
    first = next(number for number, found in enumerate(blobs) if len(found) >= most)
    tracks = [{first: blob} for blob in blobs[first][:most]]
    for step in (1, -1):  # From the first frame that shows all of them to both ends.
        last = [track[first] for track in tracks]
        numbers = range(first + 1, len(blobs)) if step > 0 else range(first - 1, -1, -1)
        for number in numbers:
            for place, blob in _assign(last, blobs[number][:most]):
                tracks[place][number] = last[place] = blob
    return [_track(colour, track) for track in tracks if len(track) > 1]


def _assign(last: Sequence[_Blob], found: Sequence[_Blob]) -> list[tuple[int, _Blob]]:
    """Blobs with the numbers of the tracks whose last blobs they continue, each at most once.

    Of a thing that was away for a while the area and the place tell it from the others.
    """
    if not found:
        return []

    def change(place: int, blob: _Blob) -> float:
        moved = float(np.hypot(*np.subtract(last[place].centre, blob.centre)))
        return moved + 0.2 * abs(float(np.log(blob.area / last[place].area)))

    cost = np.array([[change(place, blob) for blob in found] for place in range(len(last))])
    places, numbers = linear_sum_assignment(cost)
    return [(int(place), found[number]) for place, number in zip(places, numbers, strict=True)]


def _track(colour: str, track: Mapping[int, _Blob]) -> Track:
    frames = sorted(track)
    blobs = [track[number] for number in frames]
    return Track(
        colour,
        np.array(frames),
        np.stack([blob.mask for blob in blobs]),
        np.array([blob.centre for blob in blobs]),
        np.array([blob.area for blob in blobs]),
    )
