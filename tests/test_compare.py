import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from lab.compare import compare, main, table


def make_run(folder, dice, groups, **options):
    """A run with two folds that end alike."""
    for fold, shift in (("fold0", 0.1), ("fold1", -0.1)):
        (folder / fold).mkdir(parents=True)
        with open(folder / fold / "log.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", "held_out_dice", "seconds"])
            writer.writerows([i, value + shift, 30] for i, value in enumerate(dice, 1))
    (folder / "config.json").write_text(json.dumps(
        {"encoder": "b0", "seed": 0, "data": "some/where", **options}))
    (folder / "summary.json").write_text(json.dumps(
        {"pooled_dice": 0.7, "mean_dice": 0.6, "sd_dice": 0.1, "groups": groups}))
    return folder


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / "random", [0.2, 0.3, 0.5], {"a": 0.5, "b": 0.9}, weights=None),
            make_run(tmp_path / "imagenet", [0.5, 0.6, 0.7], {"a": 0.6, "b": 0.8},
                     weights="imagenet")]


def test_it_says_which_options_differ_and_when_each_run_passes_the_others_end(runs):
    first, second = compare(runs)
    assert first["apart"] == {"weights": None} and second["apart"] == {"weights": "imagenet"}
    assert first["alike"] == {"encoder": "b0", "seed": 0, "data": "where"}
    assert second["held_out_dice"] == [0.5, 0.6, 0.7] and second["minutes"] == 3
    assert first["passes_the_others_end_in_epoch"] is None
    assert second["passes_the_others_end_in_epoch"] == 2  # in the first it is level with it
    assert first["groups_above_the_other"] == second["groups_above_the_other"] == 1


def test_runs_that_were_made_from_other_masks_are_not_compared(tmp_path):
    def made_from(mask):
        return {"made_from": {"images": {"a": {"image": {"sha256": "1"}, "mask": {"sha256": mask}}},
                              "weights": None}}

    runs = [make_run(tmp_path / str(i), [0.5], {"a": 0.5, "b": 0.5}, **made_from(mask))
            for i, mask in enumerate("223")]
    assert "made_from" not in {**compare(runs[:2])[0]["alike"], **compare(runs[:2])[0]["apart"]}
    with pytest.raises(ValueError, match=r"was not made from the same files as .*: a \(mask\)"):
        compare(runs[1:])


def test_it_writes_a_table_json_and_a_picture(runs, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="python -m pip install -e '.[lab]'")
    main([*map(str, runs), "--docs", str(tmp_path / "docs")])
    out = capsys.readouterr().out
    assert "| random | 0.7000 | 0.6000 ± 0.1000 | 1 of 2 groups | never |" in out
    assert "| imagenet | 0.7000 | 0.6000 ± 0.1000 | 1 of 2 groups | in epoch 2 of 3 |" in out
    found = json.loads((tmp_path / "docs/results/compare-random-imagenet.json").read_text())
    assert found["rows"][1]["name"] == "imagenet" and found["commit"] and found["command"]
    assert Image.open(tmp_path / "docs/figures/compare-random-imagenet.png").width == 1600


def test_runs_that_cannot_be_compared_are_one_line(runs, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="python -m pip install -e '.[lab]'")

    def refused(other):
        with pytest.raises(SystemExit) as error:
            main([str(runs[0]), str(other), "--docs", str(tmp_path)])
        assert error.value.code == 2
        return capsys.readouterr().err

    other_groups = make_run(tmp_path / "c", [1, 1, 1], {"a": 1, "c": 1})
    shorter = make_run(tmp_path / "d", [1], {"a": 1, "b": 1})
    assert "is not a complete run" in refused(tmp_path / "nowhere")
    assert "not scored on the same groups" in refused(other_groups)
    assert "not trained for as many epochs" in refused(shorter)


def test_the_page_shows_the_table_as_it_was_written():
    root = Path(__file__).parent.parent
    rows = json.loads((root / "docs/results/compare-random-imagenet.json").read_text())["rows"]
    assert table(rows) in (root / "docs/study.md").read_text()
    assert rows[1]["apart"] == {"weights": "imagenet"}  # and nothing else
