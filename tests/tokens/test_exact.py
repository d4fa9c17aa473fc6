"""The exporter and the decoder on a real network: bit-equal to the plain forward pass."""

import numpy as np
import pytest

from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.files import iter_frames, read_image
from pyratok_jax.tokens import TokenDataset, read_all
from pyratok_jax.tokens.decoding import Selection, decode_all
from pyratok_jax.tokens.exporting import export
from pyratok_jax.tokens.options import Machine
from tests.data.synthetic import numbered_frames, write_video
from tests.tokens.conftest import plan_of
from tests.tokens.tiny import tiny_network


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    found = []
    for number, frames in enumerate((5, 8, 5)):
        video = numbered_frames(frames, 28, 32)
        video[:, :16] = rng.integers(0, 255, (frames, 4, 16, 3)).repeat(4, 1).repeat(2, 2)
        path = write_video(folder / f"{number}.mp4", video)
        found.append(ClipRecord(path.name, str(path), (None, "a dog", "two cats")[number]))
    return found


def test_tokens_and_pixels_are_those_of_the_plain_forward_pass(records, tmp_path):
    """Batches of 3, the last one filled up, against single blocks; decoded from the file."""
    tokenizer = tiny_network()
    plan = plan_of(tokenizer, records, tmp_path / "o", shards=2, batch=3, compress=True)
    export(plan, records, tokenizer, Machine())
    stored = {r.id: r for r in TokenDataset(plan.output)}
    assert sorted(stored) == ["0.mp4", "1.mp4#00000", "1.mp4#00001", "2.mp4"]
    outcome = decode_all(read_all(plan.output), tokenizer, tmp_path / "d", Selection(), crf=None)
    assert not outcome.bad
    captions_matter = []
    for record in records:
        whole = np.stack(list(iter_frames(record.path)))
        for number in range(0, len(whole), 5):
            window = whole[number : number + 5]
            encoded = tokenizer.encode(window, record.caption)
            ids = encoded.ids
            name = record.id if len(whole) == 5 else f"{record.id}#{number // 5:05d}"
            for a, b in zip(stored[name].tokens, ids, strict=True):
                np.testing.assert_array_equal(a, b)
            assert len(np.unique(ids[3])) > 8
            other = tokenizer.encode(window, "something else").ids
            captions_matter.append(any((a != b).any() for a, b in zip(ids, other, strict=True)))
            frames = tokenizer.decode(encoded)
            for place, frame in enumerate(frames):
                file = tmp_path / "d" / record.id / f"{number + place:06d}.png"
                np.testing.assert_array_equal(read_image(file), frame)
            assert frames.std() > 5
    assert all(captions_matter)
