"""Published numbers of other methods and of the paper, to stand beside a result.

None of them was measured by this project, and every print-out says so. Where a paper's table
names no rate, none is given.
"""

import dataclasses

MARK = "published, not measured here"


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
    Peer("Cosmos-DV 4x8x8", "TokenBench", {"PSNR": 35.14, "SSIM": 0.887, "bpp": 0.062}),
    Peer("Cosmos-DV 8x8x8", "TokenBench", {"PSNR": 34.75, "SSIM": 0.872, "bpp": 0.031}),
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

PEERS: dict[str, tuple[Peer, ...]] = {
    "reconstruction": RECONSTRUCTION,
    "compression": COMPRESSION,
    "segmentation": SEGMENTATION,
    "localization": LOCALIZATION,
    "classification": CLASSIFICATION,
    "vqa": VQA,
    "codebook": CODEBOOK,
}


def peer_table(task: str) -> str:
    """The peers of a task as a markdown table; empty where none is published."""
    peers = PEERS.get(task, ())
    if not peers:
        return ""
    titles = list(dict.fromkeys(title for peer in peers for title in peer.values))
    head = ["method", "benchmark", *titles, "note"]
    lines = [f"Peers ({MARK}):", "", _row(head), _row(["---"] * len(head))]
    for peer in peers:
        values = [f"{peer.values[title]:g}" if title in peer.values else "" for title in titles]
        lines.append(_row([peer.method, peer.benchmark, *values, peer.note]))
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
