"""Random colours for training clips: hue, saturation, gain, order of channels; flat pictures."""

from collections.abc import Mapping

import numpy as np

_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_NAMES = ("colour", "flat")


def augment(
    video: np.ndarray, rng: np.random.Generator, chances: Mapping[str, float]
) -> np.ndarray:
    """Clips uint8 (b, t, h, w, 3) of which some have other colours.

    Args:
        video: is not changed.
        rng: of all choices; as many numbers are drawn whatever the clips hold.
        chances: by name, of a clip's "colour" being changed and of it being replaced by a "flat"
            one of one or two colours. Absent ones are 0.

    Raises:
        KeyError: an unknown name.
    """
    unknown = set(chances) - set(_NAMES)
    if unknown:
        raise KeyError(f"unknown augmentation {sorted(unknown)}; expected of {', '.join(_NAMES)}")
    video = video.copy()
    for clip in video:
        change, flat = rng.random(2) < [chances.get(name, 0.0) for name in _NAMES]
        matrix, offset = colour_map(rng)
        colours = rng.integers(0, 256, (2, 3))
        edge = int(rng.integers(2 * clip.shape[2]))
        if flat:
            clip[:] = colours[0]
            clip[:, :, edge:] = colours[1]
        elif change:
            mapped = clip.astype(np.float32) @ matrix + offset
            clip[:] = np.clip(np.rint(mapped), 0, 255).astype(np.uint8)
    return video


def colour_map(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random affine map of RGB rows: x @ (3, 3) + (3,), about the middle grey.

    Channels may be permuted; saturation is scaled by 0.5 to 1.8, each channel by 0.8 to 1.25, and
    brightness moves by up to 20.
    """
    order = rng.permutation(3) if rng.random() < 0.5 else np.arange(3)
    saturation = np.exp(rng.uniform(np.log(0.5), np.log(1.8)))
    grey = np.repeat(_GREY[:, None], 3, axis=1)
    matrix = (saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * grey)[order]
    matrix = matrix * np.exp(rng.uniform(np.log(0.8), np.log(1.25), 3)).astype(np.float32)
    offset = rng.uniform(-20, 20) + 127.5 - np.full(3, 127.5) @ matrix
    return matrix.astype(np.float32), offset.astype(np.float32)
