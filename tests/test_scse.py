import numpy as np
import pytest
import torch
from torch import nn

from minseg import SCSE


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def naive(module, x, merge):
    """One image (C, H, W), pixel by pixel."""
    w = {k: v.double().numpy() for k, v in module.state_dict().items()}
    mean = np.array([channel.sum() / channel.size for channel in x])
    hidden = np.maximum(0, w["reduce.weight"][:, :, 0, 0] @ mean + w["reduce.bias"])
    c = sigmoid(w["expand.weight"][:, :, 0, 0] @ hidden + w["expand.bias"])
    out = np.zeros_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            v = x[:, i, j]
            s = sigmoid(w["spatial.weight"][0, :, 0, 0] @ v + w["spatial.bias"][0])
            out[:, i, j] = c * v + s * v if merge == "add" else np.maximum(c * v, s * v)
    return out


@pytest.mark.parametrize("merge", ["add", "max"])
@pytest.mark.parametrize("channels, reduction, hidden", [(8, 2, 4), (32, 16, 2), (5, 16, 1)])
def test_it_is_its_equation(merge, channels, reduction, hidden):
    torch.manual_seed(0)
    module = SCSE(channels, reduction, merge).double()
    assert module.reduce.weight.shape == (hidden, channels, 1, 1)
    x = torch.randn(3, channels, 4, 5).double()  # of both signs: the maximum is of c x and s x
    wanted = np.stack([naive(module, image.numpy(), merge) for image in x])
    torch.testing.assert_close(module(x).detach().numpy(), wanted)


def test_max_and_add_differ_and_add_is_the_default():
    torch.manual_seed(0)
    add, largest, x = SCSE(16), SCSE(16, merge="max"), torch.randn(2, 16, 4, 4)
    largest.load_state_dict(add.state_dict())
    named = SCSE(16, merge="add")
    named.load_state_dict(add.state_dict())
    assert torch.equal(add(x), named(x)) and not torch.allclose(add(x), largest(x), atol=0.1)


def test_a_sixteenth_of_the_channels_is_hidden_by_default():
    assert SCSE(32).reduce.out_channels == 2


@pytest.mark.parametrize("channels", [3, 16, 64])
def test_with_two_halves_the_sum_is_the_identity(channels):
    module, x = SCSE(channels), torch.randn(2, channels, 5, 7)
    for layer in (module.expand, module.spatial):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    assert torch.equal(module(x), x)


def alive(module, x):
    """Does the only hidden channel learn?"""
    module(x).square().sum().backward()
    return bool(module.reduce.weight.grad.any())


def test_a_single_hidden_channel_lives_from_the_start():
    for seed in range(50):
        torch.manual_seed(seed)
        assert alive(SCSE(16), torch.randn(2, 16, 8, 8).relu())


def test_started_about_zero_it_would_be_dead_in_about_half_of_all_runs():
    dead = 0
    for seed in range(100):
        torch.manual_seed(seed)
        module = SCSE(16)
        nn.init.uniform_(module.reduce.bias, -0.25, 0.25)  # PyTorch's own start
        dead += not alive(module, torch.randn(2, 16, 8, 8).relu())
    assert 30 < dead < 70


@pytest.mark.parametrize("merge", ["add", "max"])
def test_every_parameter_gets_a_gradient(merge):
    torch.manual_seed(0)
    module, x = SCSE(16, merge=merge), torch.randn(2, 16, 4, 4, requires_grad=True)
    module(x).square().sum().backward()
    assert [n for n, p in module.named_parameters() if not p.grad.any()] == [] and x.grad.any()


def test_another_merge_is_refused_with_its_name():
    with pytest.raises(ValueError, match="'mean'"):
        SCSE(16, merge="mean")
