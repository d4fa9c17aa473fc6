"""Results beside each other: of this run, of other runs of the same protocol, and published ones.

None of the published numbers was measured by this project, and every table says so. Where a paper's
table names no rate, none is given.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyratok_jax.errors import UserError, short
from pyratok_jax.evaluation.task import Task
from pyratok_jax.io import Json
from pyratok_jax.io.documents import read_json

MARK = "published, not measured here"
MEASURED = "measured here"

# Head and rows of a table, as text.
Cells = tuple[list[str], list[list[str]]]
_SAME = ("task", "protocol", "items_hash")  # of results that can be compared in one table


@dataclasses.dataclass(frozen=True)
class Peer:
    """One published row: values by the metric's title, and what to know to compare it."""

    method: str
    benchmark: str
    values: dict[str, float]
    note: str = ""


def _reconstruction(rows: dict[str, tuple[float, ...]]) -> tuple[Peer, ...]:
    titles = ("PSNR", "SSIM", "LPIPS")
    peers = []
    for method, numbers in rows.items():
        for benchmark, values in (("WebVid-10M val", numbers[:3]), ("COCO val", numbers[3:])):
            peers.append(Peer(method, benchmark, dict(zip(titles, values, strict=True))))
    return tuple(peers)


_PYRATOK = "PyraTok (paper)"

# Its code lets squared differences wrap around at 256, see `metrics.image.tokenbench_psnr`.
_TOKENBENCH_NOTE = "PSNR of 8-bit differences that wrap around"
# The leaderboard of NVlabs/TokenBench: PSNR, SSIM, rFVD, and the rate of discrete tokens.
_TOKENBENCH = tuple(
    Peer(
        method,
        "TokenBench",
        dict(zip(("PSNR", "SSIM", "rFVD", "bpp"), values, strict=False)),
        _TOKENBENCH_NOTE,
    )
    for method, values in {
        "CogVideoX 4x8x8": (33.149, 0.908, 6.970),
        "OmniTokenizer-CV 4x8x8": (29.705, 0.830, 35.867),
        "Cosmos-CV 4x8x8": (37.270, 0.928, 6.849),
        "Cosmos-CV 8x8x8": (36.856, 0.917, 11.624),
        "Cosmos-CV 8x16x16": (35.158, 0.875, 43.085),
        "VideoGPT 4x4x4": (35.119, 0.914, 13.855),
        "OmniTokenizer-DV 4x8x8": (30.152, 0.827, 53.553),
        "Cosmos-DV 4x8x8": (35.137, 0.887, 19.672, 0.062),
        "Cosmos-DV 8x8x8": (34.746, 0.872, 43.865, 0.031),
        "Cosmos-DV 8x16x16": (33.718, 0.828, 113.481),
    }.items()
)

RECONSTRUCTION = (
    *_reconstruction(
        {
            "CogVideoX": (29.92, 0.811, 0.141, 30.11, 0.833, 0.111),
            "3D-MBQ-VAE": (33.00, 0.848, 0.092, 32.11, 0.858, 0.108),
            "Wan 2.2": (32.94, 0.841, 0.101, 33.43, 0.861, 0.103),
            "OmniTokenizer": (32.03, 0.812, 0.152, 32.09, 0.845, 0.141),
            "LARP": (33.03, 0.851, 0.091, 34.26, 0.853, 0.089),
            "VideoVAE+": (29.17, 0.812, 0.201, 31.45, 0.832, 0.162),
            "TokLIP": (31.28, 0.837, 0.152, 33.42, 0.849, 0.105),
            "SweetTok": (32.32, 0.842, 0.137, 32.78, 0.847, 0.123),
            _PYRATOK: (35.72, 0.879, 0.066, 36.05, 0.885, 0.071),
        }
    ),
    *_TOKENBENCH,
    Peer(
        "VidTok FSQ-262144 4x8x8",
        "MCL-JCV",
        {"PSNR": 29.82, "SSIM": 0.867, "LPIPS": 0.106},
        "17 frames of 256x256",
    ),
)
COMPRESSION = (
    Peer(_PYRATOK, "MCL-JCV", {"PSNR": 29.82, "SSIM": 0.942, "LPIPS": 0.068, "bpp": 0.034}),
)
SEGMENTATION = (
    Peer(_PYRATOK, "YouTube-VIS 2021", {"mAP": 24.54, "J": 66.56}, "zero-shot"),
    Peer(_PYRATOK, "OVIS", {"mAP": 8.9, "J": 49.44}, "zero-shot"),
)
LOCALIZATION = (
    Peer(_PYRATOK, "THUMOS14", {"avg mAP": 33.17}, "zero-shot, IoU .3:.1:.7"),
    Peer(_PYRATOK, "ActivityNet v1.3", {"avg mAP": 29.11}, "zero-shot, IoU .5:.05:.95"),
)
CLASSIFICATION = (
    Peer(_PYRATOK, "Kinetics-400", {"top-1": 78.43}, "zero-shot"),
    Peer(_PYRATOK, "Kinetics-600", {"top-1": 77.11}, "zero-shot"),
    Peer(_PYRATOK, "Kinetics-700", {"top-1": 74.08}, "zero-shot"),
)
VQA = (Peer(_PYRATOK, "MVBench", {"accuracy": 86.03}),)
CODEBOOK = (
    Peer(_PYRATOK, "240p", {"utilisation %": 55.0}),
    Peer(_PYRATOK, "4320p", {"utilisation %": 97.0}),
)

