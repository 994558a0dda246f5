import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from minseg.data.slides import Item
from minseg.data.tiles import LabelledSlide
from minseg.run.scores import save_fold, save_log, score, summarize


@pytest.fixture
def slides(tmp_path):
    """Three images of two groups; the last has nothing to find."""
    generator, found = np.random.default_rng(0), []
    for i, group in enumerate("aab"):
        paths = [tmp_path / f"{kind}{i}.png" for kind in ("image", "mask")]
        Image.fromarray(generator.integers(0, 255, (40, 50, 3), np.uint8)).save(paths[0])
        mask = np.zeros((40, 50), np.uint8)
        mask[5:20, 5 : 5 + 10 * (2 - i)] = 255
        Image.fromarray(mask).save(paths[1])
        found.append(LabelledSlide(Item(f"id{i}", *paths, group)))
    return found


def results_of(slides, level):
    return [torch.from_numpy(slide.mask * np.uint8(level)) for slide in slides]


def test_a_fold_alone_is_cut_at_a_half_whatever_would_have_suited_it(slides, tmp_path, capsys):
    (tmp_path / "fold0").mkdir()
    threshold = save_fold(tmp_path / "fold0", slides, results_of(slides, 100))
    found = json.loads((tmp_path / "fold0" / "score.json").read_text())
    assert found["thresholds"] == [0.5] and found["pooled_dice"] == 0
    assert found["images"] == {"id0": 0, "id1": 0, "id2": 1}
    assert found["groups"] == {"a": 0, "b": 1} and found["worst_group"] == "a"
    assert threshold == found["best_threshold"] == pytest.approx(99.5 / 255, abs=1e-4)
    kept = tifffile.imread(tmp_path / "fold0" / "probabilities" / "id0.tiff")
    assert (kept == slides[0].mask * 100).all()
    assert Image.open(tmp_path / "fold0" / "preview.png").width > 400
    assert "worst a" in capsys.readouterr().out


def test_where_nothing_is_positive_no_threshold_is_learned(slides):
    found = score(slides[2:], [torch.full((40, 50), 90, dtype=torch.uint8)])
    assert found["best_threshold"] == 0.5


def test_a_summary_cuts_each_fold_at_the_others_threshold(slides, tmp_path):
    for fold, level in ((0, 100), (1, 200)):
        (tmp_path / f"fold{fold}").mkdir()
        save_fold(tmp_path / f"fold{fold}", [slides[fold]], results_of([slides[fold]], level))
        (tmp_path / f"fold{fold}" / "model.pt").touch()
    summarize(tmp_path, slides[:2], [0, 1])
    found = json.loads((tmp_path / "summary.json").read_text())
    # every threshold from 1 to 200 suits fold 1; the nearest to a half finds nothing in fold 0
    assert found["thresholds"][0] == pytest.approx(127.5 / 255, abs=1e-3)
    assert found["images"] == {"id0": 0, "id1": 1} and found["folds"] == [0, 1]


def test_the_log_is_a_table_and_a_picture(tmp_path):
    rows = [{"epoch": i + 1, "loss": 1 / (i + 1), "held_out_dice": i / 10} for i in range(3)]
    save_log(tmp_path, rows, "title")
    assert (tmp_path / "log.csv").read_text().splitlines()[0] == "epoch,loss,held_out_dice"
    assert Image.open(tmp_path / "curves.png").size == (800, 400)
