import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import train
from minseg import dice_score
from minseg.data.slides import read_mask
from minseg.data.synthetic import write_slides
from minseg.run.checkpoint import load_model

QUICK = "--encoder efficientnet-lite0 --scale 2 --tile 64 --epochs 1 --batch 4 --device cpu".split()


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "slides"
    write_slides(folder, 4, seed=1, height=300, width=256)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    train.main(["--data", str(data), "--out", str(out), *QUICK])
    return out


def refused(capsys, *arguments):
    """The one line that train.py leaves on stderr when it exits with 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        train.main([*QUICK, *map(str, arguments)])
    assert error.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "Traceback" not in lines[0], lines
    return lines[0]


def test_a_run_leaves_the_files_that_the_design_names(run):
    assert {p.name for p in run.iterdir()} == {"config.json", "fold0"}
    assert {p.name for p in (run / "fold0").iterdir()} == {
        "log.csv", "curves.png", "preview.png", "score.json", "model.pt"}
    config = json.loads((run / "config.json").read_text())
    assert config["encoder"] == "efficientnet-lite0" and config["loss"] == "bce+dice"
    rows = list(csv.DictReader(open(run / "fold0" / "log.csv")))
    assert [row["epoch"] for row in rows] == ["1"] and float(rows[0]["loss"]) > 0
    assert Image.open(run / "fold0" / "preview.png").width > 400


def test_the_score_is_that_of_the_saved_network_on_whole_held_out_images(run, data):
    net, facts = load_model(run / "fold0" / "model.pt")
    assert facts["scale"] == 2 and facts["tile"] == 64
    score = json.loads((run / "fold0" / "score.json").read_text())
    args = train.parse(["--data", str(data), *QUICK])
    slides = [train.LabelledSlide(item, 2) for item in train.find_slides(data)
              if item.id in score["dice"]]
    results = train.predict(net.to(memory_format=torch.channels_last), slides, args)
    for slide, result in zip(slides, results):
        truth = read_mask(slide.item.mask)
        assert result.shape == truth.shape
        assert dice_score(result >= 127.5, truth) == pytest.approx(score["dice"][slide.item.id])
    assert len({slide.item.group for slide in slides}) == 1  # a whole patient was held out


def test_the_same_seed_gives_the_same_run_to_the_last_bit_and_another_does_not(run, data, tmp_path):
    states = [load_model(run / "fold0" / "model.pt")[0].state_dict()]
    for seed in ("0", "1"):
        train.main(["--data", str(data), "--out", str(tmp_path / seed), "--seed", seed, *QUICK])
        states.append(load_model(tmp_path / seed / "fold0" / "model.pt")[0].state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_it_learns_to_overfit_one_batch():
    torch.manual_seed(0)
    image = (torch.rand(2, 3, 64, 64) * 60).byte()
    image[0, :, 16:48, 16:40] += 150
    image[1, :, 8:30, 30:60] += 150
    net = train.UNet("efficientnet-lite0", stochastic_depth=0).train()
    target = (image[:, :1] > 120).float()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    loss = train.make_loss("bce+dice+lovasz")
    for _ in range(25):
        optimizer.zero_grad()
        value = loss(net(image.float() / 255), target)
        value.backward()
        optimizer.step()
    assert dice_score(net(image.float() / 255) > 0, target) > 0.95


def test_the_learning_rate_warms_up_over_a_tenth_and_falls_to_nothing():
    rates = [train.learning_rate(step, 100) for step in range(100)]
    assert rates[:10] == [(k + 1) / 10 for k in range(10)]
    assert max(rates) == rates[10] == 1 and rates[-1] < 1e-3
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))


def test_every_bad_input_is_one_line_that_names_it(data, tmp_path, capsys):
    def copy(name):
        folder = tmp_path / name
        shutil.copytree(data, folder)
        return folder

    out = tmp_path / "out"
    assert "nowhere" in refused(capsys, "--data", tmp_path / "nowhere", "--out", out)

    folder = copy("missing")
    (folder / "masks" / "slide01.png").unlink()
    assert "slide01" in refused(capsys, "--data", folder, "--out", out)

    folder = copy("twice")
    Image.open(folder / "images" / "slide01.png").save(folder / "images" / "slide01.tif")
    assert "slide01" in refused(capsys, "--data", folder, "--out", out)

    folder = copy("size")
    Image.fromarray(np.zeros((300, 255), np.uint8)).save(folder / "masks" / "slide02.png")
    line = refused(capsys, "--data", folder, "--out", out)
    assert "slide02.png" in line and "300 x 255" in line and "300 x 256" in line

    folder = copy("values")
    Image.fromarray(np.full((300, 256), 7, np.uint8)).save(folder / "masks" / "slide03.png")
    line = refused(capsys, "--data", folder, "--out", out)
    assert "slide03.png" in line and "7" in line

    folder = copy("nothing")
    for mask in (folder / "masks").iterdir():
        Image.fromarray(np.zeros((300, 256), np.uint8)).save(mask)
    assert "no mask has a positive pixel" in refused(capsys, "--data", folder, "--out", out)

    folder = copy("empty")
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()
    assert "images" in refused(capsys, "--data", folder, "--out", out)

    folder = copy("broken")
    whole = (folder / "images" / "slide00.png").read_bytes()
    (folder / "images" / "slide00.png").write_bytes(whole[: len(whole) // 2])
    assert "slide00.png" in refused(capsys, "--data", folder, "--out", out)

    assert "9 folds of 2 groups" in refused(capsys, "--data", data, "--out", out, "--folds", "9")
    assert "--fold 2" in refused(capsys, "--data", data, "--out", out, "--fold", "2")
    assert "focal" in refused(capsys, "--data", data, "--out", out, "--loss", "focal")
    assert "--stride" in refused(capsys, "--data", data, "--out", out, "--stride", "65")
    assert "--lr" in refused(capsys, "--data", data, "--out", out, "--lr", "0")
    assert "--seed -1" in refused(capsys, "--data", data, "--out", out, "--seed", "-1")
    assert "--device" in refused(capsys, "--data", data, "--out", out, "--device", "meta")

    folder = copy("one")
    (folder / "groups.csv").write_text("id,group\n" + "".join(f"slide0{i},a\n" for i in range(4)))
    assert "is all one group" in refused(capsys, "--data", folder, "--out", out)
    (folder / "groups.csv").unlink()
    (folder / "groups.csv").symlink_to("gone.csv")
    assert "groups.csv" in refused(capsys, "--data", folder, "--out", out)

    folder = copy("tiny")
    for mask in (folder / "masks").iterdir():
        pixels = np.zeros((300, 256), np.uint8)
        pixels[100, 100] = 255
        Image.fromarray(pixels).save(mask)
    assert "--scale 2" in refused(capsys, "--data", folder, "--out", out)
    assert not out.exists()  # nothing was written


def test_an_unknown_encoder_is_refused_with_the_names_there_are(data, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        train.main(["--data", str(data), "--out", str(tmp_path / "x"), "--encoder", "resnet50"])
    assert error.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "resnet50" in err and "efficientnet-lite0" in err


def test_a_folder_that_holds_a_run_is_not_touched(run, data, capsys):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert "holds a run already" in refused(capsys, "--data", data, "--out", run)
    assert "other settings" in refused(capsys, "--data", data, "--out", run, "--fold", "1",
                                       "--lr", "1e-4")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_loss_that_is_no_longer_finite_ends_the_run_with_one_line(data, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        train.main(["--data", str(data), "--out", str(tmp_path / "o"), *QUICK, "--lr", "1e30"])
    assert error.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("and lower --lr")
    assert not (tmp_path / "o" / "fold0" / "model.pt").exists()


def test_stochastic_depth_comes_with_the_length_of_the_run(data, tmp_path):
    def drop(epochs):
        args = train.parse(["--data", str(data), "--out", str(tmp_path / "o"), *QUICK,
                            "--epochs", str(epochs)])
        net, network, _, tiles, *_ = train.prepare(args)
        assert net.encoder.blocks[-1].drop == pytest.approx(network["stochastic_depth"] * 15 / 16)
        return network["stochastic_depth"], len(tiles) / 4

    assert drop(1_000_000)[0] == 0.2
    share, steps = drop(1)
    assert share == pytest.approx(0.2 * steps / 50_000)


def test_images_without_groups_are_said_to_count_alone(data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "groups.csv").unlink()
    folders = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "o")]
    train.prepare(train.parse([*folders, *QUICK]))
    out = capsys.readouterr().out
    assert "each image counts alone" in out and "4 images in 4 groups" in out
