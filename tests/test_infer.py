import csv

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.nn import functional as F

import infer
from minseg import UNet, predict_image, rle_decode
from minseg.data.synthetic import synthetic_slide
from minseg.run.checkpoint import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network that finds what is dark, in smooth patches: any would do."""
    torch.manual_seed(0)
    net = UNet("efficientnet-lite0")
    with torch.no_grad():
        logits = net.eval()(torch.rand(1, 3, 64, 64))
        net.head.bias -= logits.median()
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_model(path, {"encoder": "efficientnet-lite0"}, net.state_dict(), scale=2, tile=64,
               threshold=0.5)
    return path


@pytest.fixture
def slides(tmp_path):
    for i, size in enumerate([(301, 255), (128, 190)]):
        Image.fromarray(synthetic_slide(i, *size)[0]).save(tmp_path / f"kidney{i}.png")
    return [str(tmp_path / f"kidney{i}.png") for i in range(2)]


def test_mask_preview_and_csv_agree(model, slides, tmp_path):
    out, table = tmp_path / "out", tmp_path / "tables" / "submission.csv"
    infer.main([*slides, "--model", str(model), "--out", str(out), "--rle", str(table)])
    rows = list(csv.DictReader(open(table)))
    assert [row["id"] for row in rows] == ["kidney0", "kidney1"]
    for row, slide in zip(rows, slides):
        image = np.asarray(Image.open(slide))
        mask = tifffile.imread(out / f"{row['id']}.tiff")
        assert mask.shape == image.shape[:2] and mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(rle_decode(row["predicted"], *mask.shape), mask // 255)
        preview = np.asarray(Image.open(out / f"{row['id']}.preview.png"))
        painted = (preview == (230, 159, 0)).all(2)
        assert preview.shape == image.shape and painted.any()
        assert (mask[painted] == 255).all()  # the outline lies on the mask
        assert (preview[~painted] == image[~painted]).all()
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_the_mask_is_the_networks_blended_prediction_at_the_models_scale(model, slides, tmp_path):
    infer.main([slides[0], "--model", str(model), "--out", str(tmp_path / "o"), "--overlap", "0.25",
                "--window", "hann", "--threshold", "0.45"])
    net, _ = infer.load_model(model)
    small = infer.open_slide(slides[0], 2)
    small = small.read(0, 0, small.height, small.width)
    with torch.inference_mode():
        probability = predict_image(lambda t: net(t.float() / 255).sigmoid(), small, tile=64,
                                    stride=48, window="hann")[0]
    large = F.interpolate(probability[None, None], scale_factor=2, mode="bilinear")
    wanted = (large[0, 0, :301, :255] >= 0.45).numpy()
    assert (wanted == (tifffile.imread(tmp_path / "o" / "kidney0.tiff") > 0)).mean() > 0.999


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three networks of different weights: two of one scale and tile, one of others."""
    folder, paths = tmp_path_factory.mktemp("models"), []
    for i, (scale, tile, threshold) in enumerate([(2, 64, 0.4), (2, 64, 0.7), (1, 32, 0.5)]):
        torch.manual_seed(i)
        net = UNet("efficientnet-lite0")
        with torch.no_grad():
            net.head.bias -= net.eval()(torch.rand(1, 3, 64, 64)).median()
        paths.append(str(folder / f"model{i}.pt"))
        save_model(paths[-1], {"encoder": "efficientnet-lite0"}, net.state_dict(), scale=scale,
                   tile=tile, threshold=threshold)
    return paths


def naive(models, slide, views):
    """Mean probability of the models over the views of each whole tile, enlarged."""
    small = infer.open_slide(slide, 2)
    small = small.read(0, 0, small.height, small.width)
    nets = [infer.load_model(model)[0] for model in models]

    def predict(tiles):
        answers = []
        for net in nets:
            for turn, flip in views:
                view = tiles.rot90(turn, (2, 3))
                answer = net((view.flip(2) if flip else view).float() / 255).sigmoid()
                answers.append((answer.flip(2) if flip else answer).rot90(-turn, (2, 3)))
        return torch.stack(answers).mean(0)

    with torch.inference_mode():
        probability = predict_image(predict, small, tile=64, stride=32)[0]
    large = F.interpolate(probability[None, None], scale_factor=2, mode="bilinear")
    return large[0, 0, :301, :255].numpy()


