import numpy as np
import pytest
import torch
from torch import nn

from minseg import AttentionGate


def random_gate(skip=4, gate=5, inter=None):
    """In evaluation mode, with statistics that are not those of a fresh norm."""
    module = AttentionGate(skip, gate, inter).eval()
    module.norm.running_mean.normal_()
    module.norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(module.norm.weight)
    nn.init.normal_(module.norm.bias)
    nn.init.normal_(module.psi.weight)
    return module


def passing_gate():
    """alpha 1, W the identity, a norm that changes nothing."""
    module = AttentionGate(4, 5).eval()
    nn.init.zeros_(module.psi.weight)
    nn.init.constant_(module.psi.bias, 100)
    nn.init.dirac_(module.project.weight)
    module.norm.running_var.fill_(1 - module.norm.eps)
    return module


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def bilinear(x, height, width):
    """(C, h, w) -> (C, height, width): pixels are squares, their values lie in the middle."""
    out = np.zeros((len(x), height, width))
    (h, w), at = x.shape[1:], lambda i, n, m: max(0, (i + 0.5) * n / m - 0.5)
    for i in range(height):
        for j in range(width):
            y, z = at(i, h, height), at(j, w, width)
            top, left = int(y), int(z)
            low, right = min(top + 1, h - 1), min(left + 1, w - 1)
            a, b = y - top, z - left
            out[:, i, j] = ((1 - a) * ((1 - b) * x[:, top, left] + b * x[:, top, right])
                            + a * ((1 - b) * x[:, low, left] + b * x[:, low, right]))
    return out


def naive(module, skip, gate):
    """alpha and the output for one image, pixel by pixel."""
    w = {k: v.double().numpy() for k, v in module.state_dict().items()}
    _channels, height, width = skip.shape
    phi = np.einsum("ig,ghw->ihw", w["phi.weight"][:, :, 0, 0], gate)
    phi = bilinear(phi + w["phi.bias"][:, None, None], height // 2, width // 2)
    q = np.zeros((1, height // 2, width // 2))
    for i in range(height // 2):
        for j in range(width // 2):
            patch = skip[:, 2 * i:2 * i + 2, 2 * j:2 * j + 2]
            theta = (w["theta.weight"] * patch).sum((1, 2, 3))
            psi = w["psi.weight"][0, :, 0, 0] @ np.maximum(0, theta + phi[:, i, j])
            q[0, i, j] = psi + w["psi.bias"][0]
    alpha = bilinear(sigmoid(q), height, width)
    out = np.zeros_like(skip)
    for i in range(height):
        for j in range(width):
            y = w["project.weight"][:, :, 0, 0] @ (alpha[0, i, j] * skip[:, i, j])
            y = (y - w["norm.running_mean"]) / np.sqrt(w["norm.running_var"] + module.norm.eps)
            out[:, i, j] = w["norm.weight"] * y + w["norm.bias"]
    return alpha, out


@pytest.mark.parametrize("skip_size, gate_size", [
    ((8, 6), (4, 3)), ((7, 9), (3, 4)), ((7, 9), (4, 5)), ((6, 8), (2, 5)), ((2, 2), (1, 1))])
def test_it_is_its_equation(skip_size, gate_size):
    torch.manual_seed(0)
    module = random_gate().double()
    skip = torch.randn(2, 4, *skip_size).double()
    gate = torch.randn(2, 5, *gate_size).double()
    alphas, outputs = zip(*(naive(module, s.numpy(), g.numpy()) for s, g in zip(skip, gate)))
    with torch.no_grad():
        torch.testing.assert_close(module.attention(skip, gate).numpy(), np.stack(alphas))
        torch.testing.assert_close(module(skip, gate).numpy(), np.stack(outputs))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (3, 2)])
@pytest.mark.parametrize("gate_size", [(4, 4), (2, 1), (5, 7)])
def test_attention_is_one_number_from_0_to_1_for_each_pixel_whatever_the_sizes(size, gate_size):
    torch.manual_seed(0)
    alpha = random_gate().attention(torch.randn(2, 4, *size), torch.randn(2, 5, *gate_size))
    assert alpha.shape == (2, 1, *size) and (alpha > 0).all() and (alpha < 1).all()


def test_a_gate_that_passes_everything_is_the_identity():
    module, skip = passing_gate(), torch.randn(2, 4, 8, 6)
    torch.testing.assert_close(module(skip, torch.randn(2, 5, 4, 3)), skip, atol=1e-6, rtol=1e-6)


def test_a_shut_gate_gives_zero_before_the_norm():
    module, seen = random_gate(), []
    nn.init.zeros_(module.psi.weight)
    nn.init.constant_(module.psi.bias, -200)  # sigmoid(-200) is 0 in float32
    module.norm.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    module(torch.randn(2, 4, 8, 6), torch.randn(2, 5, 4, 3))
    assert seen[0].shape == (2, 4, 8, 6) and not seen[0].any()


def test_a_fresh_gate_is_near_a_half_everywhere():
    torch.manual_seed(0)
    alpha = AttentionGate(32, 64).attention(torch.randn(4, 32, 16, 16), torch.randn(4, 64, 8, 8))
    assert alpha.min() > 0.2 and alpha.max() < 0.8


@pytest.mark.parametrize("inter", [None, 1, 3])
def test_every_parameter_and_both_maps_get_a_gradient(inter):
    torch.manual_seed(0)
    module = AttentionGate(4, 5, inter)
    skip = torch.randn(2, 4, 8, 6, requires_grad=True)
    gate = torch.randn(2, 5, 4, 3, requires_grad=True)
    (module(skip, gate) * torch.randn(2, 4, 8, 6)).sum().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert skip.grad.any() and gate.grad.any()


def test_inter_channels_are_half_of_the_skips_but_at_least_one():
    for skip, inter, wanted in [(24, None, 12), (5, None, 2), (1, None, 1), (24, 7, 7)]:
        module = AttentionGate(skip, 8, inter)
        assert module.theta.weight.shape == (wanted, skip, 2, 2)
        assert module.phi.weight.shape == (wanted, 8, 1, 1)
        assert module.psi.weight.shape == (1, wanted, 1, 1)


def test_parameters_are_in_the_order_of_the_equation():
    assert [name for name, _ in AttentionGate(4, 5).named_parameters()] == [
        "theta.weight", "phi.weight", "phi.bias", "psi.weight", "psi.bias", "project.weight",
        "norm.weight", "norm.bias"]
