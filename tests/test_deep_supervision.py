import numpy as np
import pytest
import torch

from minseg import deep_supervision_loss, lovasz_hinge, make_loss
from minseg.deep_supervision import deep_supervision_weights


def scales_of(height, width, n=2, channels=1, scales=5):
    return [torch.randn(n, channels, -(-height // 2**k), -(-width // 2**k), requires_grad=True)
            for k in range(scales)]


def random_target(height, width, n=2, channels=1):
    return (torch.rand(n, channels, height, width) < 0.4).float()


def targets_seen(logits, target, weights=None):
    """What the loss is given as target, scale by scale."""
    seen = []

    def loss(z, t):
        assert z.shape == t.shape
        seen.append(t)
        return z.sum()

    deep_supervision_loss(loss, logits, target, weights)
    return seen


@pytest.mark.parametrize("scales", [2, 3, 4, 5, 6])
def test_weights_are_nnunets(scales):
    weights = np.array([1 / (2**i) for i in range(scales)])
    weights[-1] = 0
    assert deep_supervision_weights(scales) == pytest.approx(weights / weights.sum())


def test_one_scale_weighs_one():
    assert deep_supervision_weights(1) == [1.0]


@pytest.mark.parametrize("spec", ["bce", "dice+lovasz"])
def test_one_scale_is_the_plain_loss(spec):
    torch.manual_seed(0)
    (logits,), target, loss = scales_of(8, 8, scales=1), random_target(8, 8), make_loss(spec)
    for given in (logits, [logits], (logits,)):
        assert torch.equal(deep_supervision_loss(loss, given, target), loss(logits, target))


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_weighted_sum_over_scales(channels):
    torch.manual_seed(0)
    logits, target = scales_of(32, 48, channels=channels), random_target(32, 48, 2, channels)
    wanted = 0
    for k, weight in enumerate([8 / 15, 4 / 15, 2 / 15, 1 / 15]):
        middle = 2**k // 2  # the lower right of the four pixels around the middle of a block
        small = target[:, :, middle::2**k, middle::2**k]
        wanted = wanted + weight * lovasz_hinge(logits[k], small)
    torch.testing.assert_close(deep_supervision_loss(lovasz_hinge, logits, target), wanted)


@pytest.mark.parametrize("size", [(64, 96), (33, 70), (1, 17)])
def test_targets_are_the_pixels_nearest_to_each_middle(size):
    torch.manual_seed(0)
    target = random_target(*size, channels=3)
    seen = targets_seen(scales_of(*size, channels=3), target, [1] * 5)
    for small in seen:
        (height, width), (h, w) = size, small.shape[2:]
        rows = [int((i + 0.5) * height / h) for i in range(h)]
        columns = [int((j + 0.5) * width / w) for j in range(w)]
        assert torch.equal(small, target[:, :, rows][:, :, :, columns])


def test_targets_are_those_of_skimage_as_nnunet_calls_it():
    transform = pytest.importorskip("skimage.transform",
                                    reason="python -m pip install -e '.[audit]'")
    torch.manual_seed(0)
    target = random_target(64, 96)
    for small in targets_seen(scales_of(64, 96), target, [1] * 5):
        for t, s in zip(target[:, 0].numpy(), small[:, 0].numpy()):
            theirs = transform.resize(t, s.shape, order=0, mode="edge", anti_aliasing=False)
            np.testing.assert_array_equal(s, theirs)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_targets_of_any_type_become_that_of_the_logits(dtype):
    torch.manual_seed(0)
    target = random_target(8, 8)
    seen = targets_seen(scales_of(8, 8, scales=3), target.to(dtype))
    assert [t.dtype for t in seen] == [torch.float32] * 2 and torch.equal(seen[0], target)


def test_a_scale_of_weight_0_is_never_evaluated():
    logits, target = scales_of(16, 32), random_target(16, 32)
    for weights, wanted in [(None, [16, 8, 4, 2]), ([0, 1, 0, 0, 2], [8, 1]), ([0] * 5, [])]:
        assert [t.shape[2] for t in targets_seen(logits, target, weights)] == wanted


def test_own_weights_are_taken_as_they_are():
    torch.manual_seed(0)
    logits, target = scales_of(8, 8, scales=3), random_target(8, 8)
    weights, means = [1, 0.1, 3], [z.mean() for z in logits]
    value = deep_supervision_loss(lambda z, t: z.mean(), logits, target, weights)
    torch.testing.assert_close(value, sum(w * m for w, m in zip(weights, means)))


@pytest.mark.parametrize("weights", [[1.0], [1.0] * 4, [1.0] * 6, []])
def test_another_number_of_weights_is_refused(weights):
    with pytest.raises(ValueError, match=f"{len(weights)} weights for 5 scales"):
        deep_supervision_loss(lovasz_hinge, scales_of(16, 16), random_target(16, 16), weights)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_reaches_every_scale_with_a_weight(channels):
    torch.manual_seed(0)
    logits, target = scales_of(32, 32, channels=channels), random_target(32, 32, 2, channels)
    deep_supervision_loss(make_loss("bce"), logits, target).backward()
    for z, weight in zip(logits[:4], [8 / 15, 4 / 15, 2 / 15, 1 / 15]):
        # d bce / d logit = (p - t) / number of logits: between 0 and one of these, times weight
        assert z.grad.all() and z.grad.abs().max() < weight / z.numel()
    assert logits[4].grad is None
