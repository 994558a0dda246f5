import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from lab import plots, style

RESULTS = Path(__file__).parent.parent / "docs/results"


def row(arm, difference, half=0.01, p=1.0, cost=1.0):
    return {"arm": arm, "difference": difference, "low": difference - half,
            "high": difference + half, "p_holm": p, "cost": cost}


ROWS = [row("better", 0.03, p=0.01, cost=1.3), row("unclear, Lovász × 2", 0.004),
        row("unclear, too", 0.002), row("far off", -0.6, 0.2, p=0.02, cost=2.0)]


def drawn_points(axes):
    """The markers of a forest: (y, x, marker, whether it is filled)."""
    return [(int(line.get_ydata()[0]), float(line.get_xdata()[0]), line.get_marker(),
             line.get_markerfacecolor() != "white")
            for line in axes.lines if line.get_marker() in ("o", "<", ">")]


def test_a_forest_shows_the_numbers_of_its_rows_and_fills_what_counts():
    _, axes = style.sheet("", height=3)
    plots.forest(axes, ["family", *ROWS, *ROWS[:3] * 3])
    points = drawn_points(axes)
    assert points[:3] == [(1, 0.03, "o", True), (2, 0.004, "o", False), (3, 0.002, "o", False)]
    assert points[3][0] == 4 and points[3][2] == "<"  # an arrow at the border
    low, high = axes.get_xlim()
    assert low < points[3][1] < -0.03 and 0.04 < high < 0.2
    names = [label.get_text() for label in axes.get_yticklabels()]
    numbers = [label.get_text() for label in axes.child_axes[0].get_yticklabels()]
    assert names[:5] == ["family", *(row["arm"] for row in ROWS)]
    assert numbers[0] == "" and numbers[1] == "+0.030  [+0.020, +0.040]"


def test_plus_favours_the_trick_also_where_an_arm_takes_it_away():
    turned = plots.favouring(row("random weights", -0.7, 0.1, cost=1.25))
    assert turned["difference"] == 0.7 and turned["low"] == pytest.approx(0.6)
    assert turned["high"] == pytest.approx(0.8) and turned["cost"] == pytest.approx(0.8)
    assert turned["arm"] == "ImageNet, not random weights"
    assert plots.favouring(ROWS[0]) == ROWS[0]
    arms = {row["arm"] for study in RESULTS.glob("study-*.json")
            for rows in json.loads(study.read_text("utf-8"))["effects"].values() for row in rows}
    assert plots.TAKEN_AWAY.keys() <= arms


@pytest.mark.parametrize("name", ["nuclei", "synthetic"])
def test_chance_is_the_first_row_of_a_study_and_the_others_fall(name):
    found = json.loads((RESULTS / f"study-{name}.json").read_text("utf-8"))
    axes = plots.study_chart(name, "effects", found).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[:3] == ["chance", "baseline, another seed", "training"]
    assert "ImageNet, not random weights" in names and "random weights" not in names
    numbers = [label.get_text() for label in axes.child_axes[0].get_yticklabels()]
    values = [float(text.split()[0]) for text in numbers[3 : names.index("inference")]]
    assert values == sorted(values, reverse=True)
    assert len(values) == len(found["effects"]["training"])
    assert numbers[1].startswith(plots.signed(found["same_again"]["difference"]))


def test_costs_begin_with_the_cheapest():
    left = plots.costs(ROWS, "title").axes[0]
    assert [label.get_text() for label in left.get_yticklabels()][-2:] == ["better", "far off"]
    costs = [line.get_xdata()[1] for line in left.lines if line.get_marker() == "s"]
    assert costs == [1.0, 1.0, 1.3, 2.0]


def test_curves_of_different_lengths_keep_their_values():
    figure = plots.study_chart("a", "seams", {
        "groups": 1, "folds": 1, "seeds": 1, "same_again": None, "effects": {},
        "error_by_distance": {"long": [0.03, 0.02, 0.01], "short": [0.01]}})
    long, short = figure.axes[0].lines
    assert np.allclose(long.get_xdata(), [0.5, 1.5, 2.5])
    assert np.allclose(long.get_ydata(), [3, 2, 1])
    assert np.allclose(short.get_ydata(), [1])


def test_a_comparison_starts_at_a_round_number_and_names_where_runs_end():
    figure = plots.stored_chart("compare-random-imagenet", RESULTS)
    rows = json.loads((RESULTS / "compare-random-imagenet.json").read_text("utf-8"))["rows"]
    axes = figure.axes[0]
    assert axes.get_ylim()[0] == 0.6
    assert [line.get_label() for line in axes.lines] == [
        f"{row['name']}: {row['held_out_dice'][-1]:.3f}" for row in rows]
    assert [list(line.get_ydata()) for line in axes.lines] == [row["held_out_dice"] for row in rows]


def test_where_nothing_differs_there_is_a_picture_all_the_same(tmp_path):
    same = [row("a", 0.0, 0.0), row("b", 0.0, 0.0)]
    found = {"groups": 1, "folds": 1, "seeds": 1, "same_again": None,
             "effects": {"training": same, "inference": []},
             "error_by_distance": {"a": [0.0, 0.0]}}
    (tmp_path / "study-none.json").write_text(json.dumps(found))
    for kind in plots.KINDS:
        figure = plots.stored_chart(f"study-none-{kind}", tmp_path)
        figure.set_dpi(40)
        style.save(figure, tmp_path / f"{kind}.png")
        assert (tmp_path / f"{kind}.png").exists()
