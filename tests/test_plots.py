import numpy as np
import pytest
from PIL import Image

from lab.plots import curves, forest, nice, scatter, ticks
from minseg.run.report import BLUE, PAPER


def row(arm, difference, half=0.01, p=1.0, cost=1.0):
    return {"arm": arm, "difference": difference, "low": difference - half,
            "high": difference + half, "p_holm": p, "cost": cost}


ROWS = [row("better", 0.03, p=0.01, cost=1.3), row("unclear, Lovász × 2", 0.004),
        row("unclear too", 0.002), row("far off", -0.6, 0.2, p=0.02, cost=2.0)]


def drawn(path):
    picture = np.asarray(Image.open(path))
    assert picture.shape[1] == 1600
    for edge in (picture[:8], picture[-8:], picture[:, :8], picture[:, -8:]):
        assert (edge == PAPER).all()  # nothing is cut off
    return picture


def test_a_forest_shows_what_survives_in_another_colour_and_filled(tmp_path):
    forest(tmp_path / "f.png", {"training": ROWS[:2], "inference": ROWS[2:]}, "title")
    with_blue = (drawn(tmp_path / "f.png") == BLUE).all(2).sum()
    forest(tmp_path / "g.png", {"training": ROWS[1:2], "inference": ROWS[2:]}, "title")
    assert with_blue > 200 > (drawn(tmp_path / "g.png") == BLUE).all(2).sum()


@pytest.mark.parametrize("count", [1, 4, 20])
def test_a_scatter_has_room_for_all_labels(tmp_path, count):
    scatter(tmp_path / "s.png", [{**ROWS[i % 4], "arm": f"arm {i}"} for i in range(count)], "title")
    drawn(tmp_path / "s.png")


def test_curves_of_different_lengths_lie_on_one_plane(tmp_path):
    curves(tmp_path / "c.png", {"long": [3.0, 2, 1, 1], "short": [1.0, 0.5]}, "title", "px", "%")
    picture = drawn(tmp_path / "c.png")
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 5


@pytest.mark.parametrize("low, high", [(0, 1), (-0.083, 0.021), (0.93, 2.4), (0, 64), (3, 3.001)])
def test_ticks_are_round_and_within(low, high):
    found = ticks(low, high, 8)
    assert 2 <= len(found) <= 9
    step = nice(high - low, 7)
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    assert found[0] - low < step * (1 + 1e-9) and high - found[-1] < step * (1 + 1e-9)
    assert all(value / step == pytest.approx(round(value / step)) for value in found)


def test_where_nothing_differs_there_is_a_picture_all_the_same(tmp_path):
    same = [row("a", 0.0, 0.0), row("b", 0.0, 0.0)]
    forest(tmp_path / "f.png", {"training": same}, "title")
    scatter(tmp_path / "s.png", same, "title")
    curves(tmp_path / "c.png", {"a": [0.0, 0.0]}, "title", "px", "%")
    for name in "fsc":
        drawn(tmp_path / f"{name}.png")
