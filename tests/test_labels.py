import csv
import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import labels
from labels import disagreement, main, rank, worst_squares
from minseg.files.datasets import Item, find_slides
from minseg.files.masks import Mask
from minseg.files.slides import open_slide
from minseg.run.tiles import made_from


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def discs(height, width, *places, radius=20):
    y, x = np.ogrid[:height, :width]
    return sum(((y - cy) ** 2 + (x - cx) ** 2 < radius**2) for cy, cx in places) > 0


def compare(tmp_path, probability, mask, threshold=0.5, side=64):
    """`disagreement` of two arrays in [0, 1]."""
    save(tmp_path / "p.png", (probability * 255).round().astype(np.uint8))
    save(tmp_path / "m.png", (mask * 255).astype(np.uint8))
    item = Item("a", tmp_path / "p.png", tmp_path / "m.png", "a")
    return disagreement(open_slide(tmp_path / "p.png"), Mask(item, *mask.shape), threshold, side)


@pytest.mark.parametrize("size", [(300, 420), (900, 1100)])  # one block, and several
@pytest.mark.parametrize("shift", [(0, 0), (-21, -43), (40, 3), (128, -128)])
def test_the_shift_that_fits_best_is_named_to_the_pixel(tmp_path, size, shift):
    height, width = size
    rng = np.random.default_rng(0)
    places = [(rng.integers(150, height - 130), rng.integers(150, width - 150)) for _ in range(4)]
    truth = discs(height, width, *places)
    mask = discs(height, width, *((y - shift[0], x - shift[1]) for y, x in places))
    found = compare(tmp_path, truth * 0.9, mask)
    assert found["shift"] == shift
    assert found["shifted_dice"] == pytest.approx(1)
    wanted = 2 * (truth & mask).sum() / (truth.sum() + mask.sum())
    assert found["dice"] == pytest.approx(wanted)


def test_the_best_shift_is_that_of_trying_all(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "REACH", 6)
    monkeypatch.setattr(labels, "BLOCK", 16)
    rng = np.random.default_rng(1)
    probability, mask = rng.random((45, 37)), rng.random((45, 37)) < 0.3
    found = compare(tmp_path, probability, mask)
    a = (probability * 255).round() / 255 >= 0.5
    padded = np.pad(mask, 6)
    dice = {(dy, dx): 2 * (a & padded[6 - dy : 51 - dy, 6 - dx : 43 - dx]).sum()
            / (a.sum() + mask.sum()) for dy in range(-6, 7) for dx in range(-6, 7)}
    assert found["shifted_dice"] == pytest.approx(max(dice.values()))
    assert dice[found["shift"]] == pytest.approx(max(dice.values()))
    assert found["dice"] == pytest.approx(dice[0, 0])


def test_the_score_is_one_minus_v_nets_dice(tmp_path):
    rng = np.random.default_rng(2)
    p, y = rng.random((70, 90)), (rng.random((70, 90)) < 0.2)
    found = compare(tmp_path, p, y)
    p = (p * 255).round() / 255
    assert found["apart"] == pytest.approx(((p - y) ** 2).sum(), rel=1e-5)
    assert found["apart"] / found["size"] == pytest.approx(
        1 - 2 * (p * y).sum() / ((p**2).sum() + y.sum()), rel=1e-5)


def test_regions_lie_where_prediction_and_label_differ(tmp_path):
    truth = discs(700, 800, (100, 100), (600, 650))
    mask = discs(700, 800, (100, 100), (300, 420))
    found = compare(tmp_path, truth * 1.0, mask)
    assert len(found["regions"]) == 2  # where they agree there is nothing to show
    for (score, y, x), (cy, cx) in zip(sorted(found["regions"], key=lambda r: r[1]),
                                       [(300, 420), (600, 650)]):
        assert abs(y - cy) <= 24 and abs(x - cx) <= 24
        assert score == pytest.approx(discs(700, 800, (cy, cx)).sum(), rel=1e-6)


def test_worst_squares_do_not_overlap():
    grid = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    found = worst_squares(grid, 4, 24)
    for i, (_, y, x) in enumerate(found):
        assert all(max(abs(y - v), abs(x - u)) >= 24 for _, v, u in found[:i])
    assert [score for score, *_ in found] == sorted((s for s, *_ in found), reverse=True)
    assert found[0][0] == pytest.approx(max(grid[y : y + 6, x : x + 6].sum().item()
                                            for y in range(15) for x in range(15)), rel=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (40, 50)])
def test_regions_of_a_small_image_lie_in_it(tmp_path, size):
    found = compare(tmp_path, np.ones(size), np.zeros(size), side=512)
    assert found["dice"] == 0 and found["shift"] == (0, 0)
    assert all(0 <= y < size[0] and 0 <= x < size[1] for _, y, x in found["regions"])
    assert found["regions"]


