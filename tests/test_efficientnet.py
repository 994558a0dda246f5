import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from minseg import EfficientNet
from minseg.efficientnet import SCALES, MBConv, PaddedConv, SqueezeExcite, round_channels

PARAMETERS = dict(zip(SCALES, (
    5_288_548, 7_794_184, 9_109_994, 12_233_232, 19_341_616, 30_389_784, 43_040_704, 66_347_960,
    4_652_008, 5_416_680, 6_092_072, 8_197_096, 13_006_568)))
PAPER_MULTIPLY_ADDS = dict(zip(SCALES, (0.39e9, 0.70e9, 1.0e9, 1.8e9, 4.2e9, 9.9e9, 19e9, 37e9)))


@pytest.mark.parametrize("name", SCALES)
def test_it_has_the_published_number_of_parameters(on_meta, name):
    assert sum(p.numel() for p in on_meta(name).parameters()) == PARAMETERS[name]


def test_dropout_and_image_sizes_are_those_of_the_authors_code():
    dropout, sizes = zip(*(scales[2:] for scales in SCALES.values()))
    assert dropout == (0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.2, 0.2, 0.3, 0.3, 0.3)
    assert sizes == (224, 240, 260, 300, 380, 456, 528, 600, 224, 240, 260, 280, 300)


@pytest.mark.parametrize("name", PAPER_MULTIPLY_ADDS)
def test_multiply_adds_are_within_6_percent_of_the_papers(on_meta, monkeypatch, name):
    # Norms have no multiply-adds that count, and take long without memory.
    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", lambda self, x: x)
    size = SCALES[name][3]
    with FlopCounterMode(display=False) as counter:
        on_meta(name)(torch.zeros(1, 3, size, size, device="meta"))
    multiply_adds = counter.get_total_flops() / 2
    assert multiply_adds == pytest.approx(PAPER_MULTIPLY_ADDS[name], rel=0.06)


@pytest.mark.parametrize("name", SCALES)
def test_features_have_the_channels_and_strides_they_announce(on_meta, name):
    encoder = on_meta(name)
    maps = encoder.features(torch.zeros(2, 3, 65, 96, device="meta"))
    for k, (channels, x) in enumerate(zip(encoder.feature_channels, maps, strict=True), 1):
        assert x.shape == (2, channels, math.ceil(65 / 2**k), math.ceil(96 / 2**k))


def test_without_classes_there_are_no_head_weights_and_no_forward(on_meta):
    encoder = on_meta("efficientnet-b0", num_classes=0)
    head = (320 + 2) * 1280 + 1281 * 1000
    assert sum(p.numel() for p in encoder.parameters()) == 5_288_548 - head
    with pytest.raises(ValueError, match="features"):
        encoder(torch.zeros(1, 3, 32, 32, device="meta"))


def test_lite_has_no_squeeze_no_silu_and_keeps_stem_and_head(on_meta):
    lite = on_meta("efficientnet-lite4")
    kinds = {type(m) for m in lite.modules()}
    assert not kinds & {SqueezeExcite, torch.nn.SiLU} and torch.nn.ReLU6 in kinds
    assert lite.stem[0].out_channels == 32 and lite.head[0].out_channels == 1280
    stages = [block.branch[-2].out_channels for block in lite.blocks]
    assert stages.count(stages[0]) == 1 and stages.count(stages[-1]) == 1  # never repeated


@pytest.mark.parametrize("size", [7, 8, 12, 15])
@pytest.mark.parametrize("kernel", [3, 5])
def test_same_padding_puts_the_odd_pixel_right_and_down(size, kernel):
    conv, x = PaddedConv(1, 1, kernel, stride=2), torch.randn(1, 1, size, size)
    wanted = math.ceil(size / 2)  # TensorFlow: this many windows, as little padding as they need
    total = max((wanted - 1) * 2 + kernel - size, 0)
    before, after = total // 2, total - total // 2
    padded = F.pad(x, (before, after, before, after))
    naive = torch.stack([
        (padded[0, 0, 2 * i : 2 * i + kernel, 2 * j : 2 * j + kernel] * conv.weight[0, 0]).sum()
        for i in range(wanted) for j in range(wanted)]).view(1, 1, wanted, wanted)
    torch.testing.assert_close(conv(x), naive)


def test_symmetric_padding_is_pytorchs_own():
    conv, x = PaddedConv(2, 3, 5, stride=2, same=False), torch.randn(1, 2, 12, 12)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, stride=2, padding=2))


