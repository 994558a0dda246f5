import copy
import csv
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import statistics
import sys
from contextlib import nullcontext
from datetime import date
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.nn import functional as F

import train
from minseg import (
    EfficientNet,
    dice_score,
    epoch_indices,
    make_loss,
    predict_image,
    rle_encode,
)
from minseg.crossval import count_levels
from minseg.files.datasets import PATIENTS, find_slides
from minseg.files.slides import open_slide
from minseg.pretrained import names
from minseg.run import loop, options, prepare
from minseg.run.checkpoint import load_model
from minseg.run.loop import locked
from minseg.run.options import RECIPES, train_options
from minseg.run.tiles import Tiles
from minseg.synthetic import synthetic_slide, write_slides
from minseg.training import seeded

QUICK = ("--encoder efficientnet-lite0 --scale 2 --tile 64 --epochs 1 --batch 4 --negatives 1 "
         "--device cpu").split()


pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "slides"
    write_slides(folder, 4, seed=7, height=220, width=180)
    return folder


@pytest.fixture(scope="module")
def run(small_networks, data, tmp_path_factory):
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
        "log.csv", "curves.png", "preview.png", "score.json", "model.pt", "probabilities", ".lock"}
    config = json.loads((run / "config.json").read_text())
    assert config["encoder"] == "efficientnet-lite0" and config["loss"] == "bce+batch_dice"
    assert config["tiles"] == sorted(path.name for path in (run.parent / "tiles").glob("*.tiles"))
    made_with = config["made_with"]
    assert made_with["torch"] == torch.__version__ and made_with["device"]
    assert made_with["command"].startswith("python train.py --data ")
    assert made_with["date"] == str(date.today()) and "commit" in made_with
    rows = list(csv.DictReader(open(run / "fold0" / "log.csv")))
    assert [row["epoch"] for row in rows] == ["1"] and float(rows[0]["loss"]) > 0
    assert Image.open(run / "fold0" / "preview.png").width > 400


def test_the_score_is_that_of_the_saved_network_on_whole_held_out_images(run, data, tmp_path):
    net, facts = load_model(run / "fold0" / "model.pt")
    assert facts["scale"] == 2 and facts["tile"] == 64 and facts["microns"] is None
    score = json.loads((run / "fold0" / "score.json").read_text())
    args = train_options(["--data", str(data), *QUICK])
    items = [item for item in find_slides(data) if item.id in score["images"]]
    (tmp_path / "again").mkdir()
    counts = train.predict(net, items, args, folder=tmp_path / "again")
    for item, count in zip(items, counts):
        truth = torch.from_numpy((np.asarray(Image.open(item.mask)) > 0).astype(np.uint8))
        kept = tifffile.imread(run / "fold0" / "probabilities" / f"{item.id}.tiff")
        again = tifffile.imread(tmp_path / "again" / f"{item.id}.tiff")
        assert kept.dtype == np.uint8 and (kept == again).all() and kept.shape == truth.shape
        kept = torch.from_numpy(kept)
        assert torch.equal(count, count_levels(kept, truth))
        assert dice_score(kept >= 127.5, truth) == pytest.approx(score["images"][item.id])
    assert len({item.group for item in items}) == 1  # a whole patient was held out


def test_written_probabilities_are_the_blended_predictions_at_the_size_of_the_file(
        run, data, tmp_path):
    net, _ = load_model(run / "fold0" / "model.pt")
    args = train_options(["--data", str(data), *QUICK])
    item = find_slides(data)[0]
    small = open_slide(item.image, 2)
    with torch.inference_mode():
        probability = predict_image(lambda t: net(t / 255).sigmoid(),
                                    small.read(0, 0, small.height, small.width), tile=64,
                                    stride=48, turn=True)
    large = F.interpolate(probability[None], scale_factor=2, mode="bilinear")[0, 0, :220, :180]
    train.predict(net, [item], args, overlap=0.25, folder=tmp_path)
    written = tifffile.imread(tmp_path / f"{item.id}.tiff")
    np.testing.assert_allclose(written, large.numpy() * 255, atol=0.6)


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
    loss = make_loss("bce+dice+lovasz")
    for _ in range(25):
        optimizer.zero_grad()
        value = loss(net(image.float() / 255), target)
        value.backward()
        optimizer.step()
    assert dice_score(net(image.float() / 255) > 0, target) > 0.95


