import pytest
import torch
from torch.nn import functional as F

from minseg import EfficientNet, UNet
from minseg.unet import DecoderBlock


def test_the_plain_b0_has_5839309_parameters():
    assert sum(p.numel() for p in UNet("efficientnet-b0").parameters()) == 5_839_309


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (17, 5), (32, 32), (33, 64), (257, 511)])
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
        y = block.conv2(block.conv1(torch.cat([y, skip], 1)))
    y = net.block0.conv2(net.block0.conv1(y.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    torch.testing.assert_close(net(x), net.head(y))


def test_a_decoder_block_is_two_times_convolution_norm_relu():
    block, x, skip = DecoderBlock(4, 2, 3).eval(), torch.randn(1, 4, 2, 3), torch.randn(1, 2, 4, 6)
    y = torch.cat([x.repeat_interleave(2, 2).repeat_interleave(2, 3), skip], 1)
    for conv, norm, _ in (block.conv1, block.conv2):
        y = F.conv2d(y, conv.weight, padding=1)
        y = (y / (1 + norm.eps) ** 0.5).clamp(min=0)  # fresh statistics: mean 0, variance 1
    torch.testing.assert_close(block(x, skip), y)


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
