"""A dataset written shard by shard, by several processes if need be, and resumable at each shard.

A finished shard leaves a report beside it, which is written last: a shard with a report is
complete. A later run writes only the shards that have none. Whoever finds all reports there
describes the dataset, from the reports alone, so that it does not matter who comes last.

    OUTPUT/NAME-train.array_record-00003-of-00016    the records
    OUTPUT/reports/00003.json                        the report, plain JSON
    OUTPUT/rejected.jsonl                            what was left out, with the reasons
    OUTPUT/dataset_info.json, features.json          TFDS's metadata
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from etils import epath

from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.atomic import publish, write_json, write_text
from pyratok_jax.io.documents import read_json
from pyratok_jax.io.remote import check_writable, open_path
from pyratok_jax.io.shards import shard_name, shard_number, write_tfds_metadata

REPORTS, REJECTED, HASHES = "reports", "rejected.jsonl", "sha256"
Report = dict[str, Json]


class Rejection(TypedDict):
    """A clip that was left out."""

    id: str
    path: str
    reason: str


@dataclass(frozen=True)
class ShardedJob:
    """The shards of one dataset and how far they are.

    Attributes:
        output: the dataset's folder, local or remote.
        dataset: the name in the shards' names.
        format: one of `shards.FORMATS`.
        shards: how many.
        companions: suffixes of further files that belong to every shard's report.
    """

    output: str
    dataset: str
    format: str
    shards: int
    companions: tuple[str, ...] = ()

    def shard_name(self, number: int) -> str:
        """File name of a shard."""
        return shard_name(self.dataset, self.format, number, self.shards)

    def shard_path(self, number: int) -> epath.Path:
        """Where a shard belongs."""
        return epath.Path(self.output) / self.shard_name(number)

    def report_path(self, number: int, suffix: str = "json") -> epath.Path:
        """Where a shard's report (json) or a companion of it belongs."""
        return epath.Path(self.output) / REPORTS / f"{number:05d}.{suffix}"

    def finished_report(self, number: int, key: str | None = None) -> Report | None:
        """The report of a finished shard; None when the shard has to be written (again).

        Args:
            number: of the shard.
            key: what it has to be made from, as it was given to `publish`.
        """
        try:
            report = read_json(self.report_path(number))
            if not isinstance(report, dict) or not isinstance(report.get("rejected"), list):
                return None
            size = self.shard_path(number).stat().length
            whole = size == report.get("file_bytes", size) and report.get("key") == key
        except (OSError, UserError):
            return None
        there = all(self.report_path(number, suffix).exists() for suffix in self.companions)
        return report if whole and there else None

    def is_intact(self, number: int, key: str | None = None) -> bool:
        """Whether a finished shard and its companions hold the bytes that were published.

        They are read whole. Reports of old name no hashes; their shards count as intact.

        Args:
            number: of the shard.
            key: as for `finished_report`.
        """
        report = self.finished_report(number, key)
        hashes = (report or {}).get(HASHES)
        if not isinstance(hashes, dict):
            return True
        places = {"": self.shard_path(number)}
        places |= {suffix: self.report_path(number, suffix) for suffix in self.companions}
        try:
            return all(hashes.get(suffix) == _sha256(path) for suffix, path in places.items())
        except OSError:
            return False

    def withdraw(self, number: int) -> None:
        """Remove a shard's report, so that the shard is written again."""
        self.report_path(number).unlink(missing_ok=True)

    def is_done(self, number: int, key: str | None = None) -> bool:
        """Whether a shard is complete, and made from what `key` stands for."""
        return self.finished_report(number, key) is not None

    def publish(
        self,
        number: int,
        local: Path,
        report: Mapping[str, Json],
        *,
        key: str | None = None,
        companions: Mapping[str, Path] | None = None,
    ) -> Report:
        """Put a shard in its place, then its companions, and its report last, which is returned.

        Args:
            number: of the shard.
            local: the finished file, which is moved.
            report: plain JSON values.
            key: names what the shard is made from, so that a changed input is not taken as done.
            companions: local files by suffix; the suffixes of `self.companions`.
        """
        whole = dict(report) | {"file_bytes": local.stat().st_size}
        if key is not None:
            whole["key"] = key
        files = {"": local, **(companions or {})}
        whole[HASHES] = {name: _sha256(epath.Path(file)) for name, file in files.items()}
        publish(local, self.shard_path(number))
        for suffix, file in (companions or {}).items():
            publish(file, self.report_path(number, suffix))
        write_json(self.report_path(number), whole)
        return whole

    def reports(self, keys: Iterable[str | None] | None = None) -> list[Report] | None:
        """The reports of all shards; None while some are missing."""
        wanted = [None] * self.shards if keys is None else list(keys)
        found = [self.finished_report(number, key) for number, key in enumerate(wanted)]
        whole = [report for report in found if report is not None]
        return whole if len(whole) == self.shards else None

    def write_rejected(self, reports: Iterable[Report]) -> list[Rejection]:
        """Gather what the shards have left out (`rejected` of each report) in one file."""
        rejected = [entry for report in reports for entry in report["rejected"]]
        lines = "".join(json.dumps(entry) + "\n" for entry in rejected)
        write_text(epath.Path(self.output) / REJECTED, lines)
        return rejected

    def write_metadata(
        self, features: Mapping[str, Json], lengths: list[int], size: int, description: str
    ) -> None:
        """Write TFDS's metadata, see `shards.write_tfds_metadata`."""
        write_tfds_metadata(
            epath.Path(self.output), dataset=self.dataset, kind=self.format, features=features,
            lengths=lengths, size=size, description=description,
        )  # fmt: skip


def _sha256(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def recorded_hash(shard: epath.Path, size: int) -> str | None:
    """SHA-256 of a shard as the report beside it says; None where none says it of that size."""
    numbered = shard_number(shard.name)
    if numbered is None:
        return None
    try:
        report = read_json(shard.parent / REPORTS / f"{numbered[1]:05d}.json")
    except (OSError, UserError):
        return None
    if not isinstance(report, dict) or report.get("file_bytes") != size:
        return None
    hashes = report.get(HASHES)
    found = hashes.get("") if isinstance(hashes, dict) else None
    return found if isinstance(found, str) else None


def check_output(output: str) -> epath.Path:
    """The folder that a command is to write to, which need not exist yet.

    Raises:
        UserError: it is a file, or on storage that cannot be reached.
    """
    path = open_path(output)
    if path.exists() and not path.is_dir():
        raise UserError(f"--output {output} is a file; give a folder")
    check_writable(path, "--output")
    return path