def test_the_learning_rate_warms_up_over_a_tenth_of_the_steps_and_falls_to_zero():
    rates = [train.learning_rate_share(step, 100, 100) for step in range(100)]
    assert rates[:10] == [(k + 1) / 10 for k in range(10)]
    assert max(rates) == rates[10] == 1 and rates[-1] < 1e-3
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


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
    Image.fromarray(np.zeros((220, 179), np.uint8)).save(folder / "masks" / "slide02.png")
    line = refused(capsys, "--data", folder, "--out", out)
    assert "slide02.png" in line and "220 x 179" in line and "220 x 180" in line

    folder = copy("values")
    Image.fromarray(np.full((220, 180), 7, np.uint8)).save(folder / "masks" / "slide03.png")
    line = refused(capsys, "--data", folder, "--out", out)
    assert "slide03.png" in line and "7" in line

    folder = copy("nothing")
    for mask in (folder / "masks").iterdir():
        Image.fromarray(np.zeros((220, 180), np.uint8)).save(mask)
    assert "no mask has a positive pixel" in refused(capsys, "--data", folder, "--out", out)

    folder = copy("empty")
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()
    assert "images" in refused(capsys, "--data", folder, "--out", out)

    folder = copy("broken")
    whole = (folder / "images" / "slide00.png").read_bytes()
    (folder / "images" / "slide00.png").write_bytes(whole[: len(whole) // 2])
    assert "slide00.png" in refused(capsys, "--data", folder, "--out", out)

    assert "--folds 9: with 2 groups it is 2 to 2" in refused(capsys, "--data", data, "--out", out,
                                                              "--folds", "9")
    assert "--fold 2" in refused(capsys, "--data", data, "--out", out, "--fold", "2")
    assert "focal" in refused(capsys, "--data", data, "--out", out, "--loss", "focal")
    assert "--stride" in refused(capsys, "--data", data, "--out", out, "--stride", "65")
    assert "--lr" in refused(capsys, "--data", data, "--out", out, "--lr", "0")
    assert "--negatives" in refused(capsys, "--data", data, "--out", out, "--negatives", "-1")
    assert "--negatives" in refused(capsys, "--data", data, "--out", out, "--negatives", "some")
    assert "--attention" in refused(capsys, "--data", data, "--out", out, "--attention", "se")
    assert "between 0 and 1" in refused(capsys, "--data", data, "--out", out, "--then", "lovasz",
                                        "--epochs", "4", "--switch", "1")
    assert "focal" in refused(capsys, "--data", data, "--out", out, "--then", "focal")
    assert "it is a multiple of 8, such as 96 or 104" in refused(
        capsys, "--data", data, "--out", out, "--deep-supervision", "--tile", "100")
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
        pixels = np.zeros((220, 180), np.uint8)
        pixels[100, 100] = 255
        Image.fromarray(pixels).save(mask)
    assert "--scale 2" in refused(capsys, "--data", folder, "--out", out)
    assert not out.exists()  # nothing was written but tiles
    assert not [path for path in (tmp_path / "tiles").iterdir() if path.name.startswith(".")]


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
    assert capsys.readouterr().err.splitlines()[-1].endswith("a lower --lr")
    assert not (tmp_path / "o" / "fold0" / "model.pt").exists()


def test_the_rate_of_stochastic_depth_grows_with_the_length_of_the_run(data):
    args = train_options(["--data", str(data), *QUICK])
    for steps, share in [(1_000_000, 0.2), (50_000, 0.2), (1000, 0.004)]:
        net, network = train.build(args, steps)
        assert network["stochastic_depth"] == pytest.approx(share)
        last = len(net.encoder.blocks)
        assert net.encoder.blocks[-1].drop == pytest.approx(share * (last - 1) / last)


@pytest.mark.parametrize("options", [[], ["--deep-supervision"]])
def test_before_the_first_step_a_network_predicts_the_share_of_positive_pixels(
        data, tmp_path, monkeypatch, options):
    built, shares, build = [], [], train.build

    def keep(args, steps, positive):
        net, network = build(args, steps, positive)
        built.append(copy.deepcopy(net.eval()))
        shares.append(positive)
        return net, network

    monkeypatch.setattr(train, "train", partial(train.train, build=keep))
    monkeypatch.setattr(train, "training_step", lambda net, *_, **__: torch.zeros(()))
    train.main(["--data", str(data), "--out", str(tmp_path / "run"), *QUICK, *options])
    fold_of = json.loads((tmp_path / "run" / "config.json").read_text())["fold_of"]
    areas = [area for path in (tmp_path / "tiles").glob("*.json")
             if fold_of[path.stem.rpartition("-")[0]] != 0
             for area in json.loads(path.read_text())["area"]]
    assert shares[0].item() == pytest.approx(statistics.mean(areas))
    assert 0 < shares[0] < 0.5
    for head in [built[0].head, *(built[0].deep_heads or [])]:
        assert head.bias.sigmoid().item() == pytest.approx(shares[0].item())


class Recording:
    """What `train.py` does in a run, step by step: the learning rates, losses, tiles and
    micro-batches, the seeds of the augmentation, an EMA made by hand, and which network is scored
    at the end of each epoch."""

    def __init__(self, monkeypatch):
        self.rates, self.losses, self.seeds, self.accumulate = [], [], [], []
        self.tiles, self.micro_batches, self.scored, self.decay = [], [], [], []
        self.raw, self.average, self.seen_after = {}, {}, []
        monkeypatch.setattr(train, "train", partial(train.train, after_step=self.after_step))
        for name in ("augment", "training_step", "predict", "EMA"):
            monkeypatch.setattr(train, name, getattr(self, name)(getattr(train, name)))
        batches = Tiles.batches

        def seen(tiles, numbers, *options):
            self.tiles.append(numbers.tolist())
            return batches(tiles, numbers, *options)

        monkeypatch.setattr(Tiles, "batches", seen)

    def after_step(self, step, net):
        self.seen_after.append((step, is_average(net.state_dict(), self.average)))

    def augment(self, original):
        def seen(images, masks, tile, generator, strength):
            self.seeds.append(generator.initial_seed())
            return original(images, masks, tile, generator, strength)
        return seen

    def EMA(self, original):
        def seen(net, decay):
            self.decay.append(decay)
            self.average = {name: value.detach().double().clone()
                            for name, value in net.state_dict().items()}
            return original(net, decay)
        return seen

    def training_step(self, original):
        def seen(net, loss, micro_batches, optimizer, scaler, dtype=None, accumulate=1):
            micro_batches = list(micro_batches)
            self.rates.append([group["lr"] for group in optimizer.param_groups])
            self.losses.append(loss)
            self.micro_batches.append([len(images) for images, _ in micro_batches])
            self.accumulate.append(accumulate)
            value = original(net, loss, micro_batches, optimizer, scaler, dtype, accumulate)
            self.raw = {name: each.clone() for name, each in net.state_dict().items()}
            decay = self.decay[0]
            for name, each in self.raw.items():
                self.average[name] = decay * self.average[name] + (1 - decay) * each.double()
            return value
        return seen

    def predict(self, original):
        def seen(net, *arguments, **options):
            self.scored.append((copy.deepcopy(net.state_dict()), dict(self.average)))
            return original(net, *arguments, **options)
        return seen


@pytest.fixture(scope="module")
def recorded(small_networks, data, tmp_path_factory):
    """A run of two stages, with two micro-batches in a step and bins of positive tiles."""
    out = tmp_path_factory.mktemp("recorded") / "run"
    with pytest.MonkeyPatch.context() as patch:
        recording = Recording(patch)
        train.main(["--data", str(data), "--out", str(out), *QUICK, "--stride", "16", "--batch",
                    "2", "--accumulate", "2", "--epochs", "4", "--negatives", "balanced",
                    "--loss", "bce+batch_dice", "--then", "bce+lovasz", "--switch", "0.5",
                    "--lr", "1e-3"])
    recording.out, recording.steps = out, len(recording.rates)
    assert recording.steps >= 16
    return recording


def is_average(state, average):
    """Whether a network's state is an average made by hand."""
    return all(torch.allclose(value.double(), average[name], rtol=1e-4, atol=1e-6)
               for name, value in state.items() if value.is_floating_point())


def test_the_rate_rises_and_falls_in_each_stage(recorded):
    """A tenth of the stage's steps linearly, then half a cosine."""
    wanted = []
    for stage in (recorded.steps // 2, recorded.steps - recorded.steps // 2):
        warm_up = max(1, stage // 10)
        wanted += [(step + 1) / warm_up if step < warm_up else
                   (1 + np.cos(np.pi * (step - warm_up) / (stage - warm_up))) / 2
                   for step in range(stage)]
    for group in zip(*recorded.rates):  # without --weights the encoder learns at the same rate
        assert group == pytest.approx([1e-3 * share for share in wanted])


def test_an_experiment_sees_the_average_after_each_step(recorded):
    assert recorded.seen_after == [(step, True) for step in range(1, recorded.steps + 1)]


def test_the_warm_up_has_five_hundred_steps_at_most():
    rates = [train.learning_rate_share(step, 100_000, 100_000) for step in (0, 249, 499, 500)]
    assert rates[:3] == pytest.approx([1 / 500, 0.5, 1]) and rates[3] == 1
    assert train.learning_rate_share(1000, 100_000, 100_000) < 1


def test_an_encoder_learns_at_half_the_rate_only_if_its_weights_are_given():
    net = train.UNet("efficientnet-lite0")
    of_encoder = {id(p) for p in net.encoder.parameters()}
    for weights, share in ((None, 1), ("file.pth", 0.5)):
        groups = train.make_optimizer(net, SimpleNamespace(lr=8e-3, weights=weights)).param_groups
        for group in groups:
            [encoder] = {id(p) in of_encoder for p in group["params"]}
            assert group["lr"] == 8e-3 * (share if encoder else 1)


def test_each_stage_has_its_loss(recorded):
    half = recorded.steps // 2
    assert len({id(loss) for loss in recorded.losses[:half]}) == 1
    assert len({id(loss) for loss in recorded.losses[half:]}) == 1
    assert [loss.over_batch for loss in recorded.losses] == (
        [True] * half + [False] * (recorded.steps - half))


def test_each_step_has_the_micro_batches_that_were_asked_for(recorded):
    assert recorded.micro_batches == [[2, 2]] * recorded.steps
    assert recorded.accumulate == [2] * recorded.steps


def test_each_micro_batch_draws_an_augmentation_of_its_own(recorded):
    assert recorded.seeds == [seeded(0, "step", number).initial_seed()
                              for number in range(2 * recorded.steps)]
    assert len(set(recorded.seeds)) == 2 * recorded.steps


def test_each_epoch_draws_tiles_from_bins_of_their_positives(recorded):
    fold_of = json.loads((recorded.out / "config.json").read_text())["fold_of"]
    [*files] = sorted((recorded.out.parent / "tiles").glob("*.json"))
    area, offset, train_on = [], 0, []
    for file in files:
        areas = json.loads(file.read_text())["area"]
        if fold_of[file.stem.rpartition("-")[0]] != 0:
            train_on += range(offset, offset + len(areas))
        area += areas
        offset += len(areas)
    train_on = torch.tensor(train_on)
    for epoch, drawn in enumerate(recorded.tiles):
        wanted = train_on[epoch_indices(torch.tensor(area)[train_on], negatives=1, bins=4,
                                        generator=seeded(0, "epoch", epoch))]
        drawn = [number for batch in drawn for number in batch]
        assert drawn == wanted[: len(drawn)].tolist() and len(wanted) - len(drawn) < 4


def test_the_average_of_the_weights_and_statistics_is_logged_scored_and_saved(recorded):
    """decay = 1 - 1 / max(10, steps / 20)"""
    assert recorded.decay == [pytest.approx(1 - 1 / max(10, recorded.steps / 20))]
    assert len(recorded.scored) == 4 + 1  # after each epoch, and at the end
    for state, average in recorded.scored:
        assert is_average(state, average)
    saved = load_model(recorded.out / "fold0" / "model.pt")[0].state_dict()
    assert is_average(saved, recorded.average)
    assert not is_average(recorded.raw, recorded.average)
    statistics = {name: value for name, value in recorded.raw.items() if "running_var" in name}
    assert statistics and not is_average(statistics, recorded.average)


@pytest.mark.parametrize("epochs, refused", [(0.24, True), (0.26, False)])
def test_two_stages_need_two_steps_of_the_tiles_that_a_fold_is_trained_on(epochs, refused):
    """Of twelve tiles, six belong to the fold: the rest make six steps, all together twelve."""
    tiles = SimpleNamespace(places=[(k // 6, 0, 0) for k in range(12)], mask_area=torch.ones(12))
    args = SimpleNamespace(then="dice", negatives="all", batch=1, accumulate=1, seed=0,
                           epochs=epochs)
    with pytest.raises(ValueError, match="trained for one step") if refused else nullcontext():
        prepare.check_stages(args, tiles, [0, 1], [0])


def test_stochastic_depth_does_not_repeat_the_numbers_of_augmentation(data, tmp_path, monkeypatch):
    augmentation, depth = [], []
    augment, step = train.augment, train.training_step

    def seen(images, masks, tile, generator, strength):
        augmentation.append(generator.initial_seed())
        return augment(images, masks, tile, generator, strength)

    def stepped(*arguments, **options):
        depth.append(torch.initial_seed())
        return step(*arguments, **options)

    monkeypatch.setattr(train, "augment", seen)
    monkeypatch.setattr(train, "training_step", stepped)
    train.main(["--data", str(data), "--out", str(tmp_path / "run"), *QUICK])
    assert len(set(depth)) == len(depth) == len(augmentation) > 1
    assert not set(depth) & set(augmentation)


def test_published_weights_set_padding_and_mean_and_learn_at_a_lower_rate(
        data, tmp_path, capsys, monkeypatch):
    torch.manual_seed(3)
    trained = EfficientNet("efficientnet-lite0", num_classes=0)
    file = tmp_path / "efficientnet_lite0_ra.pth"
    torch.save({f"{theirs}.{part}": trained.get_submodule(ours).state_dict()[part]
                for ours, theirs in names(trained, "timm").items() if "head" not in ours
                for part in trained.get_submodule(ours).state_dict()}, file)
    before, groups, tops = [], [], []

    def adamw(given, **options):
        optimizer = torch.optim.SGD(given, lr=0)  # only to see what it is given
        groups.extend(optimizer.param_groups)
        tops.extend(group["lr"] for group in groups)
        return optimizer

    def build(*args):
        net, network = build_(*args)
        before.append(net.encoder.state_dict()["stem.0.weight"].clone())
        return net, network

    build_ = train.build
    monkeypatch.setattr(train.torch.optim, "AdamW", adamw)
    monkeypatch.setattr(train, "train", partial(train.train, build=build))
    out = tmp_path / "o"
    train.main(["--data", str(data), "--out", str(out), *QUICK, "--weights", str(file),
                "--lr", "1e-3"])
    assert torch.equal(before[0], trained.stem[0].weight)
    net, _ = load_model(out / "fold0" / "model.pt")
    assert (net.encoder.padding, net.encoder.bn_eps) == ("symmetric", 1e-5)
    assert net.encoder.stem[1].eps == 1e-5 and not net.encoder.stem[0].same
    assert net.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert net.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])

    encoder = {name: p for name, p in net.named_parameters() if name.startswith("encoder.")}
    inside, outside = ([g for g, top in zip(groups, tops) if top == rate]
                       for rate in (0.5e-3, 1e-3))
    assert len(inside) + len(outside) == len(groups)
    assert sum(len(g["params"]) for g in inside) == len(encoder)
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))
    for group in groups:
        shrunk = {p.ndim > 1 for p in group["params"]}
        assert shrunk == {group["weight_decay"] == 1e-2}

    file.write_bytes(file.read_bytes()[:1000])
    out = tmp_path / "cut"
    line = refused(capsys, "--data", data, "--out", out, "--weights", file)
    assert f"{file}: is cut off or damaged" in line
    model = tmp_path / "o" / "fold0" / "model.pt"
    line = refused(capsys, "--data", data, "--out", out, "--weights", model)
    assert "is a minseg checkpoint" in line
    assert "--augment -1" in refused(capsys, "--data", data, "--out", out, "--augment", "-1")
    assert not out.exists()


def test_two_stages_switch_the_loss_at_their_epoch_and_warm_up_again(data, tmp_path, monkeypatch):
    used = []

    def counted(spec):
        def loss(logits, target):
            used.append(spec)
            return logits.square().mean()
        return loss

    monkeypatch.setattr(train, "make_loss", counted)
    train.main(["--data", str(data), "--out", str(tmp_path / "o"), *QUICK, "--epochs", "3",
                "--scale", "4", "--loss", "dice", "--then", "0.5*lovasz+bce", "--switch", "0.7"])
    rows = list(csv.DictReader(open(tmp_path / "o" / "fold0" / "log.csv")))
    assert [row["stage"] for row in rows] == ["1", "1", "2"]
    steps = int(rows[0]["steps"])
    assert used == ["dice"] * 2 * steps + ["0.5*lovasz+bce"] * steps

    rates = [train.learning_rate_share(step, 100, 60) for step in range(100)]
    assert rates[:60] == [train.learning_rate_share(step, 60, 60) for step in range(60)]
    assert rates[60:] == [train.learning_rate_share(step, 40, 40) for step in range(40)]
    assert rates[59] < 0.01 and rates[60] == 0.25 and rates[64] == 1 and rates[99] < 0.01


def test_two_stages_in_a_run_of_one_step_are_refused_before_anything_is_written(
        data, tmp_path, capsys):
    one_step = ["--data", data, "--out", tmp_path / "o", "--batch", "1000", "--then", "lovasz"]
    line = refused(capsys, *one_step)
    assert "--then lovasz: fold 0 is trained for one step only" in line and "raise --epochs" in line
    assert not (tmp_path / "o").exists()
    for enough in (["--epochs", "1.5"], ["--batch", "4"]):
        train.prepare(train_options([*QUICK, *map(str, one_step), *enough]))


def test_folds_trained_separately_or_in_one_command_give_the_same_run(data, run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "apart")
    places = ["--data", str(data), "--out", str(tmp_path / "apart"), *QUICK, "--folds", "2"]
    train.main([*places, "--fold", "1"])
    assert not (tmp_path / "apart" / "fold2").exists()
    row = ["--data", str(data), "--out", str(tmp_path / "row"), *QUICK, "--folds", "2"]
    train.main(row)
    for fold in ("fold0", "fold1"):
        states = [load_model(tmp_path / name / fold / "model.pt")[0].state_dict()
                  for name in ("apart", "row")]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    texts = [(tmp_path / name / "summary.json").read_text() for name in ("apart", "row")]
    assert texts[0] == texts[1]

    before = {p: p.read_bytes() for p in (tmp_path / "row").rglob("*") if p.is_file()}
    capsys.readouterr()
    train.main(row)  # nothing is left to do: it says so and changes nothing
    out = capsys.readouterr().out
    assert out.count("is complete already") == 2
    assert re.fullmatch(r"took \d+ s", out.splitlines()[-1])
    assert {p: p.read_bytes() for p in (tmp_path / "row").rglob("*") if p.is_file()} == before

    groups = [{slide.group for slide in find_slides(data) if slide.id in score["images"]}
              for score in (json.loads((tmp_path / "row" / fold / "score.json").read_text())
                            for fold in ("fold0", "fold1"))]
    assert groups[0] and groups[1] and not groups[0] & groups[1]


def test_there_is_no_summary_until_every_fold_is_complete(run, capsys):
    assert not (run / "summary.json").exists()
    slides, folds = [], [0, 1]
    train.summarize(run, slides, folds)
    assert "fold1 still to come" in capsys.readouterr().out


def test_every_trick_together_trains_and_can_be_used(data, tmp_path):
    train.main(["--data", str(data), "--out", str(tmp_path / "o"), *QUICK, "--epochs", "2",
                "--scale", "4", "--gates", "--attention", "scse", "--hypercolumn",
                "--deep-supervision", "--then", "dice+lovasz", "--negatives", "balanced"])
    net, _ = load_model(tmp_path / "o" / "fold0" / "model.pt")
    assert net.hypercolumn and net.block4.gate and net.deep_heads
    assert net(torch.rand(1, 3, 40, 40)).shape == (1, 1, 40, 40)


def test_each_epoch_draws_as_many_negatives_as_asked_and_others_each_time(
        data, tmp_path, monkeypatch):
    drawn = []

    def recording(mask_area, **options):
        indices = train_indices(mask_area, **options)
        drawn.append((mask_area[indices], indices.tolist(), options))
        return indices

    train_indices = prepare.epoch_indices
    monkeypatch.setattr(prepare, "epoch_indices", recording)
    train.main(["--data", str(data), "--out", str(tmp_path / "o"), *QUICK, "--epochs", "2",
                "--tile", "32", "--batch", "64", "--negatives", "0.5"])
    *_, first, second = drawn  # before them, draws to count
    for area, _, given in (first, second):
        positives = int((area > 0).sum())
        assert int((area == 0).sum()) == round(0.5 * positives) and positives > 10
        assert given["negatives"] == 0.5 and given["bins"] is None
    assert set(first[1]) != set(second[1])


def test_the_defaults_suit_slides_with_few_objects():
    args = train_options([])
    assert (args.loss, args.negatives) == ("bce+batch_dice", 1)


def test_a_recipe_sets_and_prints_options_and_those_of_the_user_take_precedence(capsys):
    args = train_options(["--recipe", "post"])
    assert (args.tile, args.stride, args.batch, args.loss, args.then, args.negatives) == (
        640, 320, 16, "dice", "lovasz", 1.0)
    assert capsys.readouterr().out == (
        "--recipe post: --encoder efficientnet-b0 --tile 640 --batch 16 --loss dice "
        "--then lovasz --switch 0.6 --negatives 1.0\n")
    args = train_options("--recipe post --tile 128 --loss bce --negatives all".split())
    assert (args.tile, args.stride, args.loss, args.then) == (128, 64, "bce", "lovasz")
    assert capsys.readouterr().out == ("--recipe post: --encoder efficientnet-b0 --batch 16 "
                                       "--then lovasz --switch 0.6\n")
    args = train_options("--recipe winner-like --no-hypercolumn".split())
    assert args.attention == "cbam3" and args.deep_supervision and not args.hypercolumn
    assert args.negatives == "balanced" and args.loss == "bce+lovasz"
    assert "hypercolumn" not in capsys.readouterr().out
    for name in RECIPES:  # what it prints is what it does
        args = train_options(["--recipe", name])
        typed = train_options(capsys.readouterr().out.split(": ")[1].split())
        args.recipe = None
        args.command = typed.command = None
        assert vars(args) == vars(typed)


def test_a_line_says_that_each_image_without_a_group_is_a_group_of_its_own(data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "groups.csv").unlink()
    folders = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "o")]
    train.prepare(train_options([*folders, *QUICK]))
    out = capsys.readouterr().out
    assert "each image is a group of its own" in out and "4 images in 4 groups" in out


def test_what_there_is_to_find_is_printed_with_what_looks_like_a_mistake(tmp_path, capsys):
    folder, mask = tmp_path / "data", np.zeros((64, 96), np.uint8)
    mask[4:14, 8:20] = mask[30:50, 40:60] = 255  # 120 and 400 pixels
    for name, values in {"a": mask, "b": mask, "c": 0 * mask, "d": None}.items():
        for kind, array in (("images", mask), ("masks", values)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            if array is not None:
                Image.fromarray(array).save(folder / kind / f"{name}.png")
    (folder / "images" / "d.png").rename(folder / "masks" / "d.png")
    options = ["--data", str(folder), "--out", str(tmp_path / "o"), *QUICK]
    train.prepare(train_options(options))
    out = capsys.readouterr().out.splitlines()
    # the areas are 120, 120, 400 and 400: their median is 260, a disc 18.2 pixels wide
    assert "5.6% of pixels positive, 4 objects, median diameter 18 pixels (9 at --scale 2)" in out
    assert "no object in: c" in out
    assert f"{folder / 'masks'}: not used (1): d.png" in out
    assert ("3 of 3 images are smaller than a tile of 64 x 64 pixels at --scale 2, and filled up "
            "with mirror images: a, b, c") in out
    assert not any("inverted" in line for line in out)

    for name in "ab":
        Image.fromarray(255 - mask).save(folder / "masks" / f"{name}.png")
    train.prepare(train_options(options))
    assert ("in 2 of 3 images more than half of the pixels are positive: are the masks inverted?"
            in capsys.readouterr().out)


def test_an_interrupted_fold_is_named_and_no_summary_is_written(run, data, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "o")
    (tmp_path / "o" / "fold1").mkdir()
    with pytest.raises(SystemExit) as error:
        train.main(["--data", str(data), "--out", str(tmp_path / "o"), *QUICK, "--folds", "2"])
    out, err = capsys.readouterr()
    assert error.value.code == 3 and err.endswith("o: not complete: fold1\n")
    assert "fold0: is complete already" in out and "fold1: is unfinished" in out
    assert "add --resume" in out and "--folds 2" not in out and "took" not in out
    assert not (tmp_path / "o" / "summary.json").exists()


def test_a_folder_whose_only_fold_was_deleted_accepts_other_settings(run, data, tmp_path):
    (tmp_path / "o").mkdir()
    shutil.copy(run / "config.json", tmp_path / "o")
    train.main(["--data", str(data), "--out", str(tmp_path / "o"), *QUICK, "--lr", "1e-3"])
    assert json.loads((tmp_path / "o" / "config.json").read_text())["lr"] == 1e-3


def test_weights_that_are_not_finite_are_not_scored(data, tmp_path, capsys, monkeypatch):
    scored = []
    monkeypatch.setattr(train, "predict", lambda *arguments, **options: scored.append(arguments))
    # One step: the loss is computed before the step that ruins the weights.
    with pytest.raises(SystemExit) as error:
        train.main(["--data", str(data), "--out", str(tmp_path / "o"), *QUICK, "--lr", "1e38",
                    "--batch", "1000"])
    assert error.value.code == 1 and "no longer finite" in capsys.readouterr().err
    assert not scored and not (tmp_path / "o" / "fold0" / "score.json").exists()


def test_no_summary_is_written_if_a_prediction_is_missing(data, run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "o")
    next((tmp_path / "o" / "fold0" / "probabilities").iterdir()).unlink()
    with pytest.raises(SystemExit) as error:
        train.main(["--data", str(data), "--out", str(tmp_path / "o"), *QUICK, "--folds", "2"])
    err = capsys.readouterr().err
    assert error.value.code == 1 and "probabilities" in err and err.count("\n") == 1
    assert not (tmp_path / "o" / "summary.json").exists()


def test_folds_are_refused_if_only_one_group_has_positives(data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    for i in (2, 3):
        Image.fromarray(np.zeros((220, 180), np.uint8)).save(
            tmp_path / "data" / "masks" / f"slide0{i}.png")
    line = refused(capsys, "--data", tmp_path / "data", "--out", tmp_path / "o", "--folds", "2")
    assert "add images of other groups" in line and not (tmp_path / "o").exists()


def test_a_tile_too_large_for_memory_is_refused_in_one_line(data, tmp_path, capsys, monkeypatch):
    def no_memory(*arguments, **options):
        raise MemoryError("Unable to allocate 99 GiB")

    monkeypatch.setattr(prepare, "Tiles", no_memory)
    assert "smaller --tile" in refused(capsys, "--data", data, "--out", tmp_path / "o")


def test_a_second_stage_of_a_recipe_can_be_switched_off():
    args = train_options("--recipe post --then none --epochs 1".split())
    assert args.then is None


def test_excluded_images_are_neither_trained_on_nor_scored(data, tmp_path, capsys):
    table = tmp_path / "suspects.csv"  # as labels.py writes it
    table.write_text("id,group,score\nslide01,patient00,0.9\n\nslide03,patient01,0.8\n")
    train.main(["--data", str(data), "--out", str(tmp_path / "o"), *QUICK, "--exclude", str(table)])
    assert "2 images are left out: slide01, slide03" in capsys.readouterr().out
    assert json.loads((tmp_path / "o/config.json").read_text())["exclude"] == ["slide01", "slide03"]
    assert set(json.loads((tmp_path / "o/fold0/score.json").read_text())["images"]) < {
        "slide00", "slide02"}
    assert not any(name in path.name for path in (tmp_path / "tiles").iterdir()
                   for name in ("slide01", "slide03"))  # a bad file can be left out, too
    table.write_text("slide07\n")
    assert "names slide07" in refused(capsys, "--data", data, "--out", tmp_path / "p", "--exclude",
                                      table)
    assert "no such file" in refused(capsys, "--data", data, "--out", tmp_path / "p", "--exclude",
                                     tmp_path / "none")
    table.write_text('"ID"\n' + "".join(f'"slide0{i}"\n' for i in range(4)))
    assert "leaves no image" in refused(capsys, "--data", data, "--out", tmp_path / "p",
                                        "--exclude", table)
    table.write_bytes(b"\xff\xfe\x00")
    assert "is not a text file" in refused(capsys, "--data", data, "--out", tmp_path / "p",
                                           "--exclude", table)


@pytest.mark.parametrize("epochs, steps", [("0.5", [2]), ("1.5", [4, 6])])
def test_epochs_can_be_cut_short(data, tmp_path, epochs, steps):
    options = [*QUICK, "--negatives", "all", "--epochs", epochs, "--batch", "3"]
    train.main(["--data", str(data), "--out", str(tmp_path / "o"), *options])
    rows = list(csv.DictReader(open(tmp_path / "o/fold0/log.csv")))
    assert [int(row["steps"]) for row in rows] == steps
    assert all(0.5 < float(row["loss"]) < 2 for row in rows)  # the mean of the steps that were
    assert all(0 <= float(row["seconds"]) < 600 for row in rows)


def test_a_run_that_died_while_it_predicted_goes_on_without_training_again(
        interrupted, data, monkeypatch, capsys):
    log = (interrupted / "fold0/log.csv").read_text()
    monkeypatch.setattr(train, "training_step", lambda *_, **__: pytest.fail("it trained again"))
    train.main(["--data", str(data), "--out", str(interrupted), *LONGER, "--resume"])
    without_seconds = [[line.rpartition(",")[0] for line in text.splitlines()]
                       for text in ((interrupted / "fold0/log.csv").read_text(), log)]
    assert without_seconds[0] == without_seconds[1]
    out = capsys.readouterr().out
    steps = log.splitlines()[-1].split(",")[1]
    assert f"fold0: goes on after step {steps} of {steps}, in epoch 2 of 2" in out
    assert not (interrupted / "fold0/resume.pt").exists()  # of no use any more


# HuBMAP's own layout, and the cache of tiles


POSITIVE = (0, 4, 6, 8)  # seeds of small slides with something to find


def write_hubmap(folder, microns=(0.5, 0.5, 0.54, 0.54)):
    """Four slides of two patients, masks as run-length code, with the size of a pixel in tags."""
    (folder / "train").mkdir(parents=True)
    lines, patients = ["id,encoding"], ["image_file,width_pixels,patient_number"]
    for i, size in enumerate(microns):
        image, mask = synthetic_slide(POSITIVE[i], 200, 180)
        tags = {} if size is None else {"resolution": (10000 / size,) * 2, "resolutionunit": 3}
        tifffile.imwrite(folder / "train" / f"slide{i}.tiff", image, **tags)
        lines.append(f"slide{i},{rle_encode(mask)}")
        patients.append(f"slide{i}.tiff,180,{'6713' if i < 2 else '5436'}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    (folder / "HuBMAP-20-dataset_information.csv").write_text("\n".join(patients) + "\n")
    return folder


@pytest.fixture(scope="module")
def hubmap(tmp_path_factory):
    return write_hubmap(tmp_path_factory.mktemp("hubmap") / "data")


@pytest.fixture(scope="module")
def hubmap_run(small_networks, hubmap, tmp_path_factory):
    out = tmp_path_factory.mktemp("hubmap-runs") / "first"
    train.main(["--data", str(hubmap), "--out", str(out), *QUICK])
    return out


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_hubmaps_layout_trains_and_holds_a_whole_patient_out(hubmap_run):
    found = json.loads((hubmap_run / "fold0" / "score.json").read_text())
    assert set(found["images"]) in ({"slide0", "slide1"}, {"slide2", "slide3"})
    assert set(found["groups"]) == {"6713" if "slide0" in found["images"] else "5436"}
    assert {p.stem for p in (hubmap_run / "fold0" / "probabilities").iterdir()} == set(
        found["images"])


def test_hubmaps_score_is_that_of_the_run_length_code(hubmap, hubmap_run):
    found = json.loads((hubmap_run / "fold0" / "score.json").read_text())
    for id, dice in found["images"].items():
        _, mask = synthetic_slide(POSITIVE[int(id[-1])], 200, 180)
        kept = tifffile.imread(hubmap_run / "fold0" / "probabilities" / f"{id}.tiff")
        assert mask.any() and dice == pytest.approx(
            dice_score(torch.from_numpy(kept) >= 127.5, torch.from_numpy(mask)))


def test_a_checkpoint_carries_the_size_of_a_pixel_by_the_slides_tags(hubmap_run):
    _, facts = load_model(hubmap_run / "fold0" / "model.pt")
    assert facts["microns"] == pytest.approx((0.5 + 0.54) / 2, rel=1e-3)  # the median


@pytest.mark.parametrize("microns, median", [
    ((None, 0.5, None, None), 0.5), ((0.48, 0.5, 0.52, None), 0.5), ((None,) * 4, None)])
def test_slides_without_resolution_do_not_enter_the_median(tmp_path, microns, median):
    args = train_options(["--data", str(write_hubmap(tmp_path / "data", microns)),
                        "--out", str(tmp_path / "o"), *QUICK])
    assert train.prepare(args).microns == (median and pytest.approx(median, rel=1e-3))


def test_slides_of_two_magnifications_are_named_and_no_size_is_stored(tmp_path, capsys):
    args = train_options(["--data", str(write_hubmap(tmp_path / "data", (0.25, 0.5, None, 0.252))),
                          "--out", str(tmp_path / "o"), *QUICK])
    assert train.prepare(args).microns is None
    assert ("images of different pixel size: 0.251 µm (slide0, slide3); 0.5 µm (slide1): "
            "--microns brings them to one size") in capsys.readouterr().out


@pytest.mark.parametrize("change, words", [
    (lambda text: text.replace("slide1,", "slide9,"), ["train.csv", "slide9"]),
    (lambda text: text.replace("id,encoding", "id,rle"), ["train.csv", "id,encoding"]),
    (lambda text: text + "slide0,1 2\n", ["train.csv", "two lines for slide0"]),
    (lambda text: "\n".join(text.splitlines()[:-1]) + "\n", ["slide3.tiff", "train.csv"]),
    (lambda text: text.replace("slide2,", "slide2,36000 2 "), ["train.csv", "slide2", "36000 2"]),
    (lambda text: text.replace("slide2,", "slide2,7 "), ["train.csv", "slide2", "pairs"]),
    (lambda text: text.replace("slide2,", "slide2,x "), ["train.csv", "slide2", "whole numbers"]),
    (lambda text: "id,encoding\n" + "".join(f"slide{i},\n" for i in range(4)),
     ["train.csv", "no mask has a positive pixel"]),
    (lambda text: "", ["train.csv", "id,encoding"]),
], ids=["a slide that is not there", "other columns", "a slide twice", "a slide without a line",
        "a run beyond the image", "an odd number", "no number", "nothing positive", "empty"])
def test_a_bad_line_of_hubmaps_table_is_one_line_that_names_it(
        hubmap, tmp_path, capsys, change, words):
    shutil.copytree(hubmap, tmp_path / "data")
    table = tmp_path / "data" / "train.csv"
    table.write_text(change(table.read_text()))
    line = refused(capsys, "--data", tmp_path / "data", "--out", tmp_path / "o")
    assert all(word in line for word in words), line
    assert not (tmp_path / "o").exists()


def test_a_table_of_patients_without_its_columns_is_one_line(hubmap, tmp_path, capsys):
    shutil.copytree(hubmap, tmp_path / "data")
    (tmp_path / "data" / "HuBMAP-20-dataset_information.csv").write_text("file,patient\na,b\n")
    line = refused(capsys, "--data", tmp_path / "data", "--out", tmp_path / "o")
    assert "dataset_information.csv" in line and "patient_number" in line


def test_a_second_run_beside_the_first_cuts_nothing(hubmap, hubmap_run, capsys):
    cache = hubmap_run.parent / "tiles"
    before = contents(cache)
    assert len([p for p in before if p.suffix == ".tiles"]) == 4 == len(before) / 2
    second = hubmap_run.parent / "second"
    train.prepare(train_options(["--data", str(hubmap), "--out", str(second), *QUICK,
                               "--seed", "7", "--folds", "2"]))
    assert contents(cache) == before
    train.prepare(train_options(["--data", str(hubmap), "--out", str(second), *QUICK,
                               "--stride", "64"]))  # what the tiles depend on
    after = contents(cache)
    assert len(after) == 2 * len(before) and before.items() <= after.items()


def test_a_damaged_cache_is_one_line_that_says_what_to_do(hubmap, tmp_path, capsys):
    train.prepare(train_options(["--data", str(hubmap), "--out", str(tmp_path / "a"), *QUICK]))
    path = sorted((tmp_path / "tiles").glob("*.tiles"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    line = refused(capsys, "--data", hubmap, "--out", tmp_path / "b")
    assert path.name in line and "delete it" in line
    path.unlink()
    train.prepare(train_options(["--data", str(hubmap), "--out", str(tmp_path / "b"), *QUICK]))


def test_a_full_disk_while_cutting_is_one_line_and_leaves_no_half_of_a_file(
        hubmap, tmp_path, capsys, monkeypatch):
    def full(item, cache, **options):
        if item.id == "slide2":
            raise OSError(28, "No space left on device", str(cache))
        return cut(item, cache, **options)

    cut = prepare.cut
    monkeypatch.setattr(prepare, "cut", full)
    line = refused(capsys, "--data", hubmap, "--out", tmp_path / "o")
    assert "No space left" in line and not (tmp_path / "o").exists()


# Going on


class Killed(BaseException):
    """As sudden as kill -9, but for the process."""


def final(run):
    """The weights of a complete run."""
    return torch.load(run / "fold0" / "model.pt", weights_only=True)["state"]


LONGER = [*QUICK, "--epochs", "2", "--loss", "dice", "--then", "bce+lovasz"]


@pytest.fixture(scope="module")
def undisturbed(small_networks, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    with pytest.MonkeyPatch.context() as patch:
        write = train.save_model

        def keep_resume_file(path, *arguments, **facts):
            shutil.copy(path.with_name("resume.pt"), out / "kept.pt")
            write(path, *arguments, **facts)

        patch.setattr(train, "save_model", keep_resume_file)
        train.main(["--data", str(data), "--out", str(out), *LONGER])
    return out


@pytest.fixture(scope="module")
def undisturbed_resume(undisturbed):
    """Its resume.pt after the last step, which a complete run deletes."""
    return undisturbed / "kept.pt"


@pytest.fixture
def interrupted(undisturbed_resume, undisturbed, tmp_path):
    """The folder of a run that died when all steps were done, but before model.pt was written."""
    shutil.copytree(undisturbed, tmp_path / "interrupted")
    (tmp_path / "interrupted" / "fold0" / "model.pt").unlink()
    shutil.copy(undisturbed_resume, tmp_path / "interrupted" / "fold0" / "resume.pt")
    return tmp_path / "interrupted"


@pytest.mark.parametrize("where, after", [
    ("training_step", 2), ("save_log", 0), ("save_model", 0),
    *(pytest.param(*place, marks=pytest.mark.slow)
      for place in (("training_step", 1), ("score", 0), ("score", 1), ("finish_fold", 0)))])
def test_a_run_killed_anywhere_resumes_to_the_same_bits(
        undisturbed, data, tmp_path, monkeypatch, where, after):
    module = loop if where == "save_log" else train
    calls, function = [], getattr(module, where)

    def die(*arguments, **options):
        calls.append(where)
        if len(calls) > after:
            raise Killed
        return function(*arguments, **options)

    command = ["--data", str(data), "--out", str(tmp_path / "o"), *LONGER]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if where == "training_step":
            patch.setattr(loop, "SAVE_EVERY", 0)  # after every step
        patch.setattr(loop, "SAVE_AFTER_EPOCH", 0)
        patch.setattr(module, where, die)
        train.main(command)
    train.main([*command, "--resume"])
    wanted, found = final(undisturbed), final(tmp_path / "o")
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    logs = [[{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(
        open(run / "fold0" / "log.csv"))] for run in (undisturbed, tmp_path / "o")]
    assert logs[0] == logs[1] and len(logs[0]) == 2
    scores = [(run / "fold0" / "score.json").read_text() for run in (undisturbed, tmp_path / "o")]
    assert scores[0] == scores[1]


def test_short_epochs_are_not_all_saved_but_the_last_step_is(data, tmp_path, monkeypatch):
    saved, run_save = [], loop.Run.save
    monkeypatch.setattr(loop.Run, "save", lambda run: saved.append(run.step) or run_save(run))
    train.main(["--data", str(data), "--out", str(tmp_path / "o"), *LONGER])
    steps = int((tmp_path / "o/fold0/log.csv").read_text().splitlines()[-1].split(",")[1])
    assert saved == [0, steps]  # the first one notices a full disk


def test_resuming_repeats_no_step_that_was_saved(undisturbed, data, tmp_path, monkeypatch):
    calls, function = [], train.training_step

    def count(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise Killed
        return function(*arguments, **options)

    monkeypatch.setattr(loop, "SAVE_EVERY", 0)
    monkeypatch.setattr(loop, "SAVE_AFTER_EPOCH", 0)
    monkeypatch.setattr(train, "training_step", count)
    command = ["--data", str(data), "--out", str(tmp_path / "o"), *LONGER]
    with pytest.raises(Killed):
        train.main(command)
    train.main([*command, "--resume"])
    rows = list(csv.DictReader(open(undisturbed / "fold0" / "log.csv")))
    assert len(calls) == 4 + int(rows[-1]["steps"]) - 3


def test_ctrl_c_stops_after_the_step_saves_and_prints_the_command_that_resumes(
        undisturbed, data, tmp_path, monkeypatch, capsys):
    function = train.training_step

    def ask(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return function(*arguments, **options)

    command = ["--data", str(data), "--out", str(tmp_path / "o"), *LONGER]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as error:
        patch.setattr(train, "training_step", ask)
        train.main(command)
    assert error.value.code == 130
    err = capsys.readouterr().err
    assert "stopped after step 1 of" in err
    again = shlex.split(err.splitlines()[-1])
    assert again == ["python", "train.py", *command, "--resume"]
    train.main(again[2:])
    wanted, found = final(undisturbed), final(tmp_path / "o")
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
        data, tmp_path, monkeypatch, capsys):
    calls, function = [], train.training_step

    def spoil(net, loss, parts, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            with torch.no_grad():
                net.head.bias.fill_(torch.nan)
        return function(net, loss, parts, *arguments, **options)

    monkeypatch.setattr(loop, "SAVE_EVERY", 0)
    monkeypatch.setattr(train, "training_step", spoil)
    command = ["--data", str(data), "--out", str(tmp_path / "o"), *LONGER]
    with pytest.raises(SystemExit) as error:
        train.main(command)
    assert error.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "step 2: the loss is nan; learning rate" in line and "tiles slide0" in line
    assert "goes on with --resume and a lower --lr" in line
    kept = torch.load(tmp_path / "o" / "fold0" / "resume.pt", weights_only=True)
    assert kept["step"] == 2 and all(v.isfinite().all() for v in kept["net"].values())

    built = []
    optimizer = train.make_optimizer
    monkeypatch.setattr(train, "make_optimizer", lambda net, args: built.append(args.lr) or
                        optimizer(net, args))
    train.main([*command, "--resume", "--lr", "1e-3"])  # calls go on from 3: nothing is spoilt
    assert built == [1e-3] and (tmp_path / "o" / "fold0" / "model.pt").exists()


def test_a_run_is_not_resumed_with_other_settings(undisturbed, data, capsys):
    line = refused(capsys, "--data", data, "--out", undisturbed, "--resume", "--epochs", "3",
                   "--loss", "dice", "--then", "bce+lovasz")
    assert "holds a run with other settings (--epochs)" in line


def test_the_settings_of_a_complete_fold_stay_when_it_is_resumed_at_another_learning_rate(
        undisturbed, data, tmp_path, capsys):
    shutil.copytree(undisturbed, tmp_path / "o")
    before = (tmp_path / "o" / "config.json").read_bytes()
    command = ["--data", str(data), "--out", str(tmp_path / "o"), *LONGER, "--resume"]
    train.main([*command, "--lr", "1e-3"])
    assert "fold0: is complete already" in capsys.readouterr().out
    assert (tmp_path / "o" / "config.json").read_bytes() == before
    (tmp_path / "o" / "fold0" / "model.pt").unlink()
    with locked(tmp_path / "o" / "fold0"), pytest.raises(SystemExit) as error:
        train.main([*command, "--lr", "1e-3"])
    assert error.value.code == 3
    assert "fold0: another process is training it" in capsys.readouterr().out
    assert (tmp_path / "o" / "config.json").read_bytes() == before


def test_a_damaged_resume_pt_is_one_line(interrupted, data, capsys):
    file = interrupted / "fold0" / "resume.pt"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(SystemExit) as error:
        train.main(["--data", str(data), "--out", str(interrupted), *LONGER, "--resume"])
    assert error.value.code == 1
    assert f"{file}: is damaged" in capsys.readouterr().err.splitlines()[-1]


def test_out_of_memory_is_one_line_that_says_which_options_to_lower(
        data, tmp_path, monkeypatch, capsys):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(train, "training_step", full)
    with pytest.raises(SystemExit) as error:
        train.main(["--data", str(data), "--out", str(tmp_path / "o"), *QUICK])
    assert error.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "lower --batch 4" in line and "--checkpoint-activations" in line


def test_all_options_that_save_time_or_memory_train_together(data, tmp_path):
    train.main(["--data", str(data), "--out", str(tmp_path / "o"), *QUICK, "--scale", "4", "--amp",
                "on", "--accumulate", "3", "--checkpoint-activations", "--workers", "1"])
    _net, _ = load_model(tmp_path / "o" / "fold0" / "model.pt")
    rows = list(csv.DictReader(open(tmp_path / "o" / "fold0" / "log.csv")))
    assert float(rows[0]["loss"]) > 0 and int(rows[0]["steps"]) >= 1


def test_recomputed_activations_give_the_same_run(run, data, tmp_path):
    train.main(["--data", str(data), "--out", str(tmp_path / "o"), *QUICK,
                "--checkpoint-activations", "--workers", "3"])
    wanted, found = final(run), final(tmp_path / "o")
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)


def test_a_run_is_not_resumed_with_other_masks(interrupted, data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "slides")
    mask = tmp_path / "slides" / "masks" / "slide01.png"
    Image.fromarray(np.roll(np.asarray(Image.open(mask)), 9, 0)).save(mask)
    with pytest.raises(SystemExit) as error:
        train.main(["--data", str(tmp_path / "slides"), "--out", str(interrupted), *LONGER,
                    "--resume"])
    assert error.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "changed since: slide01 (mask): put back what was there" in line
    shutil.copy(data / "masks" / "slide01.png", mask)
    train.main(["--data", str(tmp_path / "slides"), "--out", str(interrupted), *LONGER,
                "--resume"])
    assert (interrupted / "fold0" / "model.pt").exists()


def test_a_run_is_not_resumed_after_images_have_changed_groups(undisturbed, data, tmp_path, capsys):
    shutil.copytree(undisturbed, tmp_path / "o")
    shutil.copytree(data, tmp_path / "slides")
    groups = tmp_path / "slides" / "groups.csv"
    ids, names = zip(*list(csv.reader(groups.read_text().splitlines()))[1:])
    groups.write_text("id,group\n" + "".join(
        f"{id},{name}\n" for id, name in zip(ids, names[1:] + names[:1])))
    line = refused(capsys, "--data", tmp_path / "slides", "--out", tmp_path / "o", *LONGER,
                   "--resume")
    assert "images were in other folds" in line and "give another --out" in line


def test_a_run_in_full_precision_can_be_resumed_in_mixed_precision(interrupted, data):
    train.main(["--data", str(data), "--out", str(interrupted), *LONGER, "--resume", "--amp", "on"])
    assert (interrupted / "fold0" / "model.pt").exists()


# What masks mean: polygons, void, white


def small_set(folder, masks, images=None):
    """A data set of 64 x 64 pixels in two groups or more: masks are arrays, or features."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i, mask in enumerate(masks):
        image = noise_image(i) if images is None else images[i]
        tifffile.imwrite(folder / f"images/a{i}.tif", image, photometric="rgb")
        if isinstance(mask, list):
            (folder / f"masks/a{i}.geojson").write_text(json.dumps(mask))
        else:
            Image.fromarray(mask).save(folder / f"masks/a{i}.png")
    return folder


def noise_image(seed):
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)


def box(left, top, right, bottom, name):
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"classification": {"name": name}}}


def square(value=1, rest=0):
    mask = np.full((64, 64), rest, np.uint8)
    mask[20:40, 10:30] = value
    return mask


TINY = "--scale 1 --tile 32 --epochs 0.2 --encoder efficientnet-lite0 --device cpu".split()


def trained(capsys, folder, *options):
    """What train.py prints, and its folder."""
    capsys.readouterr()
    out = folder.parent / f"run{len(list(folder.parent.iterdir()))}"
    train.main(["--data", str(folder), "--out", str(out), *TINY, *map(str, options)])
    return capsys.readouterr().out, out


def prepared(capsys, folder, *options):
    """What train.py prints before the first step."""
    capsys.readouterr()
    train.prepare(train_options(["--data", str(folder), "--out", str(folder.parent / "no" / "run"),
                               *TINY, *map(str, options)]))
    return capsys.readouterr().out


def test_polygons_can_be_trained_on_and_their_classes_are_printed(tmp_path, capsys):
    features = [box(10, 20, 30, 40, "glomerulus"), box(0, 0, 64, 9, "fold")]
    data = small_set(tmp_path / "data", [features, features, square()])
    said, out = trained(capsys, data, "--ignore", "fold", "--folds", 3)
    assert "polygons: 2 glomerulus (to be found), 2 fold (void)" in said
    assert f"{2 * 9 / (3 * 64):.1%} of all pixels are void" in said
    summary = json.loads((out / "summary.json").read_text())
    assert summary["objects"]["found"] + summary["objects"]["missed"] == 3
    assert load_model(out / "fold0" / "model.pt")[1]["label"] == "glomerulus"
    assert "a2 has none: add them, or leave it out" in refused(
        capsys, "--data", data, "--label", "fold", "--out", tmp_path / "o")
    data = small_set(tmp_path / "polygons", [features, features])
    said = prepared(capsys, data, "--label", "fold")
    assert "polygons: 2 glomerulus (not used), 2 fold (to be found)" in said
    line = refused(capsys, "--data", data, "--label", "Tumour")
    assert line.endswith("has the class Tumour: there are fold, glomerulus")


def test_labels_of_void_pixels_change_neither_the_network_nor_its_score(tmp_path, capsys):
    """The labels that void hides may be anything."""
    states = []
    for name in ("a", "b"):
        hidden = [] if name == "a" else [box(0, 41, 40, 60, "glomerulus")]
        features = [box(10, 20, 30, 40, "glomerulus"), box(0, 40, 64, 64, "fold"), *hidden]
        data = small_set(tmp_path / name / "data", [features] * 2)
        _, out = trained(capsys, data, "--ignore", "fold")
        score = json.loads((out / "fold0" / "score.json").read_text())
        states.append((load_model(out / "fold0" / "model.pt")[0].state_dict(), score))
    (first, score), (second, other) = states
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert score == other


def test_masks_of_two_conventions_are_named_and_refused_if_255_may_be_void(tmp_path, capsys):
    void = square(1)
    void[:9] = 255
    data = small_set(tmp_path / "mixed", [square(1), square(1), square(255)])
    said = prepared(capsys, data)
    assert "both are taken for objects; if 255 is void, say --ignore 255" in said
    said = prepared(capsys, data, "--ignore", 255)
    assert "of all pixels are void" in said
    data = small_set(tmp_path / "unclear", [void, void, square(255)])
    assert "is 255 void in both? Then say --ignore 255" in refused(
        capsys, "--data", data, *TINY, "--out", tmp_path / "out")
    said = prepared(capsys, data, "--ignore", 255)


def test_masks_of_one_value_are_read_if_it_is_the_same_in_all(tmp_path, capsys):
    colour = square(1)[..., None] * np.array([250, 50, 83], np.uint8)
    data = small_set(tmp_path / "one", [colour, colour, 0 * colour])
    assert "objects are #fa3253 in the masks, the only value beside 0" in prepared(capsys, data)
    for k, others in enumerate(([square(114)], [square(1)], [square(255)], [colour[..., ::-1]])):
        data = small_set(tmp_path / str(k), [colour, colour, *others])
        line = refused(capsys, "--data", data, *TINY, "--out", tmp_path / "out")
        assert "a2.png" in line and "are these two classes? Make what is to be found 1" in line
        assert "#fa3253" in line and ("114", " 1 ", "255", "#5332fa")[k] in line
        for i in range(3):  # as the line says
            Image.fromarray(square(1)).save(data / f"masks/a{i}.png")
        prepared(capsys, data)


def palette_mask(indices, *colours):
    picture = Image.fromarray(indices)
    picture.putpalette([number for colour in colours for number in colour])
    return picture


def test_palettes_that_show_objects_in_two_colours_are_refused(tmp_path, capsys):
    black, red, green = (0, 0, 0), (255, 0, 0), (0, 255, 0)
    data = small_set(tmp_path / "data", [square(1)] * 3)
    for value, before in ((1, [black]), (255, [black] * 255)):
        for name, colour in (("a0", red), ("a1", green)):
            palette_mask(square(value), *before, colour).save(data / f"masks/{name}.png")
        Image.fromarray(square(value)).save(data / "masks/a2.png")
        line = refused(capsys, "--data", data, *TINY, "--out", tmp_path / "out")
        assert line.endswith(
            f"masks/a1.png: objects are #00ff00, but #ff0000 in {data}/masks/a0.png: are these two "
            "classes? Make what is to be found 1 in all masks, and everything else 0")
        palette_mask(square(value), *before, red).save(data / "masks/a1.png")
        prepared(capsys, data)  # one of them stays a mask without colours
    Image.fromarray(square(1)).save(data / "masks/a0.png")
    palette_mask(square(1), black, (255, 255, 255)).save(data / "masks/a1.png")  # grey, no colour
    Image.fromarray(square(1)).save(data / "masks/a2.png")
    prepared(capsys, data)


def test_255_beside_any_one_value_is_void_if_told(tmp_path, capsys):
    masks = [square(15), square(15), 0 * square()]
    for mask in masks:
        mask[50:] = 255
    data = small_set(tmp_path / "data", masks)
    line = refused(capsys, "--data", data, *TINY, "--out", tmp_path / "out")
    assert "a0.png: contains the values 0, 15, 255: " in line
    assert "if 255 marks what nobody labelled, say --ignore 255" in line
    said = prepared(capsys, data, "--ignore", 255)
    assert "objects are 15 in the masks, the only value beside 0 and 255" in said
    assert f"{14 / 64:.1%} of all pixels are void" in said
    for value in (14, 1):  # another class, perhaps
        Image.fromarray(np.where(masks[1] == 15, value, masks[1]).astype(np.uint8)).save(
            data / "masks/a1.png")
        assert "are these two classes?" in refused(
            capsys, "--data", data, *TINY, "--ignore", 255, "--out", tmp_path / "out")
    Image.fromarray(np.where(masks[1] == 15, 15, 255).astype(np.uint8)).save(data / "masks/a1.png")
    assert "a1.png: contains the values 15, 255: make the background 0" in refused(
        capsys, "--data", data, *TINY, "--ignore", 255, "--out", tmp_path / "out")


def test_classes_of_other_programs_are_shown_and_may_be_named(tmp_path, capsys):
    def of(properties, *corners):
        return {**box(*corners, ""), "properties": properties}

    features = [of({"class": "gland"}, 5, 5, 20, 20), of({"class": "fold"}, 40, 0, 60, 20)]
    data = small_set(tmp_path / "names", [features] * 2)
    assert "polygons: 2 gland (to be found), 2 fold (to be found)" in prepared(capsys, data)
    assert "polygons: 2 gland (to be found), 2 fold (not used)" in prepared(
        capsys, data, "--label", "gland")
    features = [of({"gridcode": k - 1}, 9 * k, 9 * k, 64, 9 * k + 9) for k in range(5)]
    data = small_set(tmp_path / "numbers", [features] * 2)
    said = prepared(capsys, data, "--label", "value 1")
    assert ("polygons: 2 value -1 (not used), 2 background (value 0) (not used), 2 value 1 (to be "
            "found), 2 value 2 (not used), 2 value 3 (not used)") in said
    data = small_set(tmp_path / "many", [[of({"label": k}, 1, k, 9, k + 1) for k in range(1, 60)]
                                         + [of({}, 30, 30, 60, 60)]] * 2)
    line = prepared(capsys, data).partition("polygons: ")[2].partition("\n")[0]
    assert line.startswith("2 value 1 (to be found), ")
    assert line.endswith("2 value 20 (to be found), ...")


def test_a_data_set_that_is_positive_everywhere_is_refused(tmp_path, capsys):
    data = small_set(tmp_path / "data", [square(1, 1), square(1, 1)])
    line = refused(capsys, "--data", data, *TINY, "--out", tmp_path / "out")
    assert line.endswith("every labelled pixel is positive, and there is nothing to tell objects "
                         "from: make the background 0, delete its polygons, or leave them out with "
                         "--label")
    Image.fromarray(square(1)).save(data / "masks/a1.png")
    prepared(capsys, data)


def test_background_polygons_are_named_and_not_used(tmp_path, capsys):
    background = {**box(0, 0, 64, 64, ""), "properties": {"DN": 0}}
    data = small_set(tmp_path / "data", [[box(10, 20, 30, 40, ""), background]] * 2)
    said, out = trained(capsys, data)
    assert "polygons: 2 unclassified (to be found), 2 background (value 0) (not used)" in said
    assert load_model(out / "fold0" / "model.pt")[1]["label"] == "unclassified"


def test_polygons_that_all_lie_in_the_upper_left_corner_get_a_note(tmp_path, capsys):
    corner = [box(2, 2, 9, 9, "a"), box(4, 10, 16, 16, "a")]
    data = small_set(tmp_path / "corner", [corner] * 2)
    assert ("upper left corner of their images, within 25% of their size: are the coordinates per "
            "cent, micrometres or pixels of a smaller copy? Up to 4 times as large"
            in prepared(capsys, data))
    for name, features in (("middle", [*corner, box(20, 20, 40, 33, "b")]), ("right", [
            *corner, box(50, 3, 60, 9, "a")]), ("few", corner[:1])):
        data = small_set(tmp_path / name, [features, corner[:1]])
        assert "corner" not in prepared(capsys, data)


def test_objects_that_vanish_at_a_scale_are_counted_and_named(tmp_path, capsys):
    dots = np.zeros((64, 64), np.uint8)
    dots[2:60:8, 2:60:8] = 255
    data = small_set(tmp_path / "some", [dots, dots, square(255), square(255), 0 * dots])
    said = prepared(capsys, data, "--scale", 4)
    assert ("128 of 130 objects are smaller than half a pixel at --scale 4, too small to be seen "
            "there; nothing is left in 2 images with objects: a0, a1: use a smaller --scale"
            in said)
    assert "too small" not in prepared(capsys, data)
    data = small_set(tmp_path / "few", [dots, dots, square(255)])
    line = refused(capsys, "--data", data, *TINY, "--scale", 4, "--folds", 3, "--out",
                   tmp_path / "out")
    assert "nothing positive is left at --scale 4: use a smaller one" in line
    prepared(capsys, data, "--folds", 3)


def test_a_fold_that_is_all_void_is_refused(tmp_path, capsys):
    void = np.full((64, 64), 255, np.uint8)
    data = small_set(tmp_path / "data", [square(), square(), void])
    line = refused(capsys, "--data", data, *TINY, "--ignore", 255, "--folds", 3, "--out",
                   tmp_path / "out")
    assert "nothing to score: leave them out with --exclude" in line


def test_a_note_on_many_files_is_printed_once(tmp_path, capsys):
    images = [noise_image(i).astype(np.uint16) * 16 for i in range(3)]
    data = small_set(tmp_path / "data", [square()] * 3, images)
    said = prepared(capsys, data)
    assert said.count("looks dark") == 1 and "(and 2 others like it)" in said
    said, out = trained(capsys, data, "--white", 4095)
    assert "looks dark" not in said
    assert load_model(out / "fold0" / "model.pt")[1]["white"] == 4095


def test_run_length_code_is_preferred_to_polygons_and_their_agreement_is_printed(tmp_path, capsys):
    (tmp_path / "data" / "train").mkdir(parents=True)
    lines = ["id,encoding"]
    for i in range(2):
        tifffile.imwrite(tmp_path / f"data/train/a{i}.tiff", noise_image(i), photometric="rgb")
        lines.append(f"a{i},{rle_encode(square())}")
        drawn = [box(10, 20, 30, 40 - i, "glomerulus")]  # a1: a row less
        (tmp_path / f"data/train/a{i}.json").write_text(json.dumps(drawn))
    (tmp_path / "data/train.csv").write_text("\n".join(lines))
    said = prepared(capsys, tmp_path / "data")
    assert f"agree to a Dice of {2 * 780 / 1580:.4f}, in a1 {2 * 380 / 780:.4f}" in said
    assert "2 glomerulus (not used)" in said
    said = prepared(capsys, tmp_path / "data", "--label", "glomerulus")
    assert "agree" not in said and "2 glomerulus (to be found)" in said


def test_bad_polygons_that_are_only_compared_do_not_stop_the_run(hubmap, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(hubmap, folder)
    (folder / "train/slide0.json").write_text("{}")
    (folder / "train/slide1.json").write_text(json.dumps([box(900, 900, 910, 910, "far")]))
    said = prepared(capsys, folder)
    assert said.count("its run-length code is not compared with polygons") == 2
    assert "slide0.json" in refused(capsys, "--data", folder, "--label", "far", "--out",
                                    tmp_path / "o")


def test_slides_without_a_patient_in_the_table_are_named(hubmap, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(hubmap, folder)
    table = folder / PATIENTS
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-1]))
    said = prepared(capsys, folder)
    assert f"{PATIENTS} has no patient for {lines[-1].split('.tiff')[0]}" in said


@pytest.mark.parametrize(("epochs", "weights", "steps_averaged"), [
    (10, "imagenet", 200), (10, None, 50), (0.4, "imagenet", 10), (1, None, 10)])
def test_the_average_reaches_back_over_a_share_of_the_run_but_at_least_ten_steps(
        epochs, weights, steps_averaged):
    plan = train.Plan(SimpleNamespace(epochs=epochs, then=None, weights=weights),
                      steps_per_epoch=100)
    assert 1 / (1 - plan.ema_decay) == pytest.approx(steps_averaged)


def test_weights_bring_the_mean_and_std_that_they_were_trained_with(monkeypatch):
    monkeypatch.setattr(train, "load_weights", lambda *_: ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    net, network = train.build(train_options(["--weights", "file.pth", "--device", "cpu",
                                              "--encoder", "efficientnet-lite0"]), 100)
    for values, name in ((net.mean, "mean"), (net.std, "std")):
        assert values.flatten().tolist() == pytest.approx(network[name])
    assert network["mean"] == pytest.approx([0.1, 0.2, 0.3])
    assert network["std"] == pytest.approx([0.4, 0.5, 0.6])


@pytest.mark.parametrize("asked", [False, True])
def test_activations_are_recomputed_if_asked_for(data, tmp_path, monkeypatch, asked):
    seen = []
    monkeypatch.setattr(train, "recompute_activations", seen.append)
    monkeypatch.setattr(train, "training_step", lambda *_, **__: torch.zeros(()))
    train.main(["--data", str(data), "--out", str(tmp_path / "run"), *QUICK,
                *["--checkpoint-activations"] * asked])
    assert len(seen) == asked


def test_started_as_a_program_it_runs_and_ctrl_c_ends_it_in_one_line(monkeypatch, capsys):
    path = train.__file__
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(path, run_name="__main__")
    assert not end.value.code and "Train a U-Net on slides" in capsys.readouterr().out

    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(options, "train_options", interrupted)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(path, run_name="__main__")
    assert end.value.code == 130 and capsys.readouterr().err == "\ntrain.py: stopped\n"
