"""A resumed run knows its input: by what it holds, not by how it is named."""

import os
import pickle
import shutil

import pytest

from pyratok_jax.data.clip_shards import plan_shards, write_shard
from pyratok_jax.data.options import PrepareOptions
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.errors import UserError
from pyratok_jax.tokens.plan import source_fingerprint
from tests.data.synthetic import numbered_frames, write_video
from tests.tokens.conftest import plan_of
from tests.tokens.tiny import PixelTokenizer


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    for name in ("a", "b"):
        write_video(folder / f"{name}.mp4", numbered_frames(5, 32, 32))
        (folder / f"{name}.txt").write_text(f"{name} cat")
    return folder


@pytest.fixture
def videos(original, tmp_path):
    return shutil.copytree(original, tmp_path / "videos")


def replace_by_bytes_of_that_size(file):
    """As a video that happens to have the same size, made a minute later."""
    before = file.stat()
    file.write_bytes(os.urandom(before.st_size))
    os.utime(file, (before.st_atime, before.st_mtime + 60))


def fingerprint(folder):
    return source_fingerprint(load_source(str(folder)))


def keys(folder, output="out"):
    shards = plan_shards(load_source(str(folder)), str(output), PrepareOptions(shards=2))
    return [shard.key() for shard in shards]


@pytest.mark.parametrize("hashed", [fingerprint, keys])
def test_folders_are_known_by_what_they_hold(videos, tmp_path, monkeypatch, hashed):
    known = hashed(videos)
    monkeypatch.chdir(tmp_path)
    assert hashed("videos") == hashed("./videos") == hashed(os.path.relpath(videos)) == known
    shutil.copytree("videos", "same")
    assert hashed("same") == known
    replace_by_bytes_of_that_size(videos / "b.mp4")
    assert hashed("videos") != known == hashed("same")
    write_video(tmp_path / "same" / "b.mp4", numbered_frames(4, 32, 32))
    assert hashed("same") not in (known, hashed("videos"))


def test_only_the_shard_of_a_replaced_file_is_written_again(videos, tmp_path):
    known = keys(videos)
    numbers = [len(s.records) for s in plan_shards(load_source(str(videos)), "x",
                                                   PrepareOptions(shards=2))]  # fmt: skip
    replace_by_bytes_of_that_size(videos / "a.mp4")
    changed = [one != other for one, other in zip(known, keys(videos), strict=True)]
    assert sum(changed) == 1 and numbers[changed.index(True)] >= 1


def test_a_key_stays_while_a_run_goes_on(videos):
    (shard,) = plan_shards(load_source(str(videos)), "out", PrepareOptions(shards=1))
    known = shard.key()
    replace_by_bytes_of_that_size(videos / "a.mp4")
    assert pickle.loads(pickle.dumps(shard)).key() == shard.key() == known


def test_shards_are_known_by_the_hashes_in_their_reports(videos, tmp_path):
    """Two sets of equal names, sizes and times, of which one has another caption."""

    def prepared(output):
        output.mkdir()
        options = PrepareOptions(shards=1, time_limit=0.0)
        for shard in plan_shards(load_source(str(videos)), str(output), options):
            write_shard(shard)
        (file,) = output.glob("clips-train*")
        os.utime(file, (1e9, 1e9))
        return file

    first = prepared(tmp_path / "first")
    (videos / "a.txt").write_text("a dog")
    second = prepared(tmp_path / "second")
    assert first.stat().st_size == second.stat().st_size
    known = fingerprint(first.parent)
    assert fingerprint(second.parent) != known
    assert keys(first.parent) != keys(second.parent)
    os.utime(first, (2e9, 2e9))
    assert fingerprint(first.parent) == known
    # Without reports, and where they are of another file, sizes and times are all there is.
    (first.parent / "reports" / "00000.json").write_text("{")
    changed = fingerprint(first.parent)
    os.utime(first, (1e9, 1e9))
    assert fingerprint(first.parent) != changed


@pytest.mark.parametrize("paths", [("nowhere/a.mp4", "nowhere/c.mp4"), ("a\0.mp4", "b\0.mp4"),
                                   ("gs://nowhere/a.mp4", "gs://nowhere/c.mp4")])  # fmt: skip
def test_what_cannot_be_looked_at_is_known_by_its_name(paths):
    hashes = [source_fingerprint([ClipRecord("a", path)]) for path in (*paths, paths[0])]
    assert hashes[0] == hashes[2] != hashes[1]


def test_an_export_resumes_by_another_path_and_refuses_replaced_files(
    videos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)

    def plan(source):
        return plan_of(PixelTokenizer(), load_source(str(source)), tmp_path / "tokens")

    plan("videos").write_or_compare()
    plan(videos).write_or_compare()
    replace_by_bytes_of_that_size(videos / "b.mp4")
    with pytest.raises(UserError, match="differs in the list of clips or their files"):
        plan(videos).write_or_compare()
