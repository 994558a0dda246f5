"""Which part of a network makes a pixel depend on the tile that it lies in."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from lab import shifts
from minseg import CBAM, SCSE, UNet
from minseg.efficientnet import SqueezeExcite
from minseg.files.datasets import find_slides
from minseg.run.checkpoint import save_model
from minseg.synthetic import write_slides


@torch.inference_mode()
@pytest.mark.slow
def test_without_means_a_pixel_farther_inside_than_the_receptive_field_is_exact_on_the_grid():
    torch.manual_seed(0)
    net, tile = UNet("efficientnet-lite0").eval(), 2 * shifts.REACH + 64
    image = torch.rand(1, 3, tile + 32, tile + 32)

    def differences(shift):  # between logits: the largest deep inside both tiles, and anywhere
        second = net(image[..., shift : shift + tile, shift : shift + tile])[0, 0]
        difference = (first[shift:, shift:] - second[: tile - shift, : tile - shift]).abs()
        inner = difference[shifts.REACH : -shifts.REACH, shifts.REACH : -shifts.REACH]
        assert inner.shape[0] >= 32
        return inner.max().item(), difference.max().item()

    first = net(image[..., :tile, :tile])[0, 0]
    assert first.std() > 0.01
    inner, anywhere = differences(32)
    assert inner <= 1e-6 and anywhere > 1e-3
    assert differences(16)[0] > 1e-4  # another grid


@pytest.mark.parametrize("make", [SCSE, partial(CBAM, kernel_size=1),
                                  partial(SqueezeExcite, hidden=4)],
                         ids=["SCSE", "CBAM", "squeeze-and-excitation"])
def test_with_the_first_tiles_means_the_second_tile_answers_alike(make):
    torch.manual_seed(0)
    module = make(8).eval()
    torch.nn.init.ones_(module.reduce.weight)  # its activation lets the means through
    x = torch.rand(1, 8, 12, 12) * torch.linspace(0, 4, 12)  # the means of its parts differ
    with shifts.Means() as means:
        whole = module(x)
    assert len(means.recorded) == (2 if isinstance(module, CBAM) else 1)
    with shifts.Means(means):
        part = module(x[..., 4:])
    torch.testing.assert_close(part, whole[..., 4:])
    assert (module(x[..., 4:]) - part).abs().max() > 1e-4


def test_the_mismatch_of_a_network_that_knows_where_its_border_is():
    def net(x):  # certain within two pixels of its left border, and undecided elsewhere
        answer = torch.zeros(1, 1, *x.shape[2:])
        answer[..., :2] = 100.0
        return answer

    difference, alike, pixels = shifts.mismatch(net, torch.rand(1, 3, 36, 36), 32, 4)
    # In 28 x 28 shared pixels, two columns of the second tile stand against 1/2, at the border.
    assert pixels.tolist() == [28**2 - 12**2, 12**2]
    assert difference.tolist() == alike.tolist() == pytest.approx([28, 0])


def test_the_mismatch_of_a_network_that_knows_only_the_mean_of_its_tile():
    def net(x):
        return x.mean((2, 3), keepdim=True)[:, :1].expand(-1, 1, *x.shape[2:])

    found = shifts.mismatch(net, torch.linspace(0, 9, 36).expand(1, 3, 36, 36), 32, 4)
    apart, alike, pixels = found
    first, second = (torch.linspace(0, 9, 36)[x : x + 32].mean().sigmoid() for x in (0, 4))
    assert (apart / pixels).tolist() == pytest.approx([(second - first).item()] * 2)
    assert alike.tolist() == [0, 0]


def test_what_is_left_without_overlap_is_the_difference_between_two_grids_of_tiles():
    class Ramp(torch.nn.Module):  # knows nothing but the column in its tile
        def forward(self, x):
            return torch.linspace(-4, 4, x.shape[3]).expand(len(x), 1, *x.shape[2:])

    found = shifts.left(Ramp(), [np.zeros((288, 288, 3), np.uint8)], 64, 32, "cpu")
    x, p = np.arange(64, 224), 1 / (1 + np.exp(-np.linspace(-4, 4, 64)))
    expected = np.abs(p[x % 64] - p[(x - 32) % 64]).mean()
    assert found["overlap 0, uniform"] == pytest.approx(expected, rel=1e-4)
    assert found["overlap 0.5, linear"] < expected / 4  # each pixel's mean is nearly 1/2


@pytest.mark.usefixtures("small_networks")
def test_the_program_writes_a_row_for_each_network(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="python -m pip install -e '.[lab]'")
    write_slides(tmp_path / "slides", 2, height=160, width=160)
    torch.manual_seed(0)
    network = {"encoder": "efficientnet-lite0", "attention": "scse"}
    save_model(tmp_path / "model.pt", network, UNet(**network).state_dict(), scale=1, tile=64,
               threshold=0.5)
    command = [f"SCSE={tmp_path / 'model.pt'}", "--data", str(tmp_path / "slides"), "--docs",
               str(tmp_path), "--device", "cpu"]
    monkeypatch.setattr(shifts, "TILES", (64, 128))
    shifts.main(command)
    found = json.loads((tmp_path / "results/shifts.json").read_text())
    row, = found["rows"]
    assert row["name"] == "SCSE" and found["images"] == 2 and found["tiles"] == [64, 128]
    assert len(row["mismatch"]) == 6 + 2
    apart, alike = (sum(row["mismatch"]["tile 64, shift 32"][means])
                    for means in ("as they are", "same means"))
    assert apart != alike > 0
    assert row["left"]["overlap 0, uniform"] > 0
    assert (tmp_path / "figures/shifts.png").exists()
    monkeypatch.setattr(shifts, "TILES", (64, 256))
    for argv, message in (([], "it needs 288 a side"),
                          (["--device", "nosuch"], "there is no such device")):
        with pytest.raises(SystemExit):
            shifts.main([*command, *argv])
        assert message in capsys.readouterr().err


@pytest.mark.usefixtures("small_networks")
def test_slides_are_brought_to_the_size_of_pixels_that_the_models_know(
        tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="python -m pip install -e '.[lab]'")
    write_slides(tmp_path / "slides", 2, height=320, width=320)
    (tmp_path / "slides/slides.csv").write_text("id,microns\nslide00,0.5\nslide01,0.4\n")
    first, second = shifts.middles(tmp_path / "slides", 1, 0.8, 160)
    item = find_slides(tmp_path / "slides")[0]
    assert first.shape == second.shape == (160, 160, 3)
    assert (first == item.open(microns=0.8).read(20, 20, 160, 160)).all()
    network = {"encoder": "efficientnet-lite0"}
    for name, options in (("a", {"resample": True}), ("b", {})):
        save_model(tmp_path / f"{name}.pt", network, UNet(**network).state_dict(), scale=1,
                   tile=64, threshold=0.5, microns=0.8, **options)
    with pytest.raises(SystemExit):
        shifts.main([str(tmp_path / "a.pt"), str(tmp_path / "b.pt"), "--device", "cpu"])
    assert "one --scale or --microns" in capsys.readouterr().err