def test_squeeze_and_excite_is_its_equation():
    se, x = SqueezeExcite(4, 2), torch.randn(2, 4, 3, 5)
    w1, b1 = se.reduce.weight[:, :, 0, 0], se.reduce.bias
    w2, b2 = se.expand.weight[:, :, 0, 0], se.expand.bias
    hidden = x.mean((2, 3)) @ w1.T + b1
    gate = torch.sigmoid((hidden * torch.sigmoid(hidden)) @ w2.T + b2)
    torch.testing.assert_close(se(x), x * gate[:, :, None, None])


@pytest.mark.parametrize("lite", [False, True])
@pytest.mark.parametrize("expansion, c_out, stride", [(1, 4, 1), (6, 4, 1), (6, 4, 2), (6, 5, 1)])
def test_a_block_is_expand_filter_squeeze_project_and_add(lite, expansion, c_out, stride):
    torch.manual_seed(0)
    block = MBConv(4, c_out, 3, stride, expansion, lite=lite, same=True, bn_eps=0.5, drop=0.2)
    x = torch.randn(2, 4, 6, 6)
    layers, y = list(block.eval().branch), 3 * x

    def norm(y):  # fresh statistics: mean 0, variance 1
        return y / 1.5**0.5

    def act(y):
        return y.clamp(0, 6) if lite else y * y.sigmoid()

    if expansion > 1:
        y = act(norm(layers[0](y)))
        del layers[:3]
    y = act(norm(layers[0](y)))
    if not lite:
        y = layers[3](y)
    y = norm(layers[-2](y))
    if stride == 1 and c_out == 4:
        y = y + 3 * x
    torch.testing.assert_close(block(3 * x), y)


@pytest.mark.parametrize("name", ["efficientnet-b0", "efficientnet-lite0"])
def test_stem_and_head_are_convolution_norm_activation(name):
    torch.manual_seed(0)
    net, x = EfficientNet(name, num_classes=7).eval(), torch.randn(2, 3, 32, 32)

    def act(y):
        y = y / (1 + 1e-3) ** 0.5
        return y.clamp(0, 6) if "lite" in name else y * y.sigmoid()

    first, last = act(net.stem[0](x)), net.features(x)[-1]
    torch.testing.assert_close(net.features(x)[0], first)
    logits = act(net.head[0](last)).mean((2, 3)) @ net.head[-1].weight.T + net.head[-1].bias
    torch.testing.assert_close(net(x), logits)
    assert net.head[-2].p == 0.2


def test_weights_start_with_the_variance_that_keeps_gradients():
    torch.manual_seed(0)
    for module in EfficientNet(num_classes=0).modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 5000:
            fan_out = module.out_channels // module.groups * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
            assert module.bias is None or not module.bias.any()


def test_stochastic_depth_drops_whole_branches_and_keeps_the_mean():
    torch.manual_seed(0)
    block = MBConv(4, 4, 3, 1, 6, lite=False, same=True, bn_eps=1e-3, drop=0.4)
    for norm in block.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eval()  # so that an image's branch does not depend on the others
    x = torch.randn(1, 4, 5, 5).expand(4000, -1, -1, -1)
    branch = (block(x) - x) / block.branch.eval()(x[:1])
    factors = branch.flatten(1).median(1).values
    dropped = factors.abs() < 1e-3
    assert dropped.float().mean() == pytest.approx(0.4, abs=0.04)
    torch.testing.assert_close(factors[~dropped], torch.full_like(factors[~dropped], 1 / 0.6),
                               rtol=1e-3, atol=0)


def test_stochastic_depth_grows_with_depth_and_rests_in_eval():
    encoder = EfficientNet(num_classes=0, stochastic_depth=0.2)
    drops = [block.drop for block in encoder.blocks]
    assert drops == [0.2 * i / 16 for i in range(16)]
    encoder.eval()
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(encoder.features(x)[-1], encoder.features(x)[-1])


@pytest.mark.parametrize("channels, width, rounded", [
    (32, 1.1, 32), (24, 1.1, 24), (40, 1.1, 48), (32, 1.4, 48), (16, 1.2, 24), (1280, 1.1, 1408)])
def test_channels_are_rounded_to_eights_never_down_by_over_a_tenth(channels, width, rounded):
    assert round_channels(channels, width) == rounded


def test_batch_norm_has_momentum_a_tenth_and_the_epsilon_asked_for():
    norms = [m for m in EfficientNet(num_classes=0, bn_eps=1e-5).modules()
             if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(m.momentum, m.eps) for m in norms} == {(0.1, 1e-5)}


def test_unknown_names_and_paddings_are_refused():
    with pytest.raises(ValueError, match="efficientnet-b9.*efficientnet-b0"):
        EfficientNet("efficientnet-b9")
    with pytest.raises(ValueError, match="valid"):
        EfficientNet(padding="valid")