@pytest.fixture
def run(tmp_path):
    """A run that predicts five slides perfectly, of which two have wrong masks, and one none."""
    data, folder = tmp_path / "data", tmp_path / "run"
    places = [(80, 90), (180, 200)]
    for i in range(5):
        truth = discs(256, 288, *places) if i != 2 else np.zeros((256, 288), bool)
        mask = truth
        if i == 1:
            mask = discs(256, 288, *((y + 10, x - 25) for y, x in places))
        if i == 3:
            mask = discs(256, 288, places[0])
        image = np.full((256, 288, 3), 200, np.uint8)
        save(data / "images" / f"s{i}.png", image)
        save(data / "masks" / f"s{i}.png", (mask * 255).astype(np.uint8))
        faint = np.where(truth, 240, 3).astype(np.uint8)  # never quite sure
        (folder / f"fold{i % 2}" / "probabilities").mkdir(parents=True, exist_ok=True)
        Image.fromarray(faint).save(folder / f"fold{i % 2}" / "probabilities" / f"s{i}.tiff")
    (folder / "config.json").write_text(json.dumps(
        {"data": str(data), "tile": 64, "scale": 1, "exclude": None}))
    (folder / "summary.json").write_text(json.dumps({"thresholds": [0.5, 0.4]}))
    return folder


def test_wrong_masks_come_first_and_an_empty_image_is_no_scandal(run):
    rows = rank(run)
    assert [row["id"] for row in rows][:2] == ["s1", "s3"]
    assert rows[0]["shift"] == (-10, 25) and rows[0]["shifted_dice"] == pytest.approx(1)
    empty = next(row for row in rows if row["id"] == "s2")
    assert empty["score"] < 0.05 and empty["dice"] == 1 and empty["shift"] == (0, 0)
    assert [row["threshold"] for row in rows if row["id"] in ("s1", "s3")] == [0.4, 0.4]


def test_regions_are_half_a_tile_wide_as_the_network_saw_it(run):
    assert {row["side"] for row in rank(run)} == {32}
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "microns": 0.5}))
    for path in run.glob("fold*/probabilities/*.tiff"):  # --microns: each slide has its own pixels
        microns = 0.25 if path.stem == "s1" else 0.4
        tifffile.imwrite(path, tifffile.imread(path), resolution=(1e4 / microns,) * 2,
                         resolutionunit="CENTIMETER")
    assert {row["id"]: row["side"] for row in rank(run)} == {
        "s0": 40, "s1": 64, "s2": 40, "s3": 40, "s4": 40}


def test_it_writes_a_table_and_a_picture_and_says_what_to_do(run, capsys):
    main([str(run)])
    out = capsys.readouterr().out
    assert "s1   its mask fits better moved by (-10, 25): Dice 1.000" in out
    assert "--exclude" in out and "s0   its mask" not in out
    with open(run / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows][:2] == ["s1", "s3"] and len(rows) == 5
    assert (rows[0]["shift_y"], rows[0]["shift_x"]) == ("-10", "25")
    assert rows[2]["shift_y"] == ""  # it fits where it is
    picture = np.asarray(Image.open(run / "labels.png"))
    assert picture.shape[1] == 3 * 532 + 12
    assert (picture == (0, 114, 178)).all(2).any() and (picture == (230, 159, 0)).all(2).any()


def test_an_excluded_image_is_not_asked_for(run):
    (run / "fold0" / "probabilities" / "s4.tiff").unlink()
    with pytest.raises(ValueError, match="no prediction of s4"):
        rank(run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "exclude": ["s4"]}))
    assert len(rank(run)) == 4


def test_the_data_may_have_moved_but_not_changed(run, tmp_path, capsys):
    config = json.loads((run / "config.json").read_text())
    config["made_from"] = {"images": {item.id: made_from(item)
                                      for item in find_slides(config["data"])}, "weights": None}
    (run / "config.json").write_text(json.dumps(config))
    shutil.move(config["data"], tmp_path / "moved")
    with pytest.raises(SystemExit):
        main([str(run)])
    main([str(run), "--data", str(tmp_path / "moved")])
    assert (run / "labels.csv").exists()
    shutil.copy(tmp_path / "moved/masks/s0.png", tmp_path / "moved/masks/s1.png")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([str(run), "--data", str(tmp_path / "moved")])
    assert "changed since: s1 (mask)" in capsys.readouterr().err


def test_bad_input_is_one_line(run, tmp_path, capsys):
    def refused(*argv):
        with pytest.raises(SystemExit) as error:
            main([str(arg) for arg in argv])
        assert error.value.code == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    assert "is not a complete run" in refused(tmp_path / "nowhere")
    assert "RUN" in refused()
    assert "--epochs" in refused(run, "--epochs", "3")


def test_a_mask_that_fits_nowhere_is_not_said_to_be_shifted(run, capsys):
    mask = discs(256, 288, (40, 250), (230, 30), radius=12)
    save(run.parent / "data" / "masks" / "s0.png", (mask * 255).astype(np.uint8))
    rows = rank(run)
    assert rows[0]["id"] == "s0" and rows[0]["dice"] == 0 and 0.1 < rows[0]["shifted_dice"] < 0.5
    main([str(run)])
    assert "s0   its mask" not in capsys.readouterr().out
