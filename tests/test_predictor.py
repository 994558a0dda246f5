"""What makes a trained network fast does not change what it says."""

import copy
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from minseg import UNet, predict_bands
from minseg.predictor import (
    FusedConv,
    FusedEnlarge,
    can_fuse,
    fill_up,
    fold_batch_norm,
    fuse,
    predictor,
    skip_flat,
)
from minseg.unet import convolve_enlarged

pytestmark = pytest.mark.usefixtures("small_networks")
SMALL = {"encoder": "efficientnet-lite0", "decoder_channels": (16, 16, 8, 8, 8)}
NETWORKS = {
    "plain": {},
    "b0": {"encoder": "efficientnet-b0"},
    "gates": {"gates": True},
    "scse": {"attention": "scse"},
    "cbam": {"attention": "cbam"},
    "cbam3": {"attention": "cbam3"},
    "hypercolumn": {"hypercolumn": True},
    "deep supervision": {"deep_supervision": True},
    "all": {"encoder": "efficientnet-b0", "gates": True, "attention": "cbam", "hypercolumn": True,
            "deep_supervision": True},
}


def build(seed=0, **options):
    """A network whose norms are what training leaves: none of them does nothing."""
    torch.manual_seed(seed)
    net = UNet(**{**SMALL, **options})
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.2)
                norm.running_var.uniform_(0.5, 1.5)
                norm.weight.uniform_(0.8, 1.2)
                norm.bias.normal_(0, 0.2)
        net.head.bias -= net.eval()(torch.rand(1, 3, 64, 64)).median()
    return net


@pytest.fixture(scope="module")
def net(small_networks):
    return build()


@pytest.fixture(scope="module")
def tiles():
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_a_folded_network_computes_what_the_network_does(options, tiles):
    net = build(**options)
    images = tiles[:1] / 255
    with torch.inference_mode():
        wanted, found = net(images), fold_batch_norm(net)(images)
        assert wanted.std() > 1e-3  # it says something
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        wanted, found = net.double()(images.double()), fold_batch_norm(net)(images.double())
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_no_norm_is_left_that_a_convolution_is_the_only_one_to_feed(options, monkeypatch):
    net, made, behind = build(**options), {}, {}

    def convolve(conv, d, skip=None):  # a block's first convolution is not called as a module
        output = convolve_enlarged(conv, d, skip)
        follow(None)(conv, (d,), output)
        return output

    monkeypatch.setattr("minseg.unet.convolve_enlarged", convolve)

    def follow(name):
        def hook(module, inputs, output):
            if isinstance(module, nn.BatchNorm2d):
                behind[name] = made.get(id(inputs[0])) == inputs[0]._version
            elif isinstance(module, nn.Conv2d):
                made[id(output)] = output._version  # grows where something is added in place
                kept.append(output)  # else another tensor may get its address
        return hook

    kept = []
    for name, module in net.named_modules():
        if not list(module.children()):
            module.register_forward_hook(follow(name))
    net(torch.rand(1, 3, 64, 64))
    norms = {name for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert set(behind) == norms and sum(behind.values()) > 30
    left = {name for name, m in fold_batch_norm(net).named_modules()
            if isinstance(m, nn.BatchNorm2d)}
    assert left == {name for name in norms if not behind[name]}


def test_the_network_that_is_folded_stays_as_it_was(tiles):
    net = build(gates=True).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    folded = fold_batch_norm(net)
    folded(tiles / 255)
    predictor([net], device="cpu", tta=True)(tiles[:1])
    assert net.training and all(p.requires_grad for p in net.parameters())
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(p.training for p in folded.modules() if not isinstance(p, nn.Identity))
    assert not any(p.requires_grad for p in folded.parameters())
    shared = {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in folded.parameters()}
    assert not shared


def test_it_predicts_the_sigmoid_of_what_the_network_says_of_bytes(net, tiles):
    found = predictor([net.train()], device="cpu")(tiles)
    with torch.no_grad():
        wanted = net.eval()(tiles / 255).sigmoid()
    assert found.dtype == torch.float32 and found.shape == (3, 1, 64, 64)
    assert not found.requires_grad
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert 0.2 < (found > 0.5).float().mean() < 0.8


def test_several_networks_are_averaged_as_probabilities(tiles):
    nets = [build(seed) for seed in range(3)]
    for net, shift in zip(nets, (-3, 0, 4)):  # so that means of logits differ
        net.head.bias.data += shift
    found = predictor(nets, device="cpu")(tiles)
    with torch.no_grad():
        logits = torch.stack([net(tiles / 255) for net in nets])
    torch.testing.assert_close(found, logits.sigmoid().mean(0), atol=1e-5, rtol=0)
    assert not torch.allclose(found, logits.mean(0).sigmoid(), atol=0.01)


def test_eight_views_are_the_mean_over_turns_and_flips(net, tiles):
    plain, total = predictor([net], device="cpu"), 0
    for turn in range(4):
        for flip in (False, True):
            view = tiles.rot90(turn, (2, 3))
            answer = plain(view.flip(3) if flip else view)
            total = total + (answer.flip(3) if flip else answer).rot90(-turn, (2, 3))
    found = predictor([net], device="cpu", tta=True)(tiles)
    torch.testing.assert_close(found, total / 8, atol=1e-5, rtol=0)
    assert not torch.allclose(found, plain(tiles), atol=0.01)


def test_mixed_precision_is_near_full_precision_and_comes_back_in_float32(net, tiles):
    full = predictor([net], device="cpu")(tiles)
    mixed = predictor([net], device="cpu", amp=True)(tiles)
    assert mixed.dtype == torch.float32
    assert 0 < (mixed - full).abs().max() < 0.05
    assert (mixed - full).abs().mean() < 0.01


def test_networks_are_compiled_only_where_asked(net, tiles, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda net: compiled.append(net) or net)
    plain = predictor([net, net], device="cpu")(tiles)
    assert not compiled
    found = predictor([net, net], device="cpu", compile=True)(tiles)
    assert len(compiled) == 2
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)


