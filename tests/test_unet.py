import math

import pytest
import torch
from torch.nn import functional as F

from minseg import CBAM, SCSE, EfficientNet, UNet
from minseg.efficientnet import SCALES
from minseg.unet import DecoderBlock, convolve_enlarged


def test_the_plain_b0_has_5839309_parameters():
    assert sum(p.numel() for p in UNet("efficientnet-b0").parameters()) == 5_839_309


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (17, 5), (32, 32), (33, 64), (129, 255)])
def test_any_size_gives_logits_of_that_size(size, training):
    net = UNet("efficientnet-lite0").train(training)
    logits = net(torch.rand(1, 3, *size))
    assert logits.shape == (1, 1, *size) and logits.isfinite().all()


def test_other_sizes_are_padded_by_repeating_the_border():
    net, x = UNet().eval(), torch.rand(2, 3, 40, 50)
    whole = net(F.pad(x, (0, 14, 0, 24), mode="replicate"))
    torch.testing.assert_close(net(x), whole[:, :, :40, :50])


def test_only_a_single_small_image_in_training_is_padded_further():
    net, seen = UNet("efficientnet-lite0"), []
    net.encoder.stem.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape[2:])))
    for training, n, size in [(True, 1, 32), (False, 1, 32), (True, 2, 32), (True, 1, 33)]:
        net.train(training)(torch.rand(n, 3, 20, size))
    assert seen == [(64, 32), (32, 32), (32, 32), (32, 64)]


def test_padding_and_epsilon_are_the_encoders():
    net = UNet("efficientnet-lite0", padding="symmetric", bn_eps=1e-4, stochastic_depth=0.5)
    assert not net.encoder.stem[0].same and net.encoder.stem[1].eps == 1e-4
    assert net.encoder.blocks[-1].drop == pytest.approx(0.5 * 15 / 16)
    assert net.block0.conv1[1].eps == 1e-5  # the decoder keeps PyTorch's


