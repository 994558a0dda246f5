import numpy as np
import pytest
import torch
from torch import nn

from minseg import CBAM


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def naive(module, x):
    """One image (C, H, W): equations 1 to 3, pixel by pixel."""
    w = {k: v.double().numpy() for k, v in module.state_dict().items()}

    def mlp(v):
        hidden = np.maximum(0, w["reduce.weight"][:, :, 0, 0] @ v + w["reduce.bias"])
        return w["expand.weight"][:, :, 0, 0] @ hidden + w["expand.bias"]

    x = x * sigmoid(mlp(x.max((1, 2))) + mlp(x.mean((1, 2))))[:, None, None]
    kernel = w["spatial.weight"][0]
    reach, (height, width) = kernel.shape[-1] // 2, x.shape[1:]
    maps, out = np.stack([x.max(0), x.mean(0)]), np.zeros_like(x)
    for i in range(height):
        for j in range(width):
            score = 0
            for a in range(max(0, i - reach), min(height, i + reach + 1)):
                for b in range(max(0, j - reach), min(width, j + reach + 1)):
                    score += kernel[:, a - i + reach, b - j + reach] @ maps[:, a, b]
            if "norm.weight" in w:
                score = score - w["norm.running_mean"][0]
                score = score / np.sqrt(w["norm.running_var"][0] + module.norm.eps)
                score = score * w["norm.weight"][0] + w["norm.bias"][0]
            out[:, i, j] = sigmoid(score) * x[:, i, j]
    return out


@pytest.mark.parametrize("kernel_size, spatial_norm", [(7, True), (3, False)])
@pytest.mark.parametrize("channels, reduction, hidden", [(8, 2, 4), (5, 16, 1)])
def test_it_is_its_equations(kernel_size, spatial_norm, channels, reduction, hidden):
    torch.manual_seed(0)
    module = CBAM(channels, reduction, kernel_size, spatial_norm).eval().double()
    if spatial_norm:
        for values in (module.norm.running_mean, module.norm.weight.data, module.norm.bias.data):
            values.normal_()
        module.norm.running_var.uniform_(0.5, 2)
    assert module.reduce.weight.shape == (hidden, channels, 1, 1)
    assert module.spatial.weight.shape == (1, 2, kernel_size, kernel_size)
    x = torch.randn(2, channels, 9, 6).double()
    wanted = np.stack([naive(module, image.numpy()) for image in x])
    torch.testing.assert_close(module(x).detach().numpy(), wanted)


def half_open(channels=4):
    """Every channel weighs a half; the spatial step is a sigmoid of nothing yet."""
    module = CBAM(channels, kernel_size=3, spatial_norm=False)
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def test_the_two_maps_are_the_maximum_and_then_the_mean_of_the_weighed_channels():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 5)
    for index, seen in enumerate([x.amax(1, keepdim=True), x.mean(1, keepdim=True)]):
        module = half_open()
        module.spatial.weight.data[0, index, 1, 1] = 3
        # x / 2 and not x is what the convolution sees: the channel step came first
        torch.testing.assert_close(module(x), x / 2 * (3 * seen / 2).sigmoid())


def test_channels_are_weighed_by_the_plain_x_and_not_by_what_the_places_left():
    torch.manual_seed(0)
    module, x, seen = CBAM(4), torch.randn(2, 4, 5, 5), []
    module.reduce.register_forward_pre_hook(lambda _, v: seen.append(v[0]))
    module(x)
    assert torch.equal(seen[0], x.amax((2, 3), keepdim=True))
    assert torch.equal(seen[1], x.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_saturated_it_is_the_identity(kernel_size):
    module, x = CBAM(16, kernel_size=kernel_size).eval(), torch.randn(2, 16, 6, 5)
    nn.init.constant_(module.expand.bias, 100)
    nn.init.constant_(module.norm.bias, 100)
    assert torch.equal(module(x), x)


def test_without_norm_and_weights_it_is_a_quarter():
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(half_open()(x), x / 4)


def alive(module, x):
    """Does the only hidden channel learn?"""
    module(x).square().sum().backward()
    return bool(module.reduce.weight.grad.any())


def test_a_single_hidden_channel_lives_from_the_start():
    for seed in range(50):
        torch.manual_seed(seed)
        assert alive(CBAM(16), torch.randn(2, 16, 8, 8).relu())


def test_started_about_zero_it_would_often_be_dead():
    dead = 0
    for seed in range(100):
        torch.manual_seed(seed)
        module = CBAM(16)
        nn.init.uniform_(module.reduce.bias, -0.25, 0.25)  # PyTorch's own start
        dead += not alive(module, torch.randn(2, 16, 8, 8).relu())
    assert 10 < dead < 70


@pytest.mark.parametrize("options", [{}, {"kernel_size": 3, "spatial_norm": False}])
def test_every_parameter_gets_a_gradient(options):
    torch.manual_seed(0)
    module, x = CBAM(16, **options), torch.randn(2, 16, 9, 9, requires_grad=True)
    module(x).square().sum().backward()
    assert [n for n, p in module.named_parameters() if not p.grad.any()] == [] and x.grad.any()


def test_without_a_norm_there_are_no_parameters_of_one():
    names = [name for name, _ in CBAM(16, spatial_norm=False).named_parameters()]
    assert names == ["reduce.weight", "reduce.bias", "expand.weight", "expand.bias",
                     "spatial.weight"]
    assert [n for n, _ in CBAM(16).named_parameters()] == [*names, "norm.weight", "norm.bias"]


@pytest.mark.parametrize("kernel_size", [2, 6])
def test_an_even_kernel_is_refused_with_its_size(kernel_size):
    with pytest.raises(ValueError, match=f"not {kernel_size}"):
        CBAM(16, kernel_size=kernel_size)
