import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="python -m pip install -e '.[lab]'")
from lab import plots, study, style

RESULTS = Path(__file__).parent.parent / "docs/results"


def row(arm, difference, half=0.01, p=1.0, luck=0.005):
    found = {"difference": difference, "low": difference - half, "high": difference + half,
             "luck": luck}
    return {"arm": arm, **found, "p_holm": p, "along": {"10": found, "20": found},
            "moved": {"difference": 0.001, "luck": 0.002}}


ROWS = [row("better", 0.03, p=0.01), row("unclear, Lovász × 2", 0.004),
        row("unclear, too", 0.002), row("far off", -0.6, 0.2, p=0.02)]


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
    turned = plots.favouring(row("random weights", -0.7, 0.1))
    assert turned["difference"] == 0.7 and turned["low"] == pytest.approx(0.6)
    assert turned["high"] == pytest.approx(0.8) and turned["luck"] == 0.005
    assert turned["arm"] == "ImageNet, not random weights"
    assert turned["along"]["10"]["difference"] == 0.7
    assert turned["moved"] == {"difference": -0.001, "luck": 0.002}
    assert plots.favouring(ROWS[0]) == ROWS[0]
    assert plots.TAKEN_AWAY.keys() <= {*study.ARMS, *study.WAYS}


def test_a_mark_needs_both_a_small_p_and_more_than_luck():
    assert plots.mark(row("a", 0.03, p=0.04)) == " ▲"
    assert plots.mark(row("a", -0.03, p=0.04)) == " ▼"
    assert plots.mark(row("a", 0.03, p=0.06)) == plots.mark(row("a", 0.03, p=0.04, luck=0.04)) == ""
    way = {name: value for name, value in row("a", 0.001, p=0.04).items() if name != "luck"}
    assert plots.mark(way) == " ▲"  # the same networks: no luck


def test_an_arrow_needs_more_change_than_luck():
    def moved(difference):
        return plots.moves({"moved": {"difference": difference, "luck": 0.002}})

    assert (moved(0.003), moved(-0.003), moved(0.001)) == (" ↗", " ↘", "")
    assert plots.moves({}) == ""  # another way to predict, or two stages


def study_of(training, ways=()):
    return {"groups": 1, "folds": 1, "steps": 20, "training": training, "ways": list(ways),
            "seams": {way: {"wrong": [3, 0, 8, 0], "pixels": [100, 50, 200, 0]}
                      for way in plots.SEAMS}}


def test_rows_of_a_study_fall_family_by_family():
    axes = plots.study_chart("a", "effects", study_of(ROWS[::-1], [row("way", 0.5)])).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "training", *(row["arm"] for row in ROWS), "prediction", "way"]


def test_along_the_way_each_arm_has_a_panel_and_what_leaves_it_is_written():
    two_stages = {**row("two stages", 0.01), "along": {"20": ROWS[0]["along"]["20"]}}
    figure = plots.study_chart("a", "lengths", study_of([*ROWS, two_stages]))
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [row["arm"] for row in ROWS]
    better, far = panels[0], panels[-1]
    line = next(line for line in better.lines if line.get_marker() == "o")
    assert list(line.get_xdata()) == [10, 20] and list(line.get_ydata()) == [0.03, 0.03]
    assert line.get_markerfacecolor() != "white"
    assert [text.get_text() for text in far.texts] == ["-.60", "-.60"]


@pytest.mark.parametrize("arms", [1, 2, 3])
def test_few_panels_fill_the_width_and_wide_intervals_stay_inside(arms):
    rows = [row(f"arm {i}", 0.01 * i, half=0.3, luck=0.1) for i in range(arms)]
    figure = plots.study_chart("a", "lengths", study_of(rows))
    style.draw(figure)
    assert len(figure.axes) == arms  # none is empty
    width = figure.bbox.width
    assert figure.axes[0].get_window_extent().x0 < 0.12 * width
    assert figure.axes[-1].get_window_extent().x1 > 0.97 * width
    for axes in figure.axes:
        assert axes.get_ylim()[1] == -axes.get_ylim()[0] > 0.3


def test_errors_near_seams_are_shares_of_the_pixels_there():
    figure = plots.study_chart("a", "seams", study_of([]))
    assert len(figure.axes[0].lines) == len(plots.SEAMS)
    for line in figure.axes[0].lines:
        assert np.allclose(line.get_xdata(), [0.5, 1.5, 2.5])
        assert np.allclose(line.get_ydata(), [3, 0, 4])


def test_the_chart_of_weights_shows_the_arm_without_them_as_it_scored():
    axes = plots.stored_chart("pretrained", RESULTS).axes[0]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    found = json.loads((RESULTS / "study-nuclei.json").read_text("utf-8"))
    arm, = (row for row in found["training"] if row["arm"] == "random weights")
    assert lines["nuclei: ImageNet"][-1] == found["baseline"]["dice"]
    assert lines["nuclei: random"][-1] == pytest.approx(arm["dice"], abs=1e-5)
    assert len(lines["synthetic: random"]) == 4 and lines["synthetic: random"][0] < 0.2


def test_where_nothing_differs_there_is_a_picture_all_the_same(tmp_path):
    same = [row("a", 0.0, 0.0, luck=0.0), row("b", 0.0, 0.0, luck=0.0)]
    (tmp_path / "study-none.json").write_text(json.dumps(study_of(same)))
    for kind in plots.KINDS:
        figure = plots.stored_chart(f"study-none-{kind}", tmp_path)
        figure.set_dpi(40)
        style.save(figure, tmp_path / f"{kind}.png")
        assert (tmp_path / f"{kind}.png").exists()