# Class-conditional UCF-101: as reported, by protocols that differ in N, split and frames.
_GENERATION = {
    "TATS 321M": (332, "4,096 tokens"),
    "OmniTokenizer 650M": (191, "5,120 tokens"),
    "MAGVIT-L 306M": (76, "1,024 tokens"),
    "MAGVIT-v2 307M": (58, "1,280 tokens"),
    "LARP-L 343M": (107, "1,024 tokens"),
    "LARP-L-Long 343M": (102, "1,024 tokens"),
    "LARP 632M": (57, "1,024 tokens"),
    "NBP 3B": (55.3, "1,280 tokens"),
    "VideoAR-XL 2.0B": (88.6, ""),
    "AdapTok 633M": (67, ""),
    "SweetTok 1.9B": (65, "1,280 tokens"),
    "PyraTok 2.3B (paper)": (51, "1,024 tokens, a grid that it does not state"),
}
GENERATION = (
    *(
        Peer(method, "UCF-101 classes", {"FVD": value}, f"protocols differ; {note}".rstrip("; "))
        for method, (value, note) in _GENERATION.items()
    ),
    *(
        Peer(method, "WebVid-10M", {"FVD": value}, "its TC is defined nowhere and is left out")
        for method, value in {
            "MotionAura + PyraTok (paper)": 365,
            "Open-MAGVIT2 + PyraTok (paper)": 411,
            "OmniGen2 + PyraTok (paper)": 377,
        }.items()
    ),
)

PEERS: dict[str, tuple[Peer, ...]] = {
    "reconstruction": RECONSTRUCTION,
    "compression": COMPRESSION,
    "segmentation": SEGMENTATION,
    "localization": LOCALIZATION,
    "classification": CLASSIFICATION,
    "vqa": VQA,
    "codebook": CODEBOOK,
    "generation": GENERATION,
}


def other_results(folders: Sequence[str], results: Mapping[str, Json]) -> list[dict[str, Json]]:
    """results.json of other runs, that can be compared with `results`.

    Raises:
        UserError: no results, or of another task, protocol, or other clips.
    """
    found = []
    for folder in folders:
        other = read_json(Path(folder) / "results.json", dict[str, Json])
        missing = [key for key in (*_SAME, "method", "metrics") if key not in other]
        if missing:
            raise UserError(f"--beside {folder}: its results have no {missing[0]}; evaluate again")
        if not isinstance(other["metrics"], Mapping):
            raise UserError(f"--beside {folder}: its metrics are no figures; evaluate again")
        for key in _SAME:
            if other[key] != results[key]:
                raise UserError(f"--beside {folder}: {_difference(key, other[key], results[key])}")
        found.append(other)
    return found


def _difference(key: str, there: Json, here: Json) -> str:
    if key == "items_hash":
        return "other clips were evaluated there"
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        key, there, here = next(
            (f"{key}'s {name}", there.get(name), here.get(name))
            for name in sorted({*there, *here})
            if there.get(name) != here.get(name)
        )
    return f"another {key}: {short(str(there), 80)} there, {short(str(here), 80)} here"


def comparison(
    task: Task, results: Mapping[str, Json], others: Sequence[Mapping[str, Json]] = ()
) -> Cells:
    """One table: this run, others of the same protocol, published figures, which are marked.

    No rows where there is nothing to compare with.
    """
    peers = PEERS.get(task.name, ())
    columns = task.row_columns()
    own = [title for _, title, _ in columns]
    known = [title for peer in peers for title in peer.values]
    titles = [*dict.fromkeys(t for t in (*own, *known) if t != "bpp"), "bpp"]
    if not peers and not others:
        return ["method", "data", *titles, "source"], []
    rows = []
    for one in (results, *others):
        values = {
            title: number(one["metrics"].get(key), digits) for key, title, digits in columns
        } | {"bpp": number(one.get("bpp"), 4)}
        cells = [values.get(title, "") for title in titles]
        rows.append([str(one["method"]), str(one.get("data", "")), *cells, MEASURED])
    for peer in peers:
        cells = [f"{peer.values[title]:g}" if title in peer.values else "" for title in titles]
        source = f"{MARK}; {peer.note}" if peer.note else MARK
        rows.append([peer.method, peer.benchmark, *cells, source])
    return ["method", "data", *titles, "source"], rows


def number(value: object, digits: int) -> str:
    """A figure of a table; a dash where there is none."""
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "-"
