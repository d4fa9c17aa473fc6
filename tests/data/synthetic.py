"""Synthetic videos whose frames tell their numbers."""

from pathlib import Path

import numpy as np

from pyratok_jax.data.video.files import VideoSource, iter_frames, probe
from pyratok_jax.data.video.writer import VideoWriter


def numbered_frames(count: int, height: int, width: int, start: int = 0) -> np.ndarray:
    """Frames that tell their number: grey level 10 + 6 n in the left half, a gradient right."""
    video = np.zeros((count, height, width, 3), np.uint8)
    for n in range(count):
        video[n] = 10 + 6 * ((n + start) % 40)
        video[n, :, width // 2 :] = np.linspace(0, 255, width - width // 2)[None, :, None]
    return video


def numbers_of(clip: np.ndarray) -> list[int]:
    """The frame numbers that a clip of `numbered_frames` shows."""
    grey = clip[:, :, : clip.shape[2] // 4].reshape(len(clip), -1).mean(axis=1)
    return [round((g - 10) / 6) for g in grey.astype(float)]


def write_video(path: Path, video: np.ndarray, fps: float = 25.0) -> Path:
    with VideoWriter(path, fps=fps, crf=8, preset="ultrafast") as writer:
        for frame in video:
            writer.write(frame)
    return path


def write_clips(folder: Path, count: int, frames: int) -> Path:
    """`count` videos clip0.mp4, ... of 48x64 pixels, numbered from the video's number on."""
    for i in range(count):
        write_video(folder / f"clip{i}.mp4", numbered_frames(frames, 48, 64, start=i))
    return folder


def read_media(path: VideoSource) -> tuple[np.ndarray, float]:
    """A whole video or still image in memory: uint8 (t, h, w, 3), and its frames per second."""
    return np.stack(list(iter_frames(path))), probe(path).fps
