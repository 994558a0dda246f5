"""Wrong labels that were made on purpose, and what docs/study.md says of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab import planted
from lab.planted import KINDS, plant
from minseg.synthetic import write_slides


def test_planted_faults_are_what_they_are_called(tmp_path):
    write_slides(tmp_path / "a", 40, height=256, width=256, seed=5)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    faults = plant(tmp_path / "a", seed=1)
    assert [fault["kind"] for fault in faults.values()] == list(KINDS)
    for path in sorted((tmp_path / "b" / "masks").glob("*.png")):
        before = np.asarray(Image.open(path)) > 0
        after = np.asarray(Image.open(tmp_path / "a" / "masks" / path.name)) > 0
        fault = faults.get(path.stem)
        if fault is None:
            assert (before == after).all()
            continue
        kind, shift = fault["kind"], fault["shift"]
        assert (before != after).any()
        if kind == "shifted":
            assert abs(np.hypot(*shift) - 40) < 1
            back = np.roll(after, shift, (0, 1))
            assert not (back & ~before).any()  # what was moved out of the slide is gone
        if kind == "missing":
            assert not (after & ~before).any() and after.sum() <= before.sum() / 2
        if kind == "added":
            assert (after | before).sum() == after.sum() >= 1.5 * before.sum()


@pytest.mark.slow
def test_the_check_has_a_row_for_each_fault(tmp_path, monkeypatch, capsys):
    for name, value in {"SLIDES": 12, "SEEDS": 1, "OUT": tmp_path / "runs",
                        "RESULTS": tmp_path / "docs/results",
                        "OPTIONS": "--encoder efficientnet-lite0 --epochs 0.5"}.items():
        monkeypatch.setattr(planted, name, value)
    planted.main([])
    row, = json.loads((tmp_path / "docs/results/labels.json").read_text())["rows"]
    assert row["kind"] == "shifted" and row["of"] == 12 and 1 <= row["place"] <= 12
    assert (tmp_path / "docs/figures/labels.jpg").exists()
    assert "shifts are right to within" in capsys.readouterr().out


def test_the_page_tells_what_the_check_found():
    root = Path(__file__).parent.parent
    found = json.loads((root / "docs/results/labels.json").read_text())
    hits = sum(row["found"] for row in found["rows"])
    assert found["found_in_first_tenth"] == hits / len(found["rows"]) >= 0.9
    assert found["largest_error_of_shift"] <= 5
    text = " ".join((root / "docs/study.md").read_text("utf-8").split())
    assert (f"{hits} of {len(found['rows'])} are in the first tenth, and the shifts are named to "
            f"within {found['largest_error_of_shift']} pixel") in text
