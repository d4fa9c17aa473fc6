"""Synchronised videos of a page: tiled into one, so that a browser plays them in step; its player.

A page that holds players needs `STYLE` and `SCRIPT` once. Without the script, or in a browser that
does not run it, the tiled video itself is shown with the browser's controls.
"""

import dataclasses
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
from markupsafe import Markup
from PIL import Image

from pyratok_jax.data.video.writer import VideoWriter
from pyratok_jax.io import html
from pyratok_jax.reports.pictures import fit_within

_LONGEST_SIDE = 480
# H.264 codes blocks of 16 pixels; panels that start on one do not bleed into each other.
_BLOCK = 16
_CRF = 16


@dataclasses.dataclass(frozen=True)
class Panel:
    """Where a video is within the tiled one, in pixels."""

    name: str
    left: int
    top: int
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class TiledVideo:
    """Several videos as the panels of one compressed video.

    `mime` is video/mp4, or image/webp (animated) where no H.264 encoder is at hand.
    """

    data: bytes
    mime: str
    fps: float
    frames: int
    width: int
    height: int
    panels: tuple[Panel, ...]

    @property
    def url(self) -> str:
        """The video as a data URL."""
        return html.data_url(self.data, self.mime)


def tile_videos(videos: Mapping[str, np.ndarray], fps: float) -> TiledVideo:
    """Tile videos of one size and length into one video.

    Large ones are shrunk to a longest side of 480; small ones are doubled, which keeps colours
    sharp although H.264 in browsers halves their resolution.

    Args:
        videos: uint8 (t, h, w, 3) by name, in the order of the panels.
        fps: frames per second.

    Raises:
        ValueError: no video, or unequal shapes.
    """
    shapes = {video.shape for video in videos.values()}
    if len(shapes) != 1:
        raise ValueError(f"tiled videos must have one shape, got {sorted(shapes)}")
    scaled = [_scaled(video) for video in videos.values()]
    t, height, width = scaled[0].shape[:3]
    columns = int(np.ceil(np.sqrt(len(scaled))))
    rows = -(-len(scaled) // columns)
    cell_h, cell_w = (_BLOCK * -(-side // _BLOCK) for side in (height, width))
    canvas = np.zeros((t, rows * cell_h, columns * cell_w, 3), np.uint8)
    panels = []
    for number, (name, video) in enumerate(zip(videos, scaled, strict=True)):
        top, left = number // columns * cell_h, number % columns * cell_w
        widths = ((0, 0), (0, cell_h - height), (0, cell_w - width), (0, 0))
        canvas[:, top : top + cell_h, left : left + cell_w] = np.pad(video, widths, mode="edge")
        panels.append(Panel(name, left, top, width, height))
    data, mime = compress(canvas, fps)
    return TiledVideo(data, mime, fps, t, canvas.shape[2], canvas.shape[1], tuple(panels))


def _scaled(video: np.ndarray) -> np.ndarray:
    video = fit_within(video, _LONGEST_SIDE)
    if 2 * max(video.shape[1:3]) <= _LONGEST_SIDE:
        return video.repeat(2, axis=1).repeat(2, axis=2)
    return video


def compress(video: np.ndarray, fps: float) -> tuple[bytes, str]:
    """A video (t, h, w, 3) with even sides as bytes and their MIME type: H.264, else WebP."""
    if "libx264" not in av.codecs_available:
        return _animated_picture(video, fps), "image/webp"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiled.mp4"
        with VideoWriter(path, fps=fps, crf=_CRF) as writer:
            for frame in video:
                writer.write(frame)
        return path.read_bytes(), "video/mp4"


def _animated_picture(video: np.ndarray, fps: float) -> bytes:
    first, *rest = (Image.fromarray(frame) for frame in video)
    data = io.BytesIO()
    settings = {"duration": round(1000 / fps), "loop": 0, "quality": 85}
    first.save(data, "WEBP", save_all=True, append_images=rest, **settings)
    return data.getvalue()


def player(
    video: TiledVideo,
    main: frozenset[str],
    notes: Mapping[str, str],
    sharp: frozenset[str] = frozenset(),
) -> Markup:
    """The panels of a tiled video with one set of controls.

    Args:
        video: from `tile_videos`.
        main: names of the panels in the first row; the others follow, smaller.
        notes: short text beside a panel's name.
        sharp: panels that are enlarged without smoothing.
    """
    if video.mime != "video/mp4":
        names = ", ".join(panel.name for panel in video.panels)
        rows = html.paragraph(f"row by row: {names}", faint=True)
        return html.join([rows, html.picture(video.data, names, video.mime)])
    groups = []
    for kind in ("main", "more"):
        panels = [panel for panel in video.panels if (panel.name in main) == (kind == "main")]
        inner = html.join(_panel(panel, notes, panel.name in sharp) for panel in panels)
        if panels:
            style = f"--count: {len(panels)}"
            groups.append(_GROUP.format(kind=kind, style=style, inner=inner))
    # A very short video is easier to see slowed down.
    slow = video.frames < 2 * video.fps
    speeds = ((0.25, "¼ speed", False), (0.5, "½ speed", slow), (1, "full speed", not slow))
    options = (
        Markup("<option value='{}'{}>{}</option>").format(
            rate, Markup(" selected" if chosen else ""), label
        )
        for rate, label, chosen in speeds
    )
    return _PLAYER.format(
        frames=video.frames,
        fps=f"{video.fps:.6g}",
        url=video.url,
        groups=html.join(groups),
        last=video.frames - 1,
        speeds=html.join(options),
    )


_GROUP = Markup("<div class='panels {kind}' style='{style}'>{inner}</div>")
_PLAYER = Markup(
    "<div class='player' data-frames='{frames}' data-fps='{fps}'>"
    "<video class='source' src='{url}' muted loop playsinline controls preload='auto'></video>"
    "<div class='groups'>{groups}</div>"
    "<div class='controls'><button type='button'>Play</button>"
    "<input type='range' min='0' max='{last}' value='0' aria-label='frame'>"
    "<output></output><select aria-label='speed'>{speeds}</select></div></div>"
)
_PANEL = Markup(
    "<figure><figcaption><span>{title}</span>{note}</figcaption>"
    "<canvas{kind} width='{width}' height='{height}' data-at='{at}' role='img' "
    "aria-label='{title}'></canvas></figure>"
)


def _panel(panel: Panel, notes: Mapping[str, str], sharp: bool) -> Markup:
    note = notes.get(panel.name)
    return _PANEL.format(
        title=panel.name,
        note=Markup("<span>{}</span>").format(note) if note else "",
        kind=Markup(" class='sharp'" if sharp else ""),
        width=panel.width,
        height=panel.height,
        at=f"{panel.left} {panel.top} {panel.width} {panel.height}",
    )


STYLE = """
.panels { display: grid; gap: 10px; }
.main { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.more { grid-template-columns: repeat(var(--count), minmax(0, 1fr)); margin-top: 12px; }
figure { display: flex; flex-direction: column; }
figure > :last-child { margin-top: auto; }
figcaption {
  display: flex; flex-wrap: wrap; justify-content: space-between; column-gap: 8px;
  font-size: 14px; line-height: 1.4; margin-bottom: 4px;
}
.more figcaption { font-size: 13px; }
figcaption span:last-child:not(:first-child) {
  color: var(--faint); font-variant-numeric: tabular-nums;
}
canvas { display: block; width: 100%; height: auto; border-radius: 3px; background: #000; }
canvas.sharp { image-rendering: pixelated; }
.source { max-width: 100%; }
.ready .source { position: absolute; width: 1px; height: 1px; opacity: 0; pointer-events: none; }
.player:not(.ready) .panels, .player:not(.ready) .controls { display: none; }
.player { position: relative; }
.controls { display: flex; align-items: center; gap: 12px; margin-top: 14px; font-size: 14px; }
.controls input { flex: 1; min-width: 60px; accent-color: var(--accent); }
.controls output {
  color: var(--faint); font-variant-numeric: tabular-nums; min-width: 9ch; text-align: right;
}
button, select {
  font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; padding: 5px 12px; cursor: pointer;
}
button { min-width: 76px; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media (max-width: 760px) {
  .ready .groups { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
  .ready .panels { display: contents; }
  .controls { flex-wrap: wrap; }
  .controls input { order: 5; flex-basis: 100%; }
}
"""

SCRIPT = """
for (const player of document.querySelectorAll(".player[data-frames]")) {
  const video = player.querySelector("video");
  const canvases = [...player.querySelectorAll("canvas")];
  const [button, slider] = [player.querySelector("button"), player.querySelector("input")];
  const [counter, speed] = [player.querySelector("output"), player.querySelector("select")];
  const frames = +player.dataset.frames, fps = +player.dataset.fps;
  let wanted = frames > 1 && !matchMedia("(prefers-reduced-motion: reduce)").matches;
  let visible = true, held = false;

  const draw = () => {
    for (const canvas of canvases) {
      const [x, y, w, h] = canvas.dataset.at.split(" ").map(Number);
      canvas.getContext("2d").drawImage(video, x, y, w, h, 0, 0, w, h);
    }
    const frame = Math.min(frames - 1, Math.floor(video.currentTime * fps + 0.01));
    if (!held) slider.value = frame;
    counter.value = `frame ${frame + 1} / ${frames}`;
  };
  const follow = () => {
    draw();
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(follow);
    else if (!video.paused) requestAnimationFrame(follow);
  };
  const settle = () => {
    button.textContent = wanted ? "Pause" : "Play";
    if (wanted && visible) video.play().catch(() => { wanted = false; settle(); });
    else video.pause();
  };
  const seek = (frame) => { video.currentTime = (frame + 0.5) / fps; };

  video.controls = false;
  player.classList.add("ready");
  if (frames === 1) player.querySelector(".controls").hidden = true;
  video.playbackRate = +speed.value;
  button.onclick = () => { wanted = !wanted; settle(); };
  speed.onchange = () => { video.playbackRate = +speed.value; };
  slider.oninput = () => { held = true; wanted = false; settle(); seek(+slider.value); };
  slider.onchange = () => { held = false; };
  for (const event of ["loadeddata", "seeked"]) video.addEventListener(event, draw);
  video.addEventListener("play", follow);
  if (video.readyState >= 2) draw();
  new IntersectionObserver(([entry]) => { visible = entry.isIntersecting; settle(); })
    .observe(player);
}
"""