def test_forward_is_the_figure():
    torch.manual_seed(0)
    net = UNet("efficientnet-lite0").eval()
    x = torch.rand(1, 3, 64, 96)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    *skips, y = net.encoder.features((x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    for block, skip in zip((net.block4, net.block3, net.block2, net.block1), skips[::-1]):
        y = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = block.conv2(torch.nn.Sequential.forward(block.conv1, torch.cat([y, skip], 1)))
    y = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
    y = net.block0.conv2(torch.nn.Sequential.forward(net.block0.conv1, y))
    torch.testing.assert_close(net(x), net.head(y))


def test_a_decoder_block_is_two_times_convolution_norm_relu():
    block, x, skip = DecoderBlock(4, 2, 3).eval(), torch.randn(1, 4, 2, 3), torch.randn(1, 2, 4, 6)
    y = torch.cat([x.repeat_interleave(2, 2).repeat_interleave(2, 3), skip], 1)
    for conv, norm, _ in (block.conv1, block.conv2):
        y = F.conv2d(y, conv.weight, padding=1)
        y = (y / (1 + norm.eps) ** 0.5).clamp(min=0)  # fresh statistics: mean 0, variance 1
    torch.testing.assert_close(block(x, skip), y)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("channels", [(4, 2), (3, 0)])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
def test_a_convolution_of_an_enlarged_map_need_not_enlarge_it(channels, size, bias):
    torch.manual_seed(0)
    c_in, c_skip = channels
    conv = torch.nn.Conv2d(c_in + c_skip, 6, 3, padding=1, bias=bias).double()
    d = torch.randn(2, c_in, *size, dtype=torch.float64, requires_grad=True)
    skip = torch.randn(2, c_skip, 2 * size[0], 2 * size[1], dtype=torch.float64, requires_grad=True)
    literal = conv(torch.cat([d.repeat_interleave(2, 2).repeat_interleave(2, 3), skip], 1))
    saved = convolve_enlarged(conv, d, skip if c_skip else None)
    torch.testing.assert_close(saved, literal)
    inputs, weights = [d, skip] if c_skip else [d], torch.randn_like(literal)
    for ours, theirs in zip(*(torch.autograd.grad((result * weights).sum(),
                                                  [*inputs, *conv.parameters()])
                              for result in (saved, literal))):
        torch.testing.assert_close(ours, theirs)


def test_b0_takes_its_stride_16_skip_where_segmentation_models_does_and_the_others_last():
    assert UNet("efficientnet-b0").encoder.taps == [2, 4, 8, 15]
    assert EfficientNet("efficientnet-b0").taps == [2, 4, 10, 15]
    assert UNet("efficientnet-b1").encoder.taps == [4, 7, 15, 22]


@pytest.mark.parametrize("in_channels", [1, 3, 4])
@pytest.mark.parametrize("classes", [1, 3])
def test_every_parameter_gets_a_gradient(in_channels, classes):
    net = UNet("efficientnet-lite0", in_channels=in_channels, classes=classes, stochastic_depth=0)
    net(torch.rand(2, in_channels, 64, 64)).square().mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_input_is_normalised_inside_with_imagenets_statistics_or_those_given():
    net = UNet("efficientnet-lite0").eval()
    plain = UNet("efficientnet-lite0", mean=(0, 0, 0), std=(1, 1, 1)).eval()
    plain.load_state_dict(net.state_dict())
    x = torch.rand(1, 3, 32, 32)
    normal = (x - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
    normal = normal / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    torch.testing.assert_close(net(x), plain(normal))
    assert UNet("efficientnet-lite0", in_channels=4).mean.flatten().tolist() == [0.5] * 4


def test_statistics_are_arguments_and_not_part_of_the_state_dict():
    assert not {"mean", "std"} & set(UNet("efficientnet-lite0").state_dict())


def test_bad_arguments_are_refused_with_their_value():
    with pytest.raises(ValueError, match="resnet34"):
        UNet("resnet34")
    with pytest.raises(ValueError, match="mean needs 4 numbers"):
        UNet(in_channels=4, mean=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="std needs 3 numbers"):
        UNet(std=(0.5,))
    with pytest.raises(ValueError, match="five numbers"):
        UNet(decoder_channels=(64, 32))
    with pytest.raises(ValueError, match="'senet'"):
        UNet("efficientnet-lite0", attention="senet")


BLOCKS = ["block4", "block3", "block2", "block1", "block0"]


def lively(**tricks):
    """A net in evaluation mode whose statistics are those of some images: its logits vary."""
    net = UNet("efficientnet-lite0", stochastic_depth=0, **tricks)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # a plain mean over the batches seen
        for _ in range(2):
            net(torch.rand(4, net.mean.shape[1], 64, 64))
    return net.eval()


def with_a_trick(plain, **tricks):
    """A net with tricks and the plain one's weights where it has them, and the names it added."""
    net = UNet("efficientnet-lite0", **tricks).eval()
    added, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert added and not unexpected
    return net, added


def outputs_of(net, x, *names):
    """What the named parts of the net give, and then the net itself."""
    seen = {}
    hooks = [net.get_submodule(name).register_forward_hook(
        lambda _, x, y, name=name: seen.update({name: y})) for name in names]
    out = net(x)
    for hook in hooks:
        hook.remove()
    return [seen[name] for name in names] + [out]


def test_the_plain_net_has_no_names_but_encoder_blocks_and_head():
    names = [n for n in UNet("efficientnet-lite0").state_dict() if not n.startswith("encoder.")]
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert names == [f"{block}.{conv}.{end}" for block in BLOCKS for conv in ("conv1", "conv2")
                     for end in ["0.weight", *(f"1.{n}" for n in norm)]
                     ] + ["head.weight", "head.bias"]


@pytest.mark.parametrize("attention", ["scse", "cbam"])
def test_with_neutral_attention_it_is_the_plain_net(attention):
    torch.manual_seed(0)
    plain, x = lively(), torch.rand(2, 3, 64, 96)
    net, added = with_a_trick(plain, attention=attention)
    assert {tuple(n.split(".")[:2]) for n in added} == {(b, "attention") for b in BLOCKS}
    assert not torch.allclose(net(x), plain(x), atol=0.05)
    for block in (net.get_submodule(name) for name in BLOCKS):
        if attention == "scse":
            for layer in (block.attention.expand, block.attention.spatial):
                torch.nn.init.zeros_(layer.weight)
                torch.nn.init.zeros_(layer.bias)
        else:
            torch.nn.init.constant_(block.attention.expand.bias, 100)
            torch.nn.init.constant_(block.attention.norm.bias, 100)
    torch.testing.assert_close(net(x), plain(x), atol=1e-5, rtol=1e-5)


def test_attention_comes_last_in_every_block_and_cbam3_is_the_winners():
    for name, kind, kernel in [("scse", SCSE, 1), ("cbam", CBAM, 7), ("cbam3", CBAM, 3)]:
        net = UNet("efficientnet-lite0", attention=name).eval()
        for block in (net.get_submodule(b) for b in BLOCKS):
            assert type(block.attention) is kind
            assert block.attention.spatial.kernel_size == (kernel, kernel)
            assert hasattr(block.attention, "norm") == (kind is CBAM)
            if kind is CBAM:
                normed = isinstance(block.attention.norm, torch.nn.BatchNorm2d)
                assert normed == (name == "cbam")
        x = torch.rand(1, 3, 32, 32)
        conv, after, whole, _ = outputs_of(net, x, "block2.conv2", "block2.attention", "block2")
        assert torch.equal(after, net.block2.attention(conv)) and torch.equal(whole, after)


def test_with_gates_that_pass_everything_it_is_the_plain_net():
    torch.manual_seed(0)
    plain, x = lively(), torch.rand(2, 3, 64, 96)
    net, _ = with_a_trick(plain, gates=True)
    assert not torch.allclose(net(x), plain(x), atol=0.05)
    for gate in (net.block4.gate, net.block3.gate, net.block2.gate):
        torch.nn.init.zeros_(gate.psi.weight)
        torch.nn.init.constant_(gate.psi.bias, 100)
        torch.nn.init.dirac_(gate.project.weight)
        gate.norm.running_var.fill_(1 - gate.norm.eps)
    torch.testing.assert_close(net(x), plain(x), atol=1e-4, rtol=1e-4)


def test_three_skips_are_gated_by_the_map_from_below_and_the_finest_is_not():
    torch.manual_seed(0)
    net, x = lively(gates=True), torch.rand(1, 3, 64, 64)
    assert [net.get_submodule(b).gate is not None for b in BLOCKS] == [True] * 3 + [False] * 2
    fed = {}
    for block in BLOCKS:
        net.get_submodule(block).conv1.register_forward_pre_hook(
            lambda _, inputs, block=block: fed.update({block: inputs}))
    mean, std = net.mean, net.std
    _, x2, x3, x4, x5 = net.encoder.features((x - mean) / std)
    d4, d3, _ = outputs_of(net, x, "block4", "block3")
    for block, skip, deeper in [("block4", x4, x5), ("block3", x3, d4), ("block2", x2, d3)]:
        assert torch.equal(fed[block][0], deeper)  # itself is not gated
        torch.testing.assert_close(fed[block][1], net.get_submodule(block).gate(skip, deeper))


def test_a_hypercolumn_changes_only_what_the_head_sees():
    torch.manual_seed(0)
    plain, x = lively(), torch.rand(2, 3, 50, 70)
    net, added = with_a_trick(plain, hypercolumn=True)
    assert {n.split(".")[0] for n in added} == {"hypercolumn"}
    maps = outputs_of(net, x, *BLOCKS[::-1])
    for ours, theirs in zip(maps[:5], outputs_of(plain, x, *BLOCKS[::-1])):
        assert torch.equal(ours, theirs)
    seen = net.hypercolumn(maps[:5])
    assert seen.shape == (2, 16, 64, 96)
    torch.testing.assert_close(maps[5], net.head(seen)[:, :, :50, :70])
    assert not torch.allclose(maps[5], plain(x), atol=0.05)


@pytest.mark.parametrize("size", [(64, 64), (70, 33), (1, 1)])
def test_deep_supervision_gives_five_logits_finest_first_only_in_training(size):
    torch.manual_seed(0)
    net, x = UNet("efficientnet-lite0", classes=3, deep_supervision=True), torch.rand(2, 3, *size)
    names = ["block0", "block1", "block2", "block3", "block4"]
    *maps, logits = outputs_of(net.train(), x, *names)
    assert isinstance(logits, list) and len(logits) == 5
    for k, (z, d, head) in enumerate(zip(logits, maps, [net.head, *net.deep_heads])):
        height, width = (math.ceil(length / 2**k) for length in size)
        assert z.shape == (2, 3, height, width)
        assert torch.equal(z, head(d)[:, :, :height, :width])
        assert k == 0 or head.kernel_size == (1, 1)
    assert net.eval()(x).shape == (2, 3, *size)


def test_deep_supervision_does_not_change_the_finest_logits():
    torch.manual_seed(0)
    plain, x = lively(), torch.rand(2, 3, 64, 64)
    net, added = with_a_trick(plain, deep_supervision=True)
    assert {n.split(".")[0] for n in added} == {"deep_heads"}
    assert torch.equal(net(x), plain(x))


ATTENTION = [None, "scse", "cbam", "cbam3"]


# Every pair of values of the six arguments occurs.
@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("hypercolumn", [False, True])
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("gates", [False, True])
def test_every_parameter_gets_a_gradient_whatever_is_switched_on(
        gates, attention, hypercolumn, deep_supervision, monkeypatch):
    monkeypatch.setitem(SCALES, "efficientnet-lite0", (0.25, 0.34, 0.2, 224))  # narrow and short
    switched_on = gates + ATTENTION.index(attention) + hypercolumn + deep_supervision
    in_channels, classes = (1, 3, 4)[switched_on % 3], (1, 3)[switched_on % 2]
    torch.manual_seed(0)
    net = UNet("efficientnet-lite0", classes=classes, in_channels=in_channels, gates=gates,
               decoder_channels=(64, 32, 32, 16, 16), attention=attention,
               hypercolumn=hypercolumn, deep_supervision=deep_supervision, stochastic_depth=0)
    logits = net(torch.rand(2, in_channels, 64, 64))
    logits = logits if deep_supervision else [logits]
    sum(z.square().sum() for z in logits).backward()
    still = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == [], (classes, in_channels)


def test_convolutions_start_as_kaiming_and_glorot_say_and_the_head_without_a_bias():
    """Variance 2 / fan_in before a ReLU (arXiv 1502.01852, section 2.2), uniform up to
    sqrt(6 / (fan_in + fan_out)) in the head (Glorot and Bengio 2010, equation 16)."""
    torch.manual_seed(0)
    net = UNet("efficientnet-lite0")
    for block in (net.block4, net.block1):
        for conv in (each for each in block.modules() if isinstance(each, torch.nn.Conv2d)):
            if conv.kernel_size == (3, 3):
                fan_in = conv.in_channels * 9
                assert conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
    fan_in, fan_out = net.head.in_channels * 9, net.head.out_channels * 9
    limit = (6 / (fan_in + fan_out)) ** 0.5
    assert 0.8 * limit < net.head.weight.abs().max() <= limit
    assert not net.head.bias.any()
