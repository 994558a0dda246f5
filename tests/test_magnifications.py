"""What --microns brings: the data sets of the comparison, and its sums."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from lab import magnifications
from lab.magnifications import ARMS, COARSE, FINE, make, summarize
from minseg.files.slides import open_slide

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(magnifications, "SLIDES", 8)
    monkeypatch.setattr(magnifications, "write_slides",
                        partial(magnifications.write_slides, height=256, width=256))


def test_every_second_patient_is_seen_by_a_coarser_scanner(few, tmp_path):
    mixed, fine = make(tmp_path / "mixed", True), make(tmp_path / "fine", False)
    for number in range(8):
        one, other = (open_slide(folder / f"images/slide{number:02d}.tif")
                      for folder in (mixed, fine))
        coarse = number in (2, 3, 6, 7)  # two slides a patient
        assert one.microns == pytest.approx(COARSE if coarse else FINE, rel=1e-3)
        assert other.microns == pytest.approx(FINE, rel=1e-3)
        assert abs(one.height * one.microns - other.height * other.microns) < COARSE
        masks = [np.asarray(Image.open(folder / f"masks/slide{number:02d}.png"))
                 for folder in (mixed, fine)]
        assert masks[0].shape == (one.height, one.width)
        assert abs((masks[0] > 0).mean() - (masks[1] > 0).mean()) < 0.02
    assert (mixed / "groups.csv").read_text() == (fine / "groups.csv").read_text()
    assert make(tmp_path / "mixed", True) == mixed  # it is not drawn again


def test_a_row_has_the_dice_of_each_magnification_and_of_all():
    groups = [f"p{i}" for i in range(8)]  # even ones are fine

    def levels(dice):
        return [[round(100 * dice), 100]] * 63

    lines = {}
    for arm, coarse in zip(ARMS, (0.8, 0.5, 0.6, 0.8)):
        for seed in range(2):
            for fold in range(2):
                lines[arm, seed, fold] = {"levels": {
                    group: levels(coarse if i % 2 else 0.9)
                    for i, group in enumerate(groups) if i // 2 % 2 == fold}}
    first, scaled, *_ = summarize(lines, 2)
    assert first["arm"] == "--microns 1" and first["all"]["difference"] == 0
    assert first["fine"]["dice"] == pytest.approx(0.9) == scaled["fine"]["dice"]
    assert scaled["coarse"]["difference"] == pytest.approx(-0.3)
    assert scaled["all"]["difference"] == pytest.approx(-0.15)
    assert scaled["each_seed"] == [0.7, 0.7]


@pytest.mark.slow
def test_it_trains_scores_and_goes_on_where_it_was_stopped(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(magnifications.harness, "BASELINE", "--encoder efficientnet-lite0")
    options = ["--seeds", "1", "--steps", "1", "--batch", "1", "--device", "cpu", "--out",
               str(tmp_path / "r"), "--docs", str(tmp_path / "docs")]
    magnifications.main(options)
    found = json.loads((tmp_path / "docs/results/magnifications.json").read_text())
    assert [row["arm"] for row in found["rows"]] == list(ARMS) and found["steps"] == 1
    for row in found["rows"]:
        assert all(0 <= row[part]["dice"] <= 1 for part in ("fine", "coarse", "all"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("result.json")}
    assert len(before) == 2 * len(ARMS)
    magnifications.main(options)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(SystemExit):
        magnifications.main([*options, "--scale", "2"])
    assert "--scale" in capsys.readouterr().err
