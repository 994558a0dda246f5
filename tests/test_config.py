"""A run knows what it was made from: nothing else is mixed into it, and it may lie anywhere."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import train
from minseg import EfficientNet
from minseg.pretrained import names
from minseg.run import config, loop
from minseg.run.checkpoint import load_model
from minseg.synthetic import write_slides

QUICK = ("--encoder efficientnet-lite0 --scale 2 --tile 64 --epochs 1 --batch 4 --negatives 1 "
         "--folds 2 --device cpu").split()
pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "slides"
    write_slides(folder, 4, seed=7, height=220, width=180)
    return folder


@pytest.fixture
def data(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "here" / "slides")


@pytest.fixture(scope="module")
def half(small_networks, drawn, tmp_path_factory):
    """A run of which fold 0 is complete."""
    out = tmp_path_factory.mktemp("half") / "runs" / "o"
    start(drawn, out, "--fold", 0)
    return out


@pytest.fixture
def out(half, tmp_path):
    """The same, in a folder of the test's own."""
    return shutil.copytree(half, tmp_path / "runs" / "o")


def start(data, out, *options):
    train.main(["--data", str(data), "--out", str(out), *QUICK, *map(str, options)])


def refused(capsys, code, data, out, *options):
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        start(data, out, *options)
    lines = capsys.readouterr().err.splitlines()
    assert error.value.code == code and len(lines) == 1, lines
    return lines[0]


def change(path):
    """Other pixels in a file of the same name and time."""
    before = path.stat()
    with Image.open(path) as image:
        Image.fromarray(np.asarray(image)[::-1].copy()).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_data_may_move_and_be_copied_or_linked_between_folds(data, out, tmp_path):
    shutil.copytree(data, tmp_path / "there")  # with other times
    shutil.rmtree(data.parent)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    start(tmp_path / "link", out, "--fold", 1)
    assert len(json.loads((out / "summary.json").read_text())["folds"]) == 2
    noted = json.loads((out / "config.json").read_text())["made_from"]["images"]["slide00"]
    assert {*noted} == {"image", "mask"} and len(noted["image"]["sha256"]) == 32
    assert noted["image"]["bytes"] == (tmp_path / "there/images/slide00.png").stat().st_size


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_file_that_changed_between_two_folds_is_refused_by_name_until_it_is_put_back(
        data, out, tmp_path, capsys, part):
    path = data / part / "slide02.png"
    shutil.copy(path, tmp_path / "kept")
    change(path)
    for options in (["--fold", 1], ["--resume"]):
        line = refused(capsys, 2, data, out, *options)
        assert f"changed since: slide02 ({part[:-1]}): put back what was there" in line
    assert not (out / "summary.json").exists() and not (out / "fold1").exists()
    shutil.copy(tmp_path / "kept", path)
    start(data, out, "--resume")
    assert (out / "summary.json").exists()


def test_images_that_are_new_or_gone_are_named(data, out, capsys):
    for part in ("images", "masks"):
        (data / part / "slide00.png").rename(data / part / "other.png")
    (data / "groups.csv").unlink()
    line = refused(capsys, 2, data, out, "--fold", 1)
    assert "other (is new), slide00 (is not there any more)" in line


