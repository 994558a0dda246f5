import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train
from lab import study
from lab.study import COSTS, INFERENCE, SEAMS, THRESHOLDS, TRAINING, main, parse
from minseg.run.errors import Stopped
from minseg.run.options import train_options

ROOT = Path(__file__).parent.parent
SMALL = ["--encoder", "efficientnet-lite0", "--weights", "none", "--scale", "4", "--tile", "32",
         "--epochs", "1", "--batch", "4", "--device", "cpu"]


@pytest.fixture
def few(monkeypatch):
    """Two ways to predict instead of all."""
    monkeypatch.setattr(study, "INFERENCE", {name: INFERENCE[name] for name in
                                             ("overlap 0, uniform", "tile × 2")})
    monkeypatch.setattr(study, "in_turn", lambda functions, rounds: {
        name: 0.1 for name in functions if function_runs(functions[name])})


def function_runs(function):
    function()
    return True


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    from minseg.data.synthetic import write_slides

    folder = tmp_path_factory.mktemp("study") / "slides"
    write_slides(folder, 5, height=256, width=256, glomeruli=(4, 8))  # folds of unequal length
    return folder


@pytest.mark.slow
def test_a_study_runs_stops_goes_on_and_reports(few, slides, tmp_path, capsys, monkeypatch):
    argv = ["--data", str(slides), "--folds", "2", "--seeds", "1", "--arms", "negatives 1:1",
            "--out", str(tmp_path / "s"), "--docs", str(tmp_path / "d"), *SMALL]
    trained, really = [], train.train

    def stops(args, *rest):
        if len(trained) == 2:
            trained.append("stopped")
            raise Stopped("after step 1 of 2")
        trained.append(args.out.name)
        return really(args, *rest)

    monkeypatch.setattr(train, "train", stops)
    with pytest.raises(KeyboardInterrupt):
        main(argv)
    lines = [json.loads(path.read_text("utf-8"))
             for path in sorted((tmp_path / "s").rglob("result.json"))]
    assert [(line["arm"], line["fold"]) for line in lines] == [
        ("baseline", 0), ("negatives 1:1", 0)]
    assert lines[0]["steps"] == lines[1]["steps"]  # though its epoch is shorter
    assert not list((tmp_path / "s").rglob("resume.pt"))

    main(argv)
    assert trained == ["baseline, seed 0, fold 0", "negatives 1:1, seed 0, fold 0", "stopped",
                       "baseline, seed 0, fold 1", "negatives 1:1, seed 0, fold 1"]
    raw = [json.loads(line) for line in
           (tmp_path / "d" / "results" / "study-slides.jsonl").read_text("utf-8").splitlines()]
    found = json.loads((tmp_path / "d" / "results" / "study-slides.json").read_text("utf-8"))
    assert [line["arm"] for line in raw].count("baseline") == 2 and raw[-1]["arm"] == COSTS
    assert {row["arm"] for row in found["effects"]["inference"]} == set(study.INFERENCE)
    assert found["groups"] == 3 and "tmp" not in json.dumps(found) + json.dumps(raw)
    assert found["command"].startswith("python -m lab.study --data slides --folds 2")
    assert set(found["error_by_distance"]) == set(raw[-2]["ways"])
    out = capsys.readouterr().out
    assert "| negatives 1:1 | " in out and "| tile × 2 | " in out
    for kind in ("effects", "costs", "seams"):
        assert Image.open(tmp_path / "d" / "figures" / f"study-slides-{kind}.png").width == 1600
    main(argv)  # nothing is left to do
    assert len(trained) == 5
    with pytest.raises(SystemExit) as error:
        main([*argv, "--lr", "1e-3"])  # would be compared with runs at another rate
    assert error.value.code == 2 and "other data, folds or options" in capsys.readouterr().err


