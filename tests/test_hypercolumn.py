import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from minseg import Hypercolumn

CHANNELS = (4, 6, 8, 5, 12)


def maps_of(height, width, channels=CHANNELS, n=2):
    """Finest first, each half as large, sizes rounded up."""
    return [torch.randn(n, c, -(-height // 2**k), -(-width // 2**k), requires_grad=True)
            for k, c in enumerate(channels)]


def stack(maps):
    """The hypercolumns themselves: (N, sum of channels, H, W)."""
    size = maps[0].shape[2:]
    return torch.cat([F.interpolate(x, size, mode="bilinear", align_corners=False) for x in maps],
                     1)


def literal(column, maps):
    """Concatenation, one 1 x 1 convolution with the weights side by side, batch norm, ReLU."""
    z = F.conv2d(stack(maps), torch.cat([part.weight for part in column.project], 1))
    norm = column.norm
    z = F.batch_norm(z, norm.running_mean.clone(), norm.running_var.clone(), norm.weight,
                     norm.bias, column.training, norm.momentum, norm.eps)
    return z.relu()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(32, 48), (16, 16), (33, 21)])
def test_it_is_the_literal_concatenation_in_value_and_gradients(size, training):
    torch.manual_seed(0)
    column, maps = Hypercolumn(CHANNELS, 7).train(training), maps_of(*size)
    column.norm.running_mean.normal_()
    column.norm.running_var.uniform_(0.5, 2)
    for p in column.norm.parameters():
        torch.nn.init.normal_(p)
    at, wanted = [*column.parameters(), *maps], literal(column, maps)
    value = column(maps)
    assert value.shape == (2, 7, *size) and value.any()
    torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(wanted)
    gradients = [torch.autograd.grad((z * direction).sum(), at) for z in (value, wanted)]
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=1e-4)


def test_a_small_case_by_hand():
    torch.manual_seed(0)
    column = Hypercolumn([2, 3], 4).eval().double()
    fine, deep = torch.randn(1, 2, 4, 6).double(), torch.randn(1, 3, 2, 3).double()
    column.norm.running_mean.normal_()
    column.norm.running_var.uniform_(0.5, 2)
    w0, w1 = (part.weight[:, :, 0, 0].detach().numpy() for part in column.project)
    d0, d1 = fine[0].numpy(), deep[0].numpy()
    mean, deviation = column.norm.running_mean, (column.norm.running_var + column.norm.eps).sqrt()
    out = np.zeros((1, 4, 4, 6))
    for i in range(4):
        for j in range(6):
            pixel = np.zeros(3)
            for a in range(2):  # of the nearer row or column 3/4, of the other 1/4
                for b in range(2):
                    row = min(max(i // 2 + (a if i % 2 else a - 1), 0), 1)
                    col = min(max(j // 2 + (b if j % 2 else b - 1), 0), 2)
                    share = (0.75 if a != i % 2 else 0.25) * (0.75 if b != j % 2 else 0.25)
                    pixel += share * d1[:, row, col]
            z = w0 @ d0[:, i, j] + w1 @ pixel
            out[0, :, i, j] = np.maximum(0, (z - mean.numpy()) / deviation.numpy())
    torch.testing.assert_close(column([fine, deep]).detach().numpy(), out)


class WidestMap(TorchDispatchMode):
    """The most channels of any tensor of a given size that an operation returns."""

    def __init__(self, size):
        super().__init__()
        self.size, self.channels = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.dim() == 4 and x.shape[2:] == self.size:
                self.channels = max(self.channels, x.shape[1])
        return result


def test_no_map_at_full_size_is_wider_than_the_finest_map_or_the_sum():
    column, maps = Hypercolumn(CHANNELS, 7), maps_of(32, 32)
    for function, widest in ((literal, sum(CHANNELS)),
                             (lambda column, maps: column(maps), max(CHANNELS[0], 7))):
        with WidestMap(maps[0].shape[2:]) as seen:
            function(column, maps).sum().backward()
        assert seen.channels == widest


@pytest.mark.parametrize("out_channels, fewer", [(16, 23), (64, 6)])
def test_the_projections_hold_as_few_numbers_as_the_chapter_says(out_channels, fewer):
    channels = (16, 32, 64, 128, 256)
    column, maps, numbers = Hypercolumn(channels, out_channels), maps_of(64, 64, channels), []
    for layer in column.project:
        layer.register_forward_hook(lambda _layer, _given, result: numbers.append(result.numel()))
    column(maps)
    assert len(numbers) == 5 and round(stack(maps).numel() / sum(numbers)) == fewer


def test_projecting_first_takes_16_times_fewer_multiplications():
    channels = (16, 32, 64, 128, 256)
    column, maps = Hypercolumn(channels, 16), maps_of(64, 64, channels)
    with FlopCounterMode(display=False) as projected_first:
        column(maps)
    with FlopCounterMode(display=False) as stacked_first:
        literal(column, maps)
    assert stacked_first.get_total_flops() / projected_first.get_total_flops() == 16


def test_weights_start_as_those_of_one_convolution():
    torch.manual_seed(0)
    column = Hypercolumn([64, 128, 256], 64)
    for part in column.project:
        assert part.weight.std().item() == pytest.approx((2 / 448) ** 0.5, rel=0.05)
        assert part.weight.mean().item() == pytest.approx(0, abs=0.01)
        assert part.bias is None


def test_every_parameter_and_every_map_gets_a_gradient():
    torch.manual_seed(0)
    column, maps = Hypercolumn(CHANNELS, 7), maps_of(32, 32)
    (column(maps) * torch.randn(2, 7, 32, 32)).sum().backward()
    assert all(p.grad.any() for p in [*column.parameters(), *maps])


@pytest.mark.parametrize("number", [1, 4, 6])
def test_another_number_of_maps_is_refused(number):
    maps = maps_of(32, 32, [*CHANNELS, 3][:number])
    with pytest.raises(ValueError, match=f"{number} maps for a hypercolumn of 5"):
        Hypercolumn(CHANNELS, 7)(maps)
