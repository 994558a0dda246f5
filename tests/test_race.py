"""The race gives both contestants the same, and compares what it says."""

import json

import pytest

import train
from lab import measure, peers, race
from lab.harness import options_of
from minseg.run.options import train_options
from minseg.run.prepare import prepare, training_tiles

pytest.importorskip("matplotlib", reason="python -m pip install -e '.[lab]'")
SMALL = ("--scale 4 --tile 32 --batch 2 --weights none --folds 2 --seeds 1 --device cpu "
         "--budgets 1 2").split()


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    from minseg.synthetic import write_slides

    folder = tmp_path_factory.mktemp("race") / "slides"
    write_slides(folder, 4, height=256, width=256)
    return folder


@pytest.fixture
def alone(monkeypatch):
    """Without the peers, as where they are not installed."""
    monkeypatch.setattr(peers, "find_spec", lambda name: None)


@pytest.mark.usefixtures("small_networks", "alone")
def test_minseg_runs_alone_where_the_peers_are_missing_and_a_second_time_nothing_runs(
        slides, tmp_path, monkeypatch, capsys):
    command = ["--data", str(slides), *SMALL, "--out", str(tmp_path / "out"), "--docs",
               str(tmp_path), "--changes", "all empty tiles"]
    race.main(command)
    assert "the peers are not installed" in capsys.readouterr().out
    found = json.loads((tmp_path / "results/race-slides.json").read_text())
    assert [(row["contestant"], row["steps"]) for row in found["rows"]] == [
        ("minseg", 1), ("minseg", 2), ("all empty tiles", 1), ("all empty tiles", 2)]
    assert "same_steps" in found["rows"][2] and "same_steps" not in found["rows"][0]
    assert len((tmp_path / "results/race-slides.jsonl").read_text().splitlines()) == 8
    assert (tmp_path / "figures/race-slides.png").exists()
    monkeypatch.setattr(race, "run", lambda *job: pytest.fail("it ran again"))
    race.main(command)


@pytest.mark.usefixtures("small_networks")
def test_a_change_reaches_the_training_and_ends_with_it(slides, tmp_path):
    args = race.parse(["--data", str(slides), *SMALL, "--out", str(tmp_path)])
    given = train_options(options_of(args, "", 0, 0))
    data, rate, steps = prepare(given), train.learning_rate_share, []

    def half(*job):
        assert train.learning_rate_share is half
        return rate(*job) / 2

    measure.train_minseg(given, data.tiles, training_tiles(data.tiles, data.folds, 0), 3,
                         build=race.HOW["starts at one half"]["build"],
                         after_step=lambda number, net: steps.append((net.training, number)),
                         changes={"train.learning_rate_share": half})
    assert train.learning_rate_share is rate and [number for _, number in steps] == [1, 2, 3]


def test_the_same_time_is_read_off_the_curve_over_seconds():
    args = race.parse(["--folds", "2", "--seeds", "1", "--budgets", "10", "40"])
    args.contestants = ["peers", "minseg"]

    def line(who, steps, dice, seconds, fold):
        parts = [[round(1000 * dice), 1000]] * 63
        return {"levels": {fold: parts}, "seconds": seconds}

    lines = {(who, steps, 0, fold): line(who, steps, dice, seconds, fold)
             for fold in (0, 1) for who, steps, dice, seconds in (
        ("peers", 10, 0.5, 20.0), ("peers", 40, 0.7, 80.0),
        ("minseg", 10, 0.4, 10.0), ("minseg", 40, 0.8, 40.0))}
    found = race.summarize(args, lines)
    rows = {(row["contestant"], row["steps"]): row for row in found["rows"]}
    assert rows["minseg", 10]["same_steps"]["difference"] == pytest.approx(-0.1)
    # Twenty seconds lie halfway between 10 and 40 on the scale of logarithms.
    assert rows["minseg", 10]["same_time"]["difference"] == pytest.approx(0.6 - 0.5)
    assert rows["minseg", 40]["same_time"]["difference"] == pytest.approx(0.8 - 0.7)
    assert rows["minseg", 40]["seeds"] == pytest.approx([0.1])
    lines["peers", 10, 0, 0]["seconds"] = lines["peers", 10, 0, 1]["seconds"] = 5.0
    rows = race.summarize(args, lines)["rows"]  # the peers are done before minseg's first run
    assert ["same_time" in row for row in rows if row["contestant"] == "minseg"] == [False, True]
    assert found["fold_of"] == {0: 0, 1: 1} and "not_tuned" not in rows[0]


def test_what_a_row_says_of_images_and_of_groups_that_were_not_tuned_on(tmp_path):
    args = race.parse(["--folds", "2", "--seeds", "1", "--budgets", "10"])
    args.contestants, args.tuned_on = ["peers", "minseg"], ["b", "d"]
    args.images = {"a": 1, "b": 1, "c": 2, "d": 6}
    gains = {"a": 0.1, "b": 0.2, "c": 0.3, "d": -0.2}
    lines = {(who, 10, 0, fold): {"seconds": 1.0, "levels": {
        group: [[round(1000 * (0.5 + gains[group] * (who == "minseg"))), 1000]] * 63
        for group in groups}} for fold, groups in enumerate(("ab", "cd"))
        for who in args.contestants}
    found = race.summarize(args, lines)
    row = found["rows"][1]
    assert row["same_steps"]["difference"] == pytest.approx(0.1)
    assert row["same_steps"]["groups"] == {group: [gain] for group, gain in gains.items()}
    assert row["per_image"]["difference"] == pytest.approx(0.1 * (0.1 + 0.2 + 0.6 - 1.2))
    assert row["not_tuned"]["difference"] == pytest.approx(0.2)
    args.tuned_on = list("abcd")  # all of them
    assert "not_tuned" not in race.summarize(args, lines)["rows"][1]
    (tmp_path / "log-nuclei.jsonl").write_text("".join(
        json.dumps({"contestant": "x", "steps": 1, "seed": 0, "fold": fold, "levels": {group: []}})
        + "\n" for fold, group in enumerate("ba")))
    assert race.tuned_on("nuclei", tmp_path) == ["a", "b"] and race.tuned_on("x", tmp_path) == []


def test_options_that_the_race_sets_are_refused(capsys):
    with pytest.raises(SystemExit):
        race.parse(["--epochs=3"])
    assert "--epochs: this program sets it itself" in capsys.readouterr().err


@pytest.mark.usefixtures("small_networks", "alone")
def test_runs_with_other_options_are_not_taken_for_these(slides, tmp_path, capsys):
    command = ["--data", str(slides), *SMALL, "--out", str(tmp_path), "--docs", str(tmp_path)]
    race.main(command)
    for other in (["--tile", "64"], ["--lr=1e-4"]):
        with pytest.raises(SystemExit):
            race.main([*command, *other])
        assert "runs with other data, folds, options or defaults" in capsys.readouterr().err


def test_the_peers_take_lite_encoders_only(slides, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "find_spec", lambda name: True)
    with pytest.raises(SystemExit):
        race.main(["--data", str(slides), *SMALL, "--encoder", "efficientnet-b0", "--out",
                   str(tmp_path)])
    assert "the peers are set up for efficientnet-lite0" in capsys.readouterr().err