@pytest.mark.parametrize("tta", [False, True])
def test_checkpoints_are_averaged_over_all_views_and_cut_at_their_mean_threshold(
        models, slides, tmp_path, tta):
    infer.main([slides[0], "--model", *models[:2], "--out", str(tmp_path / "o"), "--probabilities",
                *["--tta"] * tta])
    views = [(turn, flip) for turn in range(4) for flip in (False, True)] if tta else [(0, False)]
    wanted = naive(models[:2], slides[0], views)
    written = tifffile.imread(tmp_path / "o" / "kidney0.probabilities.tiff")
    assert written.dtype == np.uint8
    np.testing.assert_allclose(written, wanted * 255, atol=0.6)
    mask = tifffile.imread(tmp_path / "o" / "kidney0.tiff") > 0
    assert (mask == (wanted >= (0.4 + 0.7) / 2)).mean() > 0.999
    assert (mask == (wanted >= 0.4)).mean() < 0.999  # so the mean of thresholds shows


def test_checkpoints_of_different_scale_or_tile_are_not_mixed_up(models, slides, tmp_path, capsys):
    usual = (slides[0], "--out", tmp_path / "o", "--model")
    line = fails(capsys, 2, *usual, models[0], models[2])
    assert "model2.pt: has scale 1" in line and "model0.pt has 2" in line
    net, facts = infer.load_model(models[0])
    other = tmp_path / "other.pt"
    save_model(other, {"encoder": "efficientnet-lite0"}, net.state_dict(), **{**facts, "tile": 96})
    assert "--tile" in fails(capsys, 2, *usual, models[0], other)
    infer.main([str(a) for a in (*usual, models[0], other, "--tile", "64")])
    assert (tmp_path / "o" / "kidney0.tiff").exists()


def test_no_slide_takes_the_name_of_anothers_probabilities(model, slides, tmp_path, capsys):
    (tmp_path / "kidney0.probabilities.png").write_bytes(open(slides[0], "rb").read())
    line = fails(capsys, 2, slides[0], tmp_path / "kidney0.probabilities.png", "--model", model,
                 "--out", tmp_path / "o", "--probabilities")
    assert "kidney0.probabilities.tiff" in line and not (tmp_path / "o").exists()


def fails(capsys, code, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        infer.main([str(a) for a in arguments])
    assert error.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_bad_input_is_one_line_and_nothing_is_written(model, slides, tmp_path, capsys):
    out = tmp_path / "out"
    usual = ("--model", model, "--out", out)
    missing = ("--model", tmp_path / "no.pt", "--out", out)
    assert "no such file" in fails(capsys, 2, slides[0], *missing)
    (tmp_path / "text.pt").write_text("hello")
    assert "text.pt" in fails(capsys, 2, slides[0], "--model", tmp_path / "text.pt", "--out", out)
    assert "same name" in fails(capsys, 2, slides[0], slides[0], *usual)
    assert "--overlap" in fails(capsys, 2, slides[0], *usual, "--overlap", "1")
    assert "--device" in fails(capsys, 2, slides[0], *usual, "--device", "meta")
    nested = ("--model", model, "--out", tmp_path / "p" / "x", "--rle", tmp_path / "p")
    assert "another output" in fails(capsys, 2, slides[0], *nested)
    for place in (out, out / "kidney0.tiff", out / ".." / "out" / "kidney0.preview.png"):
        assert "another output" in fails(capsys, 2, slides[0], *usual, "--rle", place)
    assert "--window" in fails(capsys, 2, slides[0], *usual, "--window", "bartlett")
    assert not out.exists()
    assert "gone.png" in fails(capsys, 2, tmp_path / "gone.png", *usual)
    assert list(out.iterdir()) == []


def test_a_broken_slide_does_not_stop_the_others(model, slides, tmp_path, capsys):
    (tmp_path / "broken.tiff").write_text("not a slide")
    out, table = tmp_path / "out", tmp_path / "submission.csv"
    assert "broken.tiff" in fails(capsys, 1, slides[0], tmp_path / "broken.tiff", slides[1],
                                  "--model", model, "--out", out, "--rle", table)
    assert {p.name for p in out.glob("*.tiff")} == {"kidney0.tiff", "kidney1.tiff"}
    assert [row["id"] for row in csv.DictReader(open(table))] == ["kidney0", "kidney1"]


def test_nothing_is_overwritten(model, slides, tmp_path, capsys):
    out = tmp_path / "out"
    infer.main([slides[1], "--model", str(model), "--out", str(out)])
    before = {p: p.read_bytes() for p in out.iterdir()}
    assert "kidney1.tiff" in fails(capsys, 2, *slides, "--model", model, "--out", out)
    assert {p: p.read_bytes() for p in out.iterdir()} == before
    (out / "kidney0.preview.png").write_text("mine")
    assert "kidney0.preview.png" in fails(capsys, 2, slides[0], "--model", model, "--out", out)
    (out / "kidney0.preview.png").unlink()
    table = tmp_path / "submission.csv"
    table.write_text("mine")
    assert "submission.csv" in fails(capsys, 2, slides[0], "--model", model, "--out", out,
                                     "--rle", table)
    assert table.read_text() == "mine"
