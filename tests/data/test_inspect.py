import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyratok_jax.data.inspect import main
from pyratok_jax.errors import UserError
from tests.data.test_prepare import prepare

ROOT = Path(__file__).parents[2]


def test_summary_sheet_and_report(clips_folder, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for file in clips_folder.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "bad.mp4").write_text("no video")
    (folder / "clip7.txt").unlink()
    Image.new("RGB", (32, 32), (0, 0, 255)).save(folder / "blue.png")
    out = tmp_path / "out"
    main([str(folder), "--output", str(out), "--buckets", "5x24x32", "5x16x16"])
    s = json.loads((out / "summary.json").read_text())
    assert (s["clips"], s["readable"], s["broken"], s["still_images"]) == (10, 9, 1, 1)
    assert s["captions_missing"] == 3 and s["caption_words"]["median"] == 4
    assert s["resolutions"] == {"64x48": 8, "32x32": 1}
    assert s["seconds_per_clip"]["median"] == pytest.approx(1.6)
    assert s["buckets"] == {"5x24x32": 8, "5x16x16": 1}
    assert s["broken_files"][0]["path"].endswith("bad.mp4")
    sheet = np.asarray(Image.open(out / "contact_sheet.png"))
    assert (np.abs(sheet.astype(int) - [0, 0, 255]).max(-1) < 8).mean() > 0.01
    page = (out / "report.html").read_text()
    assert "data:image/png;base64," in page and "bad.mp4" in page and "http" not in page
    printed = capsys.readouterr().out
    assert "bad.mp4" in printed and "contact_sheet.png" in printed


def test_inspects_shards(clips_folder, tmp_path):
    shards = prepare(clips_folder, tmp_path / "s", "--store", "frames")
    main([str(shards), "--output", str(tmp_path / "o"), "--buckets", "5x24x32"])
    s = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert s["clips"] == s["readable"] == 16 and s["hours"] == pytest.approx(12.8 / 3600, rel=0.01)


def test_bad_source_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "pyratok_jax.data.inspect", "/no/such/place"]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )  # fmt: skip
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "/no/such/place" in result.stderr and not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="is a file"):
        (tmp_path / "f").write_text("")
        main(["builtin:demo", "--output", str(tmp_path / "f")])


@pytest.mark.parametrize("wrong", [("limit", -1), ("pictures", -3), ("threads", 0)])
def test_numbers_below_what_is_possible_are_refused(clips_folder, tmp_path, wrong):
    name, value = wrong
    with pytest.raises(UserError, match=f"--{name} {value}: expected at least"):
        main([str(clips_folder), "--output", str(tmp_path / "o"), f"--{name}", str(value)])
    assert not (tmp_path / "o").exists()
