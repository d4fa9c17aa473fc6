"""Metrics of the task `generation` over the partial results of all blocks of samples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyratok_jax.data.world.reader import Faithfulness, Seen, compare
from pyratok_jax.evaluation.task import Metrics, Partial
from pyratok_jax.metrics import fvd
from pyratok_jax.metrics.code_usage import CodeUsage
from pyratok_jax.metrics.inception_score import SPLITS, inception_score

_FIELDS = tuple(field.name for field in dataclasses.fields(Faithfulness))
# With whose prompts the chance of faithfulness is measured: those of the next samples.
_SHIFTS = 20
_ROWS = 1024  # That are compared with all others at once.


def _joined(parts: Sequence[Partial], key: str) -> np.ndarray | None:
    found = [np.asarray(part[key]) for part in parts if key in part]
    return np.concatenate(found) if found else None


def distances(parts: Sequence[Partial], samples: int, biased: bool) -> Metrics:
    """Frechet distances of the samples, of the reconstructions, and of two halves of the real set.

    The last two are what to read the first by: no prior is better than its tokenizer, and a
    distance of as few clips as a half has its own size.
    """
    real, made = _joined(parts, "fvd_real"), _joined(parts, "fvd_made")
    if real is None or made is None or min(len(real), len(made)) < 2:
        return {"fvd": None}
    real = real[:samples]
    values = [
        fvd.frechet_distance(real, made[start : start + samples], biased=biased)
        for start in range(0, len(made), samples)
        if len(made[start : start + samples]) == len(real)
    ]
    found: Metrics = {
        "fvd": float(np.mean(values)) if values else None,
        "fvd_videos": [len(real), len(made)],
    }
    if len(values) > 1:
        found |= {"fvd_deviation": float(np.std(values)), "fvd_repeats": len(values)}
    if len(real) >= 4:
        halves = real[::2][: len(real) // 2], real[1::2]
        found["fvd_halves_of_real"] = fvd.frechet_distance(*halves, biased=biased)
    rebuilt = _joined(parts, "fvd_rebuilt")
    if rebuilt is not None and len(rebuilt) == len(real):
        found["fvd_reconstruction"] = fvd.frechet_distance(real, rebuilt, biased=biased)
    return found


def nearest(parts: Sequence[Partial], samples: int) -> Metrics:
    """How near each sample is to a real clip, beside how near real clips are to one another.

    Where the real clips are those of the training, a share that is much below 1 says that it has
    learned clips by heart. Distances are 1 - cosine of centred features. Of several repeats, whose
    real clips are the same ones, each has `samples` rows.
    """
    real, made = _joined(parts, "fvd_real"), _joined(parts, "fvd_made")
    if real is None or made is None or len(real) < 3:
        return {}
    real = real[:samples]
    names = [name for part in parts for name in part["records"]][: len(real)]
    _, own = np.unique(names, return_inverse=True)
    centre = real.mean(axis=0)

    def unit(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64) - centre
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    a, b = unit(real), unit(made)
    closest, distance = _closest(b, a)
    # Windows of one clip are no strangers to each other.
    _, apart = _closest(a, a, own)
    order = np.argsort(distance)[:8]
    apart = apart[np.isfinite(apart)]
    return {
        "nearest_real": float(np.median(distance)),
        "nearest_among_real": float(np.median(apart)) if len(apart) else None,
        "nearest_pairs": [
            {"sample": int(n), "clip": names[closest[n]], "distance": float(distance[n])}
            for n in order
        ],
    }


def _closest(
    asked: np.ndarray, among: np.ndarray, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Number and distance of the nearest of `among` for each, whose own group is left out.

    Part by part: of tens of thousands of clips the whole matrix takes tens of gigabytes.
    """
    closest, distance = [], []
    for start in range(0, len(asked), _ROWS):
        found = 1 - asked[start : start + _ROWS] @ among.T
        if own is not None:
            found[own[start : start + _ROWS, None] == own[None]] = np.inf
        closest.append(found.argmin(axis=1))
        distance.append(found.min(axis=1))
    return np.concatenate(closest), np.concatenate(distance)


