import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train
from lab import harness, measure, pages, plots, study
from lab.harness import THRESHOLDS
from lab.study import ARMS, SCORED, WAYS, main, parse
from minseg.run.errors import Stopped
from minseg.run.options import train_options

ROOT = Path(__file__).parent.parent
SMALL = ["--encoder", "efficientnet-lite0", "--weights", "none", "--scale", "4", "--tile", "32",
         "--steps", "8", "--batch", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    from minseg.synthetic import write_slides

    folder = tmp_path_factory.mktemp("study") / "slides"
    write_slides(folder, 5, height=256, width=256, glomeruli=(4, 8))  # folds of unequal length
    return folder


@pytest.fixture
def few(monkeypatch):
    """Two ways to predict, and one seed more of the baseline, instead of all."""
    two = {name: WAYS[name] for name in (SCORED, "overlap 0, uniform")}
    monkeypatch.setattr(study, "WAYS", two)
    monkeypatch.setattr(plots, "SEAMS", tuple(two))
    monkeypatch.setattr(study, "LUCK_SEEDS", 2)


@pytest.mark.slow
def test_a_study_runs_stops_goes_on_and_reports(few, slides, tmp_path, capsys, monkeypatch):
    argv = ["--data", str(slides), "--folds", "2", "--seeds", "1", "--arms", "all empty tiles",
            "--docs", str(tmp_path / "d"), *SMALL]
    first = [*argv, "--out", str(tmp_path / "s")]
    trained, really = [], measure.train_minseg

    def stops(given, *rest, **options):
        if len(trained) == 5:
            trained.append("stopped")
            raise Stopped("after step 1 of 2")
        trained.append((given.negatives, given.seed, given.fold))
        return really(given, *rest, **options)

    monkeypatch.setattr(measure, "train_minseg", stops)
    with pytest.raises(KeyboardInterrupt):
        main(first)
    lines = study.read_lines(parse(first))
    assert set(lines) == {("baseline", 0, 0), ("baseline", 0, 1), ("baseline", 1, 0),
                          ("baseline", 1, 1), ("all empty tiles", 0, 0)}
    for line in lines.values():
        assert list(line["along"]) == ["1", "2", "4", "8"]
        assert line["objects"]["found"] + line["objects"]["missed"] > 0

    with pytest.raises(SystemExit) as ended:
        main(first)
    assert ended.value.code == 0 and trained[-2:] == ["stopped", ("all", 0, 1)]
    results = tmp_path / "d" / "results"
    found = json.loads((results / "study-slides.json").read_text("utf-8"))
    assert [row["arm"] for row in found["training"]] == ["all empty tiles"]
    assert [row["arm"] for row in found["ways"]] == ["overlap 0, uniform"]
    assert found["groups"] == 3 and found["baseline"]["seeds"] == 2
    assert set(found["seams"]) == set(found["objects"]) == set(study.WAYS)
    assert "tmp" not in (results / "study-slides.jsonl").read_text("utf-8") + json.dumps(found)
    assert found["command"].startswith("python -m lab.study --data slides --name slides --folds 2")
    assert found["command"].endswith("--arms 'all empty tiles'")
    for kind in plots.KINDS:
        assert Image.open(tmp_path / "d" / "figures" / f"study-slides-{kind}.png").width == 1600

    count = len(trained)
    with pytest.raises(SystemExit):
        main([*argv, "--out", str(tmp_path / "elsewhere")])  # what is published counts as done
    out = capsys.readouterr().out
    assert len(trained) == count and "are missing" not in out and "6 runs are there already" in out
    with pytest.raises(SystemExit) as error:
        main([*first, "--lr", "1e-3"])  # would be compared with runs at another rate
    assert error.value.code == 2 and "another --name" in capsys.readouterr().err


@pytest.mark.slow
def test_a_score_along_the_way_changes_nothing(few, slides, tmp_path, monkeypatch):
    """A run that is scored on its way ends with the same network as one that is not."""
    ends = []
    for number, marks in enumerate((study.lengths, lambda steps: [])):
        monkeypatch.setattr(study, "lengths", marks)
        args = parse(["--data", str(slides), "--folds", "2", "--seeds", "1", *SMALL, "--out",
                      str(tmp_path / str(number))])
        ends.append(study.run(args, "SCSE", 0, 1)["along"]["8"])
    assert ends[0] == ends[1]


def test_every_arm_is_something_that_train_understands():
    args = parse(["--data", "D"])
    for arm in ARMS:
        given = train_options(harness.options_of(args, ARMS[arm], 1, 2))
        assert (given.seed, given.fold, given.folds) == (1, 2, 3)
        assert given.encoder == "efficientnet-lite0"
    assert len(ARMS) == 17 and len(WAYS) == 9 and study.HOW.keys() <= ARMS.keys()
    assert train_options(harness.options_of(args, ARMS["random weights"], 0, 0)).weights is None


def test_open_arms_begin_open_and_the_lower_rate_is_lower():
    import torch

    from minseg import CBAM, AttentionGate

    given = train_options(["--encoder", "efficientnet-lite0", "--gates", "--attention", "cbam"])
    net, _ = study.build_open(given, 100, 0.3)
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, AttentionGate):
            skip = torch.rand(1, module.theta.in_channels, 8, 8)
            gate = torch.rand(1, module.phi.in_channels, 4, 4)
            assert module.attention(skip, gate).mean() > 0.85
        elif isinstance(module, CBAM):
            x = torch.rand(1, module.reduce.in_channels, 8, 8)
            assert (module.eval()(x) / x).mean() > 0.75  # c and s, each near 0.95
    first, second = (study.lower_rate(step, 100, 60) for step in (30, 80))
    assert first == train.learning_rate_share(30, 100, 60)
    assert second == pytest.approx(0.3 * train.learning_rate_share(80, 100, 60))