@pytest.mark.parametrize("when", ["begin_fold", "predict"])
def test_a_file_that_changes_while_the_program_runs_is_not_scored(
        data, tmp_path, capsys, monkeypatch, when):
    function = getattr(train, when)

    def change_first(*arguments, **options):
        if when == "begin_fold" or options.get("folder"):  # not for the log's score
            change(data / "masks" / "slide03.png")
        return function(*arguments, **options)

    out, kept = tmp_path / "runs" / "o", shutil.copy(data / "masks" / "slide03.png", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(train, when, change_first)
        if when == "begin_fold":  # noticed before hours of training
            patch.setattr(train, "training_step", lambda *_, **__: pytest.fail("it trained"))
        line = refused(capsys, 1, data, out, "--fold", 0)
    assert "slide03 (mask) changed while the program was running: put back" in line
    assert not (out / "fold0" / "model.pt").exists()
    shutil.copy(kept, data / "masks" / "slide03.png")
    if when == "predict":  # the network was saved before
        monkeypatch.setattr(train, "training_step", lambda *_, **__: pytest.fail("it trained"))
    start(data, out, "--fold", 0, "--resume")
    assert (out / "fold0" / "score.json").exists()


def test_a_run_whose_config_is_missing_is_not_taken_for_a_new_one(data, out, capsys):
    (out / "config.json").unlink()
    line = refused(capsys, 2, data, out, "--fold", 1)
    assert "config.json: is missing" in line and "give another --out" in line


def test_a_run_of_an_older_version_goes_on_with_a_line(data, out, capsys):
    noted = json.loads((out / "config.json").read_text())
    del noted["made_from"]
    (out / "config.json").write_text(json.dumps(noted))
    capsys.readouterr()
    start(data, out, "--fold", 1)
    assert "is of an older version" in capsys.readouterr().out


@pytest.mark.parametrize("counted", [None, config.DEFAULTS - 1, config.DEFAULTS + 1])
def test_a_run_of_a_version_that_trains_in_another_way_is_refused(data, out, capsys, counted):
    path = out / "config.json"
    noted = json.loads(path.read_text())
    noted.pop("defaults")  # as before it was counted
    path.write_text(json.dumps(noted if counted is None else {**noted, "defaults": counted}))
    line = refused(capsys, 2, data, out, "--fold", 1)
    assert "holds a run of another version of minseg" in line and "give another --out" in line


def test_the_weights_may_move_but_not_change(data, tmp_path, capsys):
    def write(path):
        encoder = EfficientNet("efficientnet-lite0", num_classes=0)
        torch.save({f"{theirs}.{part}": encoder.get_submodule(ours).state_dict()[part]
                    for ours, theirs in names(encoder, "timm").items() if "head" not in ours
                    for part in encoder.get_submodule(ours).state_dict()}, path)
        return path

    out, first = tmp_path / "runs" / "o", write(tmp_path / "efficientnet_lite0_ra.pth")
    start(data, out, "--fold", 0, "--weights", first)
    other = write(tmp_path / "efficientnet_lite0_ra2.pth")
    line = refused(capsys, 2, data, out, "--fold", 1, "--weights", other)
    assert "changed since: --weights" in line
    assert "other settings (--weights)" in refused(capsys, 2, data, out, "--fold", 1)
    (tmp_path / "moved").mkdir()
    start(data, out, "--fold", 1, "--weights", shutil.move(first, tmp_path / "moved"))
    assert (out / "summary.json").exists()


def test_the_same_image_under_two_names_in_two_folds_is_named(data, tmp_path, capsys):
    for part in ("images", "masks"):
        shutil.copy(data / part / "slide00.png", data / part / "slide03.png")
    (data / "groups.csv").unlink()
    start(data, tmp_path / "runs" / "o", "--fold", 0, "--folds", 4)
    assert ("the same image under different names, in different folds: slide00 = slide03"
            in capsys.readouterr().out)
    (data / "groups.csv").write_text("id,group\nslide00,a\nslide01,b\nslide02,c\nslide03,a\n")
    start(data, tmp_path / "runs" / "grouped", "--fold", 0, "--folds", 3)
    assert "the same image" not in capsys.readouterr().out


@pytest.mark.slow
def test_old_tiles_go_when_a_mask_has_changed(data, tmp_path):
    folder, tiles = tmp_path / "runs" / "first", tmp_path / "runs" / "tiles"
    start(data, folder, "--fold", 0, "--epochs", 0.1)
    before = {path.name for path in tiles.glob("*.tiles")}
    change(data / "masks" / "slide01.png")
    start(data, tmp_path / "runs" / "second", "--fold", 0)
    after = {path.name for path in tiles.glob("*.tiles")}
    assert len(after) == 4 and len(after - before) == 1
    assert {path.stem for path in tiles.glob("*.json")} == {name[:-6] for name in after}


# A run that was stopped on purpose


@pytest.fixture
def stopped(data, tmp_path, monkeypatch, capsys):
    """A run of four epochs that was stopped in the third."""
    function, calls = train.training_step, []

    def ask(*arguments, **options):
        calls.append(1)
        if len(calls) == 2 * steps + 1:
            os.kill(os.getpid(), 2)
        return function(*arguments, **options)

    out = tmp_path / "runs" / "o"
    start(data, tmp_path / "runs" / "one", "--fold", 0)
    with open(tmp_path / "runs" / "one" / "fold0" / "log.csv") as file:
        steps = int(next(csv.DictReader(file))["steps"])
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as error:
        patch.setattr(train, "training_step", ask)
        start(data, out, "--fold", 0, "--epochs", 4)
    assert error.value.code == 130
    said = capsys.readouterr().err
    assert f"stopped after step {2 * steps + 1} of {4 * steps}" in said
    epochs = config.whole_hundredths((2 * steps + 1) / steps)
    assert f"with --epochs {epochs:g} added" in said
    return out, steps, epochs


def test_a_stopped_run_can_be_closed_and_keeps_what_it_has_learnt(
        data, stopped, capsys, monkeypatch):
    out, steps, epochs = stopped
    kept = torch.load(out / "fold0" / "resume.pt", weights_only=True)
    line = refused(capsys, 2, data, out, "--fold", 0, "--resume", "--epochs", 3)
    assert f"--epochs {epochs:g} closes the fold" in line
    with monkeypatch.context() as patch:
        patch.setattr(train, "training_step", lambda *_, **__: pytest.fail("it trained"))
        start(data, out, "--fold", 0, "--resume", "--epochs", epochs)
    assert f"is closed after step {2 * steps + 1} of {4 * steps}" in capsys.readouterr().out
    net, _ = load_model(out / "fold0" / "model.pt")
    average = {name.removeprefix("module."): value for name, value in kept["ema"].items()}
    assert all(torch.equal(value, average[name]) for name, value in net.state_dict().items())
    with open(out / "fold0" / "log.csv") as file:
        assert [int(row["steps"]) for row in csv.DictReader(file)] == [
            steps, 2 * steps, 2 * steps + 1]
    noted = json.loads((out / "config.json").read_text())
    assert noted["epochs"] == 4 and noted["closed"] == {"fold0": epochs}
    assert {path.name for path in (out / "fold0").iterdir()} >= {"score.json", "preview.png"}
    line = refused(capsys, 2, data, out, "--fold", 1, "--resume", "--epochs", 2)
    assert "fold1: nothing is saved that --epochs 2 could close" in line
    capsys.readouterr()
    start(data, out, "--fold", 1, "--epochs", 4)
    assert json.loads((out / "summary.json").read_text())["closed"] == {"fold0": epochs}
    assert f"fold0 was ended early, after {epochs:g} epochs" in capsys.readouterr().out


def test_other_epochs_without_resume_are_another_run(data, out, capsys):
    for options in (["--fold", 1, "--epochs", 0.5], ["--resume", "--epochs", 5]):
        assert "other settings (--epochs)" in refused(capsys, 2, data, out, *options)


# Nothing between the last step and model.pt may cost the network


@pytest.mark.parametrize("where", [
    "score", "finish_fold", *(pytest.param(name, marks=pytest.mark.slow)
                              for name in ("predict", "save_model", "save_log"))])
def test_after_the_last_step_no_failure_costs_the_network(
        data, tmp_path, monkeypatch, capsys, where):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    out, command = tmp_path / "runs" / "o", ["--fold", 0]
    with monkeypatch.context() as patch:
        patch.setattr(loop if where == "save_log" else train, where, fail)
        assert "No space left on device: free some" in refused(capsys, 1, data, out, *command)
    monkeypatch.setattr(train, "training_step", lambda *_, **__: pytest.fail("it trained again"))
    start(data, out, *command, "--resume")
    assert {path.name for path in (out / "fold0").iterdir()} == {
        ".lock", "log.csv", "curves.png", "preview.png", "score.json", "probabilities", "model.pt"}


def test_a_fold_whose_picture_failed_is_drawn_by_the_next_start(data, out):
    score = (out / "fold0" / "score.json").read_text()
    for name in ("score.json", "preview.png"):
        (out / "fold0" / name).unlink()
    start(data, out, "--fold", 0, "--resume")
    assert (out / "fold0" / "score.json").read_text() == score
    assert (out / "fold0" / "preview.png").exists()


def test_a_full_disk_after_the_last_step_still_gives_the_smaller_model(
        data, tmp_path, monkeypatch, capsys):
    def full(path, **entries):
        if entries["step"]:
            raise OSError(28, "No space left on device", str(path))
        path.write_bytes(b"first")

    def room_for_it(path, *arguments, **facts):
        assert not path.with_name("resume.pt").exists()
        save(path, *arguments, **facts)

    save = train.save_model
    monkeypatch.setattr(loop, "write_checkpoint", full)
    monkeypatch.setattr(train, "save_model", room_for_it)
    out = tmp_path / "runs" / "o"
    start(data, out, "--fold", 0)
    line, = capsys.readouterr().err.splitlines()
    assert "resume.pt: No space left on device: goes on without it" in line
    assert (out / "fold0" / "model.pt").exists() and (out / "fold0" / "score.json").exists()


def test_a_disk_too_small_for_a_checkpoint_is_noticed_before_the_first_step(
        data, tmp_path, monkeypatch, capsys):
    def full(path, **entries):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(loop, "write_checkpoint", full)
    monkeypatch.setattr(train, "training_step", lambda *_, **__: pytest.fail("it trained"))
    line = refused(capsys, 1, data, tmp_path / "runs" / "o", "--fold", 0)
    assert "resume.pt: No space left on device: free some" in line and "with --resume" in line


def test_a_terminal_that_is_gone_does_not_end_a_run(data, tmp_path, monkeypatch):
    def closed(*text, **options):
        raise BrokenPipeError

    monkeypatch.setattr("minseg.run.report.print", closed, raising=False)
    start(data, tmp_path / "runs" / "o", "--fold", 0)
    assert (tmp_path / "runs" / "o" / "fold0" / "model.pt").exists()


def test_the_data_of_a_run_cannot_be_changed():
    data = config.Data([], [0, 1], None, [0], [], None, {})
    assert data.held_out(0) == []
    with pytest.raises(AttributeError):
        data.folds = [1, 0]