def other_prompts(prompts: Sequence[str]) -> list[str]:
    """For each prompt the next one that says something else; "" where all say the same."""
    if len({*prompts} - {""}) < 2:
        return [""] * len(prompts)
    found, later = [""] * len(prompts), ["", ""]  # The next two different prompts, nearest first.
    # Round twice from the end, so that the last ones find the first ones.
    for n in range(2 * len(prompts) - 1, -1, -1):
        own = prompts[n % len(prompts)]
        found[n % len(prompts)] = later[0] if later[0] != own else later[1]
        if own and own != later[0]:
            later = [own, later[0]]
    return found


def prompts_worth(nats: Metrics) -> Metrics:
    """Rows of nats per token, of all tokens and of each level, by the prompt that the prior reads.

    A prior that heeds its prompts has fewest under a clip's own.
    """
    names = [name.removesuffix("_another") for name in nats if name.endswith("_another")]
    kept = [name for name in names if name == "nats" or name.startswith("nats_level_")]
    rows = [
        {
            "tokens": "all" if name == "nats" else name.removeprefix("nats_").replace("_", " "),
            "own prompt": nats[name],
            "none": nats[f"{name}_none"],
            "another's": nats[f"{name}_another"],
        }
        for name in kept
    ]
    return {"prompts_worth": rows} if rows else {}


def means_of(parts: Sequence[Partial], measures: Sequence[str]) -> Metrics:
    """Nats, and measures over time of samples and real clips, means over clips."""
    found: Metrics = {}
    nats = _joined(parts, "nats")
    if nats is not None:
        names = next(part["terms"] for part in parts if "terms" in part)
        found |= dict(zip(names, nats.mean(axis=0).tolist(), strict=True))
        found |= prompts_worth(found)
    rows = {name: _joined(parts, f"time_{name}") for name in ("made", "real")}
    if rows["made"] is None or rows["real"] is None:
        return found
    means = {
        name: values.mean(axis=0).tolist() for name, values in rows.items() if values is not None
    }
    found |= dict(zip(measures, means["made"], strict=True))
    differences = np.subtract(means["made"], means["real"]).tolist()
    found |= {f"{name}_difference": x for name, x in zip(measures, differences, strict=True)}
    found["over_time"] = [
        {"measure": name, "samples": means["made"][i], "real clips": means["real"][i]}
        for i, name in enumerate(measures)
    ]
    return found


def quality(parts: Sequence[Partial]) -> Metrics:
    """Inception score and CLIPSIM of samples, and of the real clips to read them by."""
    found: Metrics = {}
    for name, suffix in (("made", ""), ("real", "_real")):
        logits, likeness = _joined(parts, f"classes_{name}"), _joined(parts, f"clipsim_{name}")
        if logits is not None and len(logits) >= SPLITS:
            score, deviation = inception_score(logits)
            found |= {f"inception_score{suffix}": score,
                      f"inception_score{suffix}_deviation": deviation}  # fmt: skip
        if likeness is not None and len(likeness):
            found[f"clipsim{suffix}"] = float(likeness.mean())
    return found


def code_figures(parts: Sequence[Partial]) -> Metrics:
    """Entropy of the frequencies of codes, bits per token, of samples and of real clips by level.

    At a low temperature the samples' falls below the real clips'.
    """
    figures: dict[str, list[dict[str, Any]]] = {}
    for name in ("made", "real"):
        own = [part for part in parts if f"ids_{name}_0" in part]
        if not own:
            continue
        levels = sum(key.startswith(f"ids_{name}_") for key in own[0])
        usage = CodeUsage(levels, own[0]["vocabulary"])
        for part in own:
            usage.add([part[f"ids_{name}_{level}"] for level in range(levels)])
        figures[name] = usage.summary()
    if "made" not in figures:
        return {}
    rows = []
    for number, made in enumerate(figures["made"]):
        row = {"level": made["level"], "entropy": float(np.log2(made["perplexity"])),
               "distinct": made["distinct"]}  # fmt: skip
        if "real" in figures:
            real = figures["real"][number]
            row |= {"real entropy": float(np.log2(real["perplexity"])),
                    "real distinct": real["distinct"]}  # fmt: skip
        rows.append(row)
    return {"levels": rows}


