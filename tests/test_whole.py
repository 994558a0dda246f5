import json

import numpy as np
import pytest
import tifffile

from lab import whole
from minseg.files.masks import Item, Mask


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "FIELD", 256)
    monkeypatch.setattr(whole, "BLOCK", 64)
    whole.write_slide(tmp_path, 500)
    whole.write_masks(tmp_path)
    return tmp_path


def test_tissue_is_in_the_middle_and_the_mask_is_the_same_in_all_forms(folder):
    image, mask = (tifffile.imread(folder / f"{name}.tiff") for name in ("slide", "mask"))
    assert image.shape == (500, 500, 3) and mask.shape == (500, 500)
    inside = slice(64, 448)  # 6 x 6 of 8 x 8 blocks of 64 pixels
    glass = np.delete(image, np.arange(64, 448), 0)
    assert glass.min() >= 236 and image[inside, inside].mean() < 220
    assert mask[inside, inside].any() and np.count_nonzero(mask) == np.count_nonzero(
        mask[inside, inside])
    for form, name in whole.MASKS.items():
        runs = (folder / name).read_text() if form == "run-length code" else None
        found = Mask(Item("a", folder / "slide.tiff", folder / name, "a", runs=runs), 500, 500)
        assert (found.read(0, 0, 500, 500) * 255 == mask).all()


def test_each_step_is_timed_once_and_leaves_what_the_next_one_needs(folder, monkeypatch):
    monkeypatch.setattr(whole, "keep_memory", lambda: None)  # of this process
    taken = whole.cut_and_score(folder, "polygons", 2)
    assert [*taken] == ["cut", "first epoch", "epoch", "fold", "summary", "summary later"]
    assert min(taken.values()) > 0
    run = folder / "run"
    assert len(list(run.glob("*.tiles"))) == 1 and (run / "summary.json").exists()
    assert (run / "fold0" / "score.json").exists() and (run / "fold0" / "preview.png").exists()


@pytest.mark.slow
def test_a_slide_is_segmented_in_a_process_of_its_own(folder):
    found = whole.apart("file_to_file", "minseg", folder)
    assert found["seconds"] > 0 and 0.1 < found["peak_gib"] < whole.LIMIT
    assert tifffile.imread(folder / "out" / "slide.tiff").shape == (500, 500)


@pytest.mark.parametrize("text", ["MemoryError", "can't allocate memory: you tried", "KeyError"])
def test_only_a_lack_of_memory_is_a_result(monkeypatch, tmp_path, text):
    program = tmp_path / "lab" / "program.py"
    program.parent.mkdir()
    program.write_text(f"raise RuntimeError({text!r})")
    monkeypatch.setattr(whole, "__file__", str(program))
    if text == "KeyError":
        with pytest.raises(RuntimeError, match="KeyError"):
            whole.apart("file_to_file", "minseg", tmp_path)
    else:
        assert whole.apart("file_to_file", "minseg", tmp_path) is None


def test_rows_hold_medians_and_the_median_ratio_of_the_rounds(folder, monkeypatch, capsys):
    monkeypatch.setattr(whole, "SIDE", 256)
    slower, calls = iter([2, 4, 3] * 12), []

    def apart(function, *arguments, checkout=None):
        calls.append(function)
        if function == "file_to_file":
            return {"seconds": 7.0, "peak_gib": 1.0} if arguments[0] == "minseg" else None
        return {"cut": 0.5 * (next(slower) if checkout else 1), "fold": 0.5}

    monkeypatch.setattr(whole, "apart", apart)
    whole.main(["--before", str(folder), "--rounds", "3", "--scales", "4", "1", "--sides", "256",
                "--out", str(folder)])
    rows = json.loads((folder / "whole.json").read_text())["rows"]
    assert len(rows) == 3 * 2 + 2
    assert rows[0]["cut"] == {"now": 0.5, "before": 1.5, "times_as_fast": 3}
    assert rows[0]["fold"]["times_as_fast"] == 1
    assert rows[-2]["seconds"] == 7 and rows[-1]["out_of_memory"]
    assert calls[:4] == ["cut_and_score"] * 4 and "out_of_memory True" in capsys.readouterr().out