def test_every_arm_is_something_that_train_understands():
    args = parse(["--data", "D"])
    for arm in TRAINING:
        given = train_options(study.options_of(args, arm, 1, 2))
        assert (given.seed, given.fold, given.folds) == (1, 2, 3)
        assert given.encoder == "efficientnet-lite0"
    assert len(TRAINING) >= 12 and len(INFERENCE) == 11 + 3
    assert train_options(study.options_of(args, "random weights", 0, 0)).weights is None


def test_jobs_are_paired_early_and_complete():
    args = parse(["--data", "D", "--seeds", "2", "--folds", "2", "--arms", "SCSE"])
    todo = study.jobs(args)
    assert todo[:4] == [("baseline", 0, 0), ("SCSE", 0, 0), ("baseline", 0, 1), ("SCSE", 0, 1)]
    assert len(todo) == len(set(todo)) == 2 * 4 + (len(INFERENCE) + 1) * 4 + 1
    assert (SEAMS, 1, 1) in todo and todo[-1] == (COSTS, 0, 0)


def test_a_run_that_fails_is_told_and_the_others_go_on(few, slides, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    def fails(args, *rest):
        raise FloatingPointError("step 3: the loss is nan")

    monkeypatch.setattr(train, "train", fails)
    with pytest.raises(SystemExit) as error:
        main(["--data", str(slides), "--folds", "2", "--seeds", "1", "--arms", "SCSE", "--out",
              str(tmp_path / "s"), *SMALL])
    captured = capsys.readouterr()
    assert error.value.code == 1
    assert "SCSE, seed 0, fold 1: train.py: step 3: the loss is nan" in captured.err
    assert "runs are missing" in captured.out


def test_bad_input_is_one_line(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    def refused(*argv):
        with pytest.raises(SystemExit) as error:
            main([*argv, "--out", str(tmp_path / "o")])
        err = capsys.readouterr().err
        assert error.value.code == 2 and err.count("\n") == 1
        return err

    assert "no such folder" in refused("--data", str(tmp_path / "no"), *SMALL)
    assert "--lr" in refused("--data", str(tmp_path), "--lr", "0")
    assert "invalid choice" in refused("--arms", "magic")
    assert "--seed" in refused("--seed", "3") and "--seeds 0" in refused("--seeds", "0")
    assert not (tmp_path / "o").exists()


def test_levels_are_the_halves_of_dice_at_each_threshold():
    import torch

    from minseg.crossval import count_levels
    from minseg.data.datasets import Item

    rng = np.random.default_rng(0)
    items = [Item(str(i), Path(), Path(), "ab"[i % 2]) for i in range(3)]
    pairs = [(rng.integers(0, 256, 400).astype(np.uint8), rng.integers(0, 2, 400)) for _ in items]
    found = study.levels(items, [count_levels(torch.from_numpy(p), torch.from_numpy(y))
                                 for p, y in pairs])
    for k, threshold in enumerate(THRESHOLDS):
        positive = [p >= threshold * 255 for p, _ in pairs]
        both = [2 * (a & (y > 0)).sum() for a, (_, y) in zip(positive, pairs)]
        size = [a.sum() + y.sum() for a, (_, y) in zip(positive, pairs)]
        assert found["a"][k] == [both[0] + both[2], size[0] + size[2]]
        assert found["b"][k] == [both[1], size[1]]


@pytest.mark.slow
def test_quick_gives_the_same_numbers_twice(tmp_path):
    lines = []
    for name in "ab":
        main(["--quick", "--device", "cpu", "--out", str(tmp_path / name)])
        path = tmp_path / name / "results" / "study-quick.jsonl"
        lines.append([json.loads(line) for line in path.read_text("utf-8").splitlines()])
    for one, other in zip(*lines):
        assert one.get("levels") == other.get("levels") and one.get("ways") == other.get("ways")
        assert one["arm"] == other["arm"]


# What is published

PUBLISHED = sorted((ROOT / "docs/results").glob("study-*.json"))


def test_the_page_shows_the_table_as_it_was_written():
    studies = {path.stem.removeprefix("study-"): json.loads(path.read_text("utf-8"))
               for path in PUBLISHED}
    assert len(studies) >= 2
    assert study.table(studies) in (ROOT / "docs/study.md").read_text("utf-8")


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_summaries_follow_from_their_lines(path):
    found = json.loads(path.read_text("utf-8"))
    lines = [json.loads(line) for line in
             path.with_suffix(".jsonl").read_text("utf-8").splitlines()]
    args = parse(["--data", "D", "--folds", str(found["folds"]), "--seeds", str(found["seeds"])])
    args.arms = ["baseline", *(row["arm"] for row in found["effects"]["training"])]
    again = study.summarize(args, {(line["arm"], line["seed"], line["fold"]): line
                                   for line in lines})
    for family, rows in again["effects"].items():
        assert [study.cell(row) for row in rows] == [study.cell(row)
                                                     for row in found["effects"][family]]
    assert again["error_by_distance"] == found["error_by_distance"]
    assert 0.7 < found["baseline"]["dice"] < 0.95  # trained, and with room above
    few = path.stem == "study-sparse"  # what sampling does where most tiles hold nothing
    assert len(found["effects"]["training"]) >= (2 if few else 12)
    assert len(found["effects"]["inference"]) == 14
    assert not any("dirty" in commit for commit in found["commit"])


def test_every_interval_on_the_page_is_in_a_summary():
    found = [json.loads(path.read_text("utf-8")) for path in PUBLISHED]
    cells = " ".join(study.cell(row) for one in found for rows in
                     ([one["same_again"]], *one["effects"].values()) for row in rows)
    text = " ".join((ROOT / "docs/study.md").read_text("utf-8").split())
    quoted = re.findall(r"[+-]\d\.\d+ \[[^\]]+\]", text)
    assert len(quoted) > 20
    for interval in quoted:
        assert interval in cells, interval


def test_a_study_grows_but_does_not_shrink(tmp_path):
    def settle(*argv):
        args = parse(["--data", "D", "--out", str(tmp_path / "o"), *argv])
        study.check_settings(args)
        return args

    settle("--seeds", "2", "--arms", "SCSE", "--lr", "1e-3")
    args = settle("--seeds", "1", "--arms", "gates", "--lr", "1e-3")
    assert args.arms == ["baseline", "gates", "SCSE"] and args.seeds == 2
    with pytest.raises(ValueError, match="other data, folds or options"):
        settle("--folds", "5", "--lr", "1e-3")
    assert study.is_left(args, (COSTS, 0, 0))
    assert not study.is_left(args, (SEAMS, 0, 0))  # there is no network yet
    for job, result in ((COSTS, {"rows": {"baseline": 1, "SCSE": 1}}), ("baseline", {"levels": 1})):
        folder = study.folder_of(args, job, 0, 0)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result))
    assert study.is_left(args, (COSTS, 0, 0))  # gates have come since
    assert study.is_left(args, (SEAMS, 0, 0)) and not study.is_left(args, ("baseline", 0, 0))


def test_the_page_tells_the_error_at_seams():
    text = " ".join((ROOT / "docs/study.md").read_text("utf-8").split())
    for path in PUBLISHED:
        found = json.loads(path.read_text("utf-8"))
        near = {way: 100 * np.mean(errors[:16]) for way, errors in
                found["error_by_distance"].items()}
        far = 100 * np.mean(found["error_by_distance"]["no overlap"][16:32])
        line = (f"| {path.stem.removeprefix('study-')} | {near['no overlap']:.2f} % | "
                f"{far:.2f} % | ")
        line += " | ".join(f"{near[f'overlap 0.5, {window}']:.2f} %" for window in
                           ("uniform", "linear", "gaussian", "hann"))
        assert line in text
        assert found["command"] in text
