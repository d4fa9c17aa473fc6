from pathlib import Path

import pytest

from tests.data.synthetic import numbered_frames, write_video


@pytest.fixture(scope="session")
def clips_folder(tmp_path_factory) -> Path:
    """Eight small videos of 40 frames with captions, each of another tint."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(8):
        video = numbered_frames(40, 48, 64)
        video[:, :8, :, i % 3] = 30 * i
        write_video(folder / f"clip{i}.mp4", video)
        (folder / f"clip{i}.txt").write_text(f"grey ramp number {i}\n")
    return folder
