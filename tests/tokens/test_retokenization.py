"""Retokenisation is measured against the first tokens and pixels."""

import numpy as np

from benchmarks.tokens.retokenization import retokenize
from tests.tokens.tiny import PixelTokenizer


class Halving(PixelTokenizer):
    """Decodes every clip to itself at half its brightness."""

    def decode_padded(self, ids):
        return np.full((1, 5, 16, 16, 3), 2 * self.shade, np.uint8)

    def encode_padded(self, video, captions=None):
        self.shade = int(video.flat[0]) // 4
        grids = ((1, 5, 1, 1), (1, 3, 1, 1), (1, 2, 1, 1), (1, 2, 2, 2))
        return tuple(
            np.full(grid, self.shade * (n == 3), np.uint32) for n, grid in enumerate(grids)
        )


def test_each_round_is_compared_with_the_first_tokens_and_pixels():
    rows = retokenize(Halving(), np.full((5, 16, 16, 3), 240, np.uint8), 2)
    # Ids of the finest level: 60, then 30, then 15; pixels 120, then 60, then 30.
    assert [row["equal"] for row in rows] == [[1.0, 1.0, 1.0, 0.0]] * 2
    wanted = [10 * np.log10(255**2 / error**2) for error in (60, 90)]
    np.testing.assert_allclose([row["psnr"] for row in rows], wanted)


def test_a_fixed_point_is_told_as_such():
    rows = retokenize(Halving(), np.zeros((5, 16, 16, 3), np.uint8), 1)
    assert rows == [{"equal": [1.0] * 4, "psnr": float("inf")}]