def faithfulness(parts: Sequence[Partial], samples: int) -> Metrics:
    """Shares of samples that show what their world prompt says, and what chance is.

    Chance is what the same videos score under the prompts of other samples; of several repeats each
    has `samples` rows. What the tokenizer's reconstructions of the real clips show is what the
    prior could reach.
    """
    rows = [row for part in parts for row in part.get("world", ())]
    if not rows:
        return {}
    asked, seen = ([[Seen(*one) for one in row[key]] for row in rows] for key in ("asked", "seen"))
    scores = _scores(asked, seen)
    table = [_row("all", scores)]
    kinds = np.array([row["kind"] for row in rows])
    table += [_row(str(kind), scores[kinds == kind]) for kind in np.unique(kinds)]
    count = min(samples, len(rows))
    shifts = range(1, min(_SHIFTS, count - 1) + 1)
    others = [_scores(asked[shift:] + asked[:shift], seen) for shift in shifts]
    if others:
        chance = _row("chance (prompts of other samples)", np.concatenate(others))
        table.append(chance)
    found: Metrics = {"faithfulness": table, "faithful": table[0]["everything"]}
    rebuilt = [row for part in parts for row in part.get("world_rebuilt", ())]
    if rebuilt:
        pairs = ([[Seen(*one) for one in row[key]] for row in rebuilt] for key in ("asked", "seen"))
        table.append(_row("reconstructions of the real clips", _scores(*pairs)))
        found["faithful_reconstruction"] = table[-1]["everything"]
    if others:
        found["faithful_chance"] = chance["everything"]
    return found


def _scores(asked: Sequence[list[Seen]], seen: Sequence[list[Seen]]) -> np.ndarray:
    pairs = (compare(*pair) for pair in zip(asked, seen, strict=True))
    return np.array([dataclasses.astuple(one) for one in pairs], float)


def _row(name: str, scores: np.ndarray) -> dict[str, Any]:
    means = scores.mean(axis=0).tolist()
    return {"prompts": name, "number": len(scores)} | dict(zip(_FIELDS, means, strict=True))


def pitfalls(
    parts: Sequence[Partial],
    metrics: Mapping[str, Any],
    *,
    samples: int,
    repeats: int,
    interval: int,
    measured: bool,
) -> list[dict[str, Any]]:
    """What makes distances incomparable: of each check whether it holds, and what was found.

    Args:
        parts: all partial results.
        metrics: with those of `distances`.
        samples: how many the protocol compares, `repeats` times.
        repeats: of the protocol.
        interval: of frames of a real clip.
        measured: whether there is a distance at all.
    """
    rates = [part["rates"] for part in parts]
    rows = [_check("range", *_ranges(parts)), _check("interval", *intervals(rates, interval))]
    if not measured:
        rows.append(_check("frames", False, f"no FVD: its network takes {fvd.FRAMES} frames"))
    else:
        real, made = metrics.get("fvd_videos", (0, 0))
        rows.append(
            _check("equal numbers", made == real * repeats > 0,
                   f"{real} real clips, {made} samples")
        )  # fmt: skip
        whole = samples * repeats
        rows.append(_check("number of the protocol", made == whole, f"{made} of {whole}"))
        rows.append(_check("enough for 400 features", real >= 2048, f"{real} real clips"))
    records = [name for part in parts for name in part["records"]]
    again = len(records) - repeats * len(set(records))
    rows.append(_check("every real clip once", again <= 0, f"{max(again, 0)} come again"))
    return rows


def _check(name: str, holds: bool, found: str) -> dict[str, Any]:
    return {"check": name, "holds": "yes" if holds else "NO", "found": found}


def _ranges(parts: Sequence[Partial]) -> tuple[bool, str]:
    """Whether samples take up a range that is like the real clips'."""
    real, made = (
        [min(part["range"][i][0] for part in parts), max(part["range"][i][1] for part in parts)]
        for i in (0, 1)
    )
    spans = [max(high - low, 1) for low, high in (real, made)]
    # Frames in 0 .. 1 or -1 .. 1 that became uint8 have almost no range.
    return spans[1] > 0.25 * spans[0], f"real {real[0]}..{real[1]}, samples {made[0]}..{made[1]}"


def intervals(rates: Sequence[Sequence[float | None]], interval: int) -> tuple[bool, str]:
    """Whether neighbouring frames of samples and real clips are as far apart in time.

    Args:
        rates: frames per second of (a real clip, samples), None where it has none of its own.
        interval: of the frames of a real clip that are taken.
    """
    known = [rate / interval for rate, _ in rates if rate]
    made = next((fps for _, fps in rates if fps), None)
    if not known or made is None:
        return True, "drawn clips or none of a prior: no rate of their own"
    real = float(np.median(known))
    return abs(real / made - 1) < 0.05, f"real {real:.2f} frames/s, samples {made:.2f}"