@pytest.mark.parametrize("arm", ["gates, open at first", "BCE + Dice, then Lovász at a lower rate"])
def test_arms_that_no_option_makes_are_trained_as_they_say(slides, tmp_path, monkeypatch, arm):
    def ends(*_, build, after_step):
        seen.append((build is study.build_open,
                     train.learning_rate_share is study.lower_rate))
        raise Stopped

    seen: list = []
    monkeypatch.setattr(train, "train", ends)
    args = parse(["--data", str(slides), "--folds", "2", *SMALL, "--out", str(tmp_path)])
    for job in (arm, "baseline"):
        with pytest.raises(Stopped):
            study.run(args, job, 0, 0)
    assert seen == [(arm.startswith("gates"), arm.startswith("BCE")), (False, False)]


def test_jobs_begin_with_the_baseline_and_are_complete():
    args = parse(["--data", "D", "--folds", "2", "--arms", "SCSE"])
    todo = study.jobs(args)
    assert todo[:3] == [("baseline", 0, 0), ("baseline", 0, 1), ("baseline", 1, 0)]
    assert todo[10:] == [("SCSE", 0, 0), ("SCSE", 0, 1), ("SCSE", 1, 0), ("SCSE", 1, 1)]
    assert todo[9] == ("baseline", 4, 1)


def test_a_run_that_fails_is_told_and_the_others_go_on(few, slides, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="python -m pip install -e '.[lab]'")

    def fails(*_, **options):
        raise FloatingPointError("step 3: the loss is nan")

    monkeypatch.setattr(measure, "train_minseg", fails)
    with pytest.raises(SystemExit) as error:
        main(["--data", str(slides), "--folds", "2", "--seeds", "1", "--arms", "SCSE", "--out",
              str(tmp_path / "s"), "--docs", str(tmp_path / "d"), *SMALL])
    captured = capsys.readouterr()
    assert error.value.code == 1
    assert "SCSE, seed 0, fold 1: step 3: the loss is nan" in captured.err
    assert "6 of 6 runs are missing" in captured.out and "nothing to report yet" in captured.out
    assert not (tmp_path / "d").exists()


def test_bad_input_is_one_line(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="python -m pip install -e '.[lab]'")

    def refused(*argv):
        with pytest.raises(SystemExit) as error:
            main([*argv, "--out", str(tmp_path / "o")])
        err = capsys.readouterr().err
        assert error.value.code == 2 and err.count("\n") == 1
        return err

    assert "no such folder" in refused("--data", str(tmp_path / "no"), *SMALL)
    assert "--lr" in refused("--data", str(tmp_path), "--lr", "0")
    assert "invalid choice" in refused("--arms", "magic")
    assert "--seed" in refused("--seed", "3") and "--epochs" in refused("--epochs=3")
    assert "--seeds 0" in refused("--seeds", "0") and "--steps 4" in refused("--steps", "4")
    assert not (tmp_path / "o").exists()


def test_levels_are_the_halves_of_dice_at_each_threshold():
    import torch

    from minseg.crossval import count_levels
    from minseg.files.masks import Item

    rng = np.random.default_rng(0)
    items = [Item(str(i), Path(), Path(), "ab"[i % 2]) for i in range(3)]
    pairs = [(rng.integers(0, 256, 400).astype(np.uint8), rng.integers(0, 2, 400)) for _ in items]
    found = harness.levels(items, [count_levels(torch.from_numpy(p), torch.from_numpy(y))
                                 for p, y in pairs])
    for k, threshold in enumerate(THRESHOLDS):
        positive = [p >= threshold * 255 for p, _ in pairs]
        both = [2 * (a & (y > 0)).sum() for a, (_, y) in zip(positive, pairs)]
        size = [a.sum() + y.sum() for a, (_, y) in zip(positive, pairs)]
        assert found["a"][k] == [both[0] + both[2], size[0] + size[2]]
        assert found["b"][k] == [both[1], size[1]]