# Fused layers


def fused_layers(net):
    """How many layers of each kind `predictor` would put in the place of a network's own."""
    return Counter(type(m).__name__ for m in fuse(fold_batch_norm(net), torch.float32).modules())


@pytest.mark.skipif(not can_fuse(torch.float32), reason="needs oneDNN on a CPU with AVX")
@pytest.mark.parametrize("options", [*NETWORKS.values(), {"padding": "symmetric"}, {"classes": 3}],
                         ids=[*NETWORKS, "symmetric", "three classes"])
def test_fused_layers_compute_what_the_network_does_on_images_of_any_size(options):
    net = build(**options)
    counts = fused_layers(net)
    assert counts["FusedConv"] >= 40 and counts["FusedEnlarge"] == 5
    assert counts["Conv2d"] == 0 and counts["SiLU"] + counts["ReLU"] + counts["ReLU6"] == 0
    predict = predictor([net], device="cpu")
    for shape in ((2, 3, 64, 64), (1, 3, 33, 70), (1, 3, 1, 1), (2, 3, 64, 64)):
        tiles = torch.randint(0, 256, shape, dtype=torch.uint8)
        with torch.inference_mode():
            wanted = net(tiles / 255).sigmoid()
        torch.testing.assert_close(predict(tiles), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("can", [False, True])
def test_other_processors_and_other_networks_are_not_fused(net, tiles, monkeypatch, can):
    with torch.no_grad():
        wanted = net.eval()(tiles / 255).sigmoid()
    module = sys.modules[predictor.__module__]
    monkeypatch.setattr(module, "can_fuse", lambda dtype: can)
    monkeypatch.setattr(module, "fuse", None)  # an error if it is called
    other = nn.Sequential(net) if can else net
    torch.testing.assert_close(predictor([other], device="cpu")(tiles), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("weight", [torch.nan, 1e30])
def test_a_network_that_breaks_says_nan(tiles, weight):
    net = build()  # large weights are finite, but what two layers make of them is not
    net.block4.conv2[0].weight.data.fill_(weight)
    net.block3.conv1[0].weight.data[:, ::2] = weight
    net.block3.conv1[0].weight.data[:, 1::2] = -weight
    assert predictor([net], device="cpu")(tiles).isnan().any()


@pytest.mark.skipif(not can_fuse(torch.bfloat16), reason="needs a CPU with bfloat16")
def test_in_16_bits_only_the_first_convolution_takes_32():
    net = fuse(fold_batch_norm(build(gates=True)), torch.bfloat16)
    layers = [m for m in net.modules() if isinstance(m, FusedConv | FusedEnlarge)]
    assert layers[0] is net.encoder.stem[0] and layers[0].out == torch.bfloat16
    assert [m for m in layers if m.dtype != torch.bfloat16] == layers[:1]


# Sizes of batches


def sizes_of_batches(net, monkeypatch, images, skip=False, **options):
    """How many tiles the network gets, call by call, and the results. A tile has 32 pixels."""
    sizes, hooked = [], fold_batch_norm(copy.deepcopy(net))
    module = sys.modules[predictor.__module__]
    monkeypatch.setattr(module, "fold_batch_norm", lambda net: hooked)
    monkeypatch.setattr(torch, "compile", lambda net: net)
    hooked.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    predict = predictor([net], device="cpu", **options)
    predict = skip_flat(predict, 5.0) if skip else predict
    results = [torch.cat([band for _, band in predict_bands(
        predict, lambda y, x, h, w: image[y : y + h, x : x + w], *image.shape[:2], tile=32,
        stride=16, batch=4)], 1) for image in images]
    return sizes, results


def two_images():
    """64 x 112 pixels, 3 rows of 6 tiles, in part flat; 40 x 48 pixels, 2 rows of 2 tiles."""
    images = [np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
              for size in ((64, 112), (40, 48))]
    images[0][:, 40:] = 200
    return images


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("tta, views", [(False, 1), (True, 8)])
def test_a_compiled_network_gets_batches_of_one_size(net, monkeypatch, skip, tta, views):
    plain, wanted = sizes_of_batches(net, monkeypatch, two_images(), skip, tta=tta)
    sizes, results = sizes_of_batches(net, monkeypatch, two_images(), skip, tta=tta, compile=True,
                                      batch=4)
    assert len(set(plain)) > 1 and len(sizes) == len(plain) and set(sizes) == {4 * views}
    for result, other in zip(results, wanted):
        torch.testing.assert_close(result, other, atol=1e-5, rtol=0)


def test_on_a_cpu_each_tile_goes_through_the_network_once(net, monkeypatch):
    sizes, _ = sizes_of_batches(net, monkeypatch, two_images(), batch=4)
    assert sizes == [4, 2] * 3 + [2] * 2


def test_batches_are_filled_up_to_the_largest_so_far_and_answers_stay_in_order():
    predict = Recorder()
    full = fill_up(predict, 2)
    for count in (1, 3, 2, 3, 1):
        tiles = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8)
        assert torch.equal(full(tiles), tiles[:, :1] / 255)
    assert [len(tiles) for tiles in predict.asked] == [2, 3, 3, 3, 3]
    assert torch.equal(predict.asked[-1], tiles.expand(3, -1, -1, -1))


# Flat tiles


def halves(low, high, size=32):
    """A tile (3, size, size), its left half `low`, its right half `high`: a brightness each."""
    tile = torch.full((3, size, size), low, dtype=torch.uint8)
    tile[:, :, size // 2 :] = high
    return tile


class Recorder:
    """Predicts the first channel and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, tiles):
        self.asked.append(tiles)
        return tiles[:, :1] / 255


def test_flat_tiles_are_zero_and_do_not_go_through_the_network_and_the_others_do():
    noise = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    tiles = torch.stack([halves(240, 240), noise, halves(0, 0), halves(100, 150), halves(255, 250)])
    predict = Recorder()
    found = skip_flat(predict, 5.0)(tiles)
    assert found.shape == (5, 1, 32, 32) and found.dtype == torch.float32
    assert len(predict.asked) == 1 and torch.equal(predict.asked[0], tiles[[1, 3]])
    assert torch.equal(found[[1, 3]], tiles[[1, 3], :1] / 255)
    assert not found[[0, 2, 4]].any()


def test_a_batch_of_flat_tiles_does_not_call_the_network_at_all():
    predict = Recorder()
    found = skip_flat(predict, 5.0)(torch.stack([halves(200, 200), halves(201, 203)]))
    assert predict.asked == [] and torch.equal(found, torch.zeros(2, 1, 32, 32))


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("low, high, goes", [(100, 109, False), (100, 110, True), (90, 102, True)])
def test_contrast_is_the_standard_deviation_of_the_brightness(low, high, goes, size):
    predict = Recorder()  # two halves d apart deviate by d / 2
    skip_flat(predict, 5.0)(halves(low, high, size)[None])
    assert len(predict.asked) == goes


def test_colours_of_one_brightness_have_no_contrast():
    tile = halves(100, 100)
    tile[0, :, 16:] += 60
    tile[1, :, 16:] -= 60
    predict = Recorder()
    skip_flat(predict, 5.0)(tile[None])
    assert predict.asked == []


def test_a_batch_without_flat_tiles_is_what_the_network_predicts(net, tiles):
    plain = predictor([net], device="cpu")
    assert torch.equal(skip_flat(plain, 5.0)(tiles), plain(tiles))
