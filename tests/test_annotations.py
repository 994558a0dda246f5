"""The program that measures annotations measures what it says."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from lab import annotations
from minseg.data.datasets import find_slides
from minseg.data.masks import Mask
from minseg.data.synthetic import write_slides

ROOT = Path(__file__).parent.parent


def test_polygons_go_round_without_a_pixel_of_difference(tmp_path):
    (tmp_path / "masks").mkdir()
    annotations.draw_polygons(tmp_path / "masks" / "slide.geojson", 1500)
    found = annotations.round_trip(tmp_path, 1500)
    assert found["pixels_that_differ"] == 0 and found["polygons_out"] >= 600


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    write_slides(folder / "right", 6, seed=0, height=300, width=256)
    annotations.hold_out(folder / "right" / "groups.csv")
    annotations.plant(folder / "right", folder / "wrong", folder / "half")
    return folder


def known_half(index):
    """The columns whose labels are right, in an image of 256: left and right in turn."""
    return slice(128, 256) if index % 2 else slice(0, 128)


def test_labels_are_right_in_one_half_and_wrong_and_void_in_the_other(planted):
    right, half = (find_slides(planted / name) for name in ("right", "half"))
    wrong = find_slides(planted / "wrong", labels=["glomerulus"])
    void = find_slides(planted / "wrong", ignore=["unlabelled"])
    differ = 0
    for index, items in enumerate(zip(right, wrong, void, half)):
        known = known_half(index)
        truth, false, hidden, part = (Mask(item, 300, width).read(0, 0, 300, width)
                                      for item, width in zip(items, (256, 256, 256, 128)))
        assert (false[:, known] == truth[:, known]).all() and (part == truth[:, known]).all()
        assert (hidden[:, known] == truth[:, known]).all()
        assert (np.delete(hidden, np.r_[known], 1) == 255).all()
        differ += (false != truth).sum()
        assert items[0].group == items[1].group == items[3].group
    assert differ > 1000
    assert {item.group for item in right} == {"held out", "others"}


@pytest.mark.parametrize("name", ["right", "half"])
def test_what_counts_is_dice_on_the_labelled_halves(planted, tmp_path, name):
    (tmp_path / "probabilities").mkdir()
    for index, item in enumerate(find_slides(planted / "right")):
        mask = np.asarray(Image.open(item.mask)) > 0
        known = known_half(index)
        prediction = np.ones_like(mask)  # wrong everywhere except where it counts
        prediction[:, known] = mask[:, known]
        prediction = prediction[:, known] if name == "half" else prediction
        tifffile.imwrite(tmp_path / "probabilities" / f"{item.id}.tiff",
                         prediction * np.uint8(200))
    truth = (find_slides(planted / "half") if name == "half" else
             find_slides(planted / "wrong", ignore=["unlabelled"]))
    assert annotations.score_labelled(tmp_path, truth) == 1


def test_the_page_says_what_was_measured():
    page = (ROOT / "docs" / "measured.md").read_text("utf-8")
    rows = {name: json.loads((ROOT / "docs" / "results" / f"annotations-{name}.json").read_text())
            ["rows"] for name in ("large", "hubmap", "void")}
    for row in rows["large"]:
        assert row["size"] == 30_000 and row["peak_gib_above_idle"] < 1
        assert f"| {row['seconds']} s | {row['peak_gib_above_idle']} GiB |" in page
    assert rows["large"][0]["pixels_that_differ"] == 0
    assert f"to a Dice of {rows['hubmap'][0]['dice']:.5f}" in page
    for name in ("right", "half", "void", "wrong"):
        scores = [row["dice"] for row in rows["void"] if row["labels"] == name]
        each = ", ".join(f"{score:.3f}" for score in scores)
        assert f"| {statistics.mean(scores):.3f} | {each} |" in page
