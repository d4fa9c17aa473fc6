"""The stylesheet and the script of report pages; a page holds both and needs nothing else."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #faf9f6; --card: #ffffff; --ink: #1c2024; --faint: #656d76; --line: #dedcd5;
  --accent: #0b6e7a; --tint: #e9f3f3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131518; --card: #1a1d21; --ink: #e7e8e9; --faint: #9aa3ac; --line: #2d3238;
    --accent: #56c2cd; --tint: #17292c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 52px 0 14px; }
h3 { font-size: 16px; margin: 0; }
p { margin: 0 0 12px; max-width: 75ch; }
.faint { color: var(--faint); }
.small { font-size: 14px; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px;
  margin: 26px 0 20px;
}
.tile {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 14px 16px; min-width: 0;
}
.tile b { font-size: 28px; font-weight: 650; letter-spacing: -0.02em; }
.tile:first-child b { color: var(--accent); }
.tile span { color: var(--faint); margin-left: 5px; font-size: 14px; }
.tile div { color: var(--faint); font-size: 14px; line-height: 1.35; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table {
  border-collapse: collapse; width: 100%; background: var(--card); font-size: 14px;
  font-variant-numeric: tabular-nums;
}
th, td {
  padding: 9px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line);
}
thead th { color: var(--faint); font-weight: 500; }
tbody th { text-align: left; font-weight: 500; }
tbody tr:last-child > * { border-bottom: 0; }
.model > * { background: var(--tint); font-weight: 650; }
.clip {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 18px;
  margin: 0 0 20px;
}
.clip header { margin-bottom: 14px; }
.clip header p { margin: 2px 0 0; }
.panels { display: grid; gap: 10px; }
.main { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.more { grid-template-columns: repeat(var(--count), minmax(0, 1fr)); margin-top: 12px; }
figure { margin: 0; min-width: 0; display: flex; flex-direction: column; }
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
.film:not(.ready) .panels, .film:not(.ready) .controls { display: none; }
.film { position: relative; }
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
.legend { display: flex; align-items: center; gap: 8px; font-size: 14px; color: var(--faint); }
.legend i { display: block; width: 160px; height: 10px; border-radius: 2px; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 14px; }
.curve, .chart {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px;
}
.curve figcaption { font-weight: 550; overflow-wrap: anywhere; }
.curve figcaption span:last-child { font-weight: 400; }
.curve svg, .chart svg { display: block; width: 100%; height: auto; }
.chart { max-width: 720px; }
details { margin-top: 14px; }
summary { cursor: pointer; }
dl { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); font-size: 14px; }
dt, dd {
  margin: 0; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere;
}
dt { color: var(--faint); }
footer { margin-top: 52px; color: var(--faint); font-size: 14px; }
@media (max-width: 760px) {
  main { padding: 24px 14px 48px; }
  h1 { font-size: 24px; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tile:first-child { grid-column: 1 / -1; }
  .tile b { font-size: 24px; }
  .clip { padding: 12px; }
  .ready .groups { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
  .ready .panels { display: contents; }
  .curves { grid-template-columns: 1fr; }
  .controls { flex-wrap: wrap; }
  .controls input { order: 5; flex-basis: 100%; }
}
"""

SCRIPT = """
for (const film of document.querySelectorAll(".film[data-frames]")) {
  const video = film.querySelector("video");
  const canvases = [...film.querySelectorAll("canvas")];
  const [button, slider] = [film.querySelector("button"), film.querySelector("input")];
  const [counter, speed] = [film.querySelector("output"), film.querySelector("select")];
  const frames = +film.dataset.frames, fps = +film.dataset.fps;
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
  film.classList.add("ready");
  if (frames === 1) film.querySelector(".controls").hidden = true;
  video.playbackRate = +speed.value;
  button.onclick = () => { wanted = !wanted; settle(); };
  speed.onchange = () => { video.playbackRate = +speed.value; };
  slider.oninput = () => { held = true; wanted = false; settle(); seek(+slider.value); };
  slider.onchange = () => { held = false; };
  for (const event of ["loadeddata", "seeked"]) video.addEventListener(event, draw);
  video.addEventListener("play", follow);
  if (video.readyState >= 2) draw();
  new IntersectionObserver(([entry]) => { visible = entry.isIntersecting; settle(); })
    .observe(film);
}
"""