def made_up(args):
    """Lines of a study in which the Dice of an arm is what `EFFECTS` says."""
    lines, groups = {}, [f"g{i}" for i in range(6)]
    for arm, seed, fold in study.jobs(args):
        def levels(steps, name=arm, seed=seed, fold=fold):
            dice = 7000 - 20_000 / steps + EFFECTS.get(name, 0) * steps / args.steps + 10 * seed
            return {group: [[round(dice) + 100 * i, 10_000]] * len(THRESHOLDS)
                    for i, group in enumerate(groups) if i % args.folds == fold}

        blind = arm == "gates" and seed == fold == 0
        objects = {"found": 0 if blind else 5 + fold, "missed": 7 if blind else 2 - fold,
                   "invented": seed, "split": 0}
        line = {"along": {str(steps): levels(steps) for steps in
                          [*study.lengths(args.steps), args.steps]}, "objects": objects}
        if arm == "baseline" and seed < study.WAY_SEEDS:
            line["ways"] = {way: {"levels": levels(args.steps, way), "objects": objects,
                                  "seams": {"wrong": [3, 1], "pixels": [10, 20]}} for way in WAYS}
        lines[arm, seed, fold] = {"arm": arm, "seed": seed, "fold": fold,
                                  "options": study.identity(args, arm), **line}
    return lines


EFFECTS = {"SCSE": 200, "BCE": -300, "Dice, then Lovász": -500, "eight views": 40}


@pytest.fixture
def args():
    return parse(["--data", "D", "--steps", "80", "--folds", "2", "--arms", "SCSE", "BCE",
                  "Dice, then Lovász", "gates"])


def test_a_summary_says_what_its_lines_say(args):
    lines = made_up(args)
    del lines["gates", 1, 1], lines["baseline", 3, 0]  # seeds that lack a fold do not count
    found = study.summarize(args, lines)
    rows = {row["arm"]: row for row in (*found["training"], *found["ways"])}
    assert found["baseline"]["seeds"] == 4 and rows["gates"]["seeds"] == 1
    # The baseline has the seeds 0, 1, 2 and 4, of which each adds 0.001; arms have 0 and 1.
    base = 0.7 - 0.025 + 0.025 + 0.00175
    assert found["baseline"]["dice"] == pytest.approx(base)
    assert found["baseline"]["along"]["10"] == pytest.approx(base - 0.2 + 0.025)
    assert found["baseline"]["groups"]["g3"]["10"] == pytest.approx(base - 0.17, abs=1e-4)
    for arm, effect in EFFECTS.items():
        own = 0 if arm in WAYS else -0.00125
        assert rows[arm]["difference"] == pytest.approx(effect / 10_000 + own), arm
    assert {steps: row["difference"] for steps, row in rows["SCSE"]["along"].items()} == (
        pytest.approx({"10": 0.0025 - 0.00125, "20": 0.005 - 0.00125, "40": 0.01 - 0.00125,
                       "80": 0.02 - 0.00125}))
    assert list(rows["Dice, then Lovász"]["along"]) == ["80"]  # before, it has one stage only
    assert rows["SCSE"]["moved"]["difference"] == pytest.approx(0.01)
    assert rows["BCE"]["moved"]["difference"] == pytest.approx(-0.015)
    assert "moved" not in rows["Dice, then Lovász"] and "luck" not in rows["eight views"]
    assert (rows["gates"]["found_nothing"], rows["gates"]["networks"]) == (1, 2)
    assert (rows["SCSE"]["found_nothing"], rows["SCSE"]["networks"]) == (0, 4)
    assert rows["SCSE"]["objects"] == {"found": 11, "missed": 3, "invented": 1.0, "split": 0}
    assert found["seams"]["eight views"] == {"wrong": [12, 4], "pixels": [40, 80]}
    assert found["fold_of"] == {f"g{i}": i % 2 for i in range(6)}
    assert "per_image" not in rows["SCSE"]
    args.images = {f"g{i}": 1 + 9 * (i == 5) for i in range(6)}
    [row, *_] = study.summarize(args, lines)["training"]
    assert row["per_image"]["difference"] == pytest.approx(row["difference"])  # alike everywhere
    assert plots.charts_of(found) == list(plots.KINDS)
    two_stages = {**found, "training": [rows["Dice, then Lovász"]], "seams": {}}
    assert plots.charts_of(two_stages) == ["effects"]


def test_lines_of_another_study_are_refused(args, tmp_path):
    args.out, args.published = tmp_path / "o", tmp_path / "p.jsonl"
    lines = made_up(args)
    args.published.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    given_up = {**lines["SCSE", 0, 0], "arm": "magic", "options": []}
    measure.write_json(args.out / "runs/magic/result.json", given_up)
    folds = [{"g0", "g2", "g4"}, {"g1", "g3", "g5"}]
    assert study.read_lines(args, folds) == lines
    with pytest.raises(ValueError, match=r"p.jsonl: .* another --name"):
        study.read_lines(args, folds[::-1])  # other data, or other groups
    more = {**lines["SCSE", 0, 0], "objects": {"found": 5, "missed": 3}}
    measure.write_json(args.out / "runs/more/result.json", more)
    with pytest.raises(ValueError, match=r"more/result.json: .* another --name"):
        study.read_lines(args, folds)  # other masks: an object more in this fold
    args.steps = 160
    with pytest.raises(ValueError, match=r"p.jsonl: .* another --name"):
        study.read_lines(args)


@pytest.mark.slow
def test_quick_gives_the_same_numbers_twice(tmp_path):
    lines = []
    for name in "ab":
        with pytest.raises(SystemExit) as ended:
            main(["--quick", "--device", "cpu", "--out", str(tmp_path / name)])
        assert ended.value.code == 0
        path = tmp_path / name / "results" / "study-quick.jsonl"
        lines.append([json.loads(line) for line in path.read_text("utf-8").splitlines()])
    assert len(lines[0]) == len(lines[1]) == 2 * (2 + 2)
    for one, other in zip(*lines):
        assert all(one[name] == other[name] for name in ("arm", "along", "objects"))
        assert one.get("ways") == other.get("ways")


@pytest.mark.slow
def test_costs_are_measured_for_each_arm(monkeypatch, tmp_path):
    timed = []

    def in_turn(functions, rounds):
        timed.extend(functions)
        return {name: 0.1 for name, function in functions.items() if function() is not None}

    monkeypatch.setattr(study, "in_turn", in_turn)
    main(["--costs", "--arms", "SCSE", "Dice", "random weights", "--weights", "none", "--tile",
          "32", "--batch", "2", "--device", "cpu", "--docs", str(tmp_path)])
    rows = json.loads((tmp_path / "results/costs.json").read_text("utf-8"))["rows"]
    assert rows["SCSE"]["parameters"] > rows["baseline"]["parameters"]
    assert rows["SCSE"]["kept_bytes"] > rows["baseline"]["kept_bytes"] > 0
    assert len(timed) == 4 and rows.keys() == {"baseline", "SCSE", "Dice", "random weights",
                                               study.AGAIN}
    assert rows["random weights"] == rows["baseline"]  # the same step


# What is published

PUBLISHED = pages.summaries(ROOT)


def same(one, other):
    """Whether two summaries are equal, but for rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == pytest.approx(other, abs=1e-4) if isinstance(one, float) else one == other


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_summaries_follow_from_their_lines(path):
    found = json.loads(path.read_text("utf-8"))
    assert same(json.loads(json.dumps(pages.summary(path))), found)
    if "fold_of" in found:  # not of small data sets
        assert found["images"].keys() == found["fold_of"].keys() and len(found["images"]) == 10
    assert all(re.fullmatch("[0-9a-f]{7,12}", commit) for commit in found["commit"])


def test_every_published_line_of_a_study_counts():
    for path in (path for path in PUBLISHED if path.stem.startswith("study-")):
        args = parse(shlex.split(json.loads(path.read_text("utf-8"))["command"])[3:])
        args.published, args.out = path.with_suffix(".jsonl"), Path("none")
        lines = args.published.read_text("utf-8").splitlines()
        assert len(study.read_lines(args)) == len(lines)


def test_the_main_studies_have_all_arms():
    for name in pages.STUDIES:
        found = json.loads((ROOT / f"docs/results/study-{name}.json").read_text("utf-8"))
        missing = ARMS.keys() - {row["arm"] for row in found["training"]} - {"baseline"}
        # Among the nuclei there are fewer empty tiles than full ones: the arm is the baseline.
        assert missing == ({"all empty tiles"} if name == "nuclei" else set())
        assert len(found["ways"]) == len(WAYS) - 2  # tiles were not turned yet
        assert found["steps"] >= 600 and found["baseline"]["seeds"] == 5
        assert all(row["seeds"] == 2 for row in found["training"])
