import itertools
from unittest import mock

import numpy as np
import pytest
import torch

from minseg import lovasz_hinge
from minseg.lovasz import jaccard_weights


def jaccard_loss(wrong, target):
    """Delta of a set of mispredicted pixels: the definition, 1 - |P and P'| / |P or P'|."""
    positive = {i for i, t in enumerate(target) if t}
    predicted = positive ^ set(wrong)
    union = positive | predicted
    return 1 - len(positive & predicted) / len(union) if union else 0.0


def naive_hinge(logits, target, margin=lambda e: max(0.0, e)):
    """The Lovász extension of `jaccard_loss` at the hinges of one image, from its definition."""
    hinges = [margin(1 - z * (2 * t - 1)) for z, t in zip(logits, target)]
    order = sorted(range(len(hinges)), key=lambda i: -hinges[i])
    steps = [jaccard_loss(order[: k + 1], target) - jaccard_loss(order[:k], target)
             for k in range(len(order))]
    return sum(hinges[i] * step for i, step in zip(order, steps))


def random_pair(n=2, c=2, h=3, w=4, share=0.4):
    logits = 2 * torch.randn(n, c, h, w, dtype=torch.float64)
    return logits, (torch.rand(n, c, h, w) < share).double()


def rows(x, per_image=True):
    x = x.flatten(2).flatten(0, 1) if per_image else x.transpose(0, 1).flatten(1)
    return x.tolist()


@pytest.fixture(params=["few are sorted", "all are sorted"])
def path(request):
    """Both ways through the code: only positive hinges (CPU), or all of them (GPU)."""
    if request.param == "all are sorted":
        with mock.patch.object(torch.Tensor, "count_nonzero", torch.Tensor.numel):
            yield
    else:
        with mock.patch.object(torch.Tensor, "count_nonzero", lambda x: torch.tensor(0)):
            yield


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
def test_it_is_the_lovasz_extension_of_the_jaccard_loss(path, per_image, share):
    torch.manual_seed(0)
    for _ in range(5):
        logits, target = random_pair(share=share)
        naive = np.mean([naive_hinge(z, t) for z, t in zip(rows(logits, per_image),
                                                           rows(target, per_image))])
        assert lovasz_hinge(logits, target, per_image=per_image).item() == pytest.approx(naive)


def test_the_elu_margin_is_elu_of_the_error_plus_one():
    torch.manual_seed(0)
    logits, target = random_pair()
    naive = np.mean([naive_hinge(z, t, lambda e: e + 1 if e > 0 else np.exp(e))
                     for z, t in zip(rows(logits), rows(target))])
    assert lovasz_hinge(logits, target, margin="elu").item() == pytest.approx(naive)


@pytest.mark.parametrize("options", [{}, {"margin": "elu"}, {"per_image": False}])
def test_symmetric_is_the_mean_over_both_classes(options):
    torch.manual_seed(0)
    logits, target = random_pair()
    both = [lovasz_hinge(logits, target, **options), lovasz_hinge(-logits, 1 - target, **options)]
    for kind in (target, target.bool(), target.to(torch.uint8)):
        loss = lovasz_hinge(logits, kind, symmetric=True, **options)
        torch.testing.assert_close(loss, sum(both) / 2)


def test_only_positive_hinges_are_sorted_where_few_are():
    torch.manual_seed(0)
    target = (torch.rand(2, 1, 20, 20) < 0.3).float()
    logits = (2 * target - 1) * 5
    logits[:, :, 0] = 0  # 20 of 400 pixels of each image are unsure
    weights = mock.Mock(wraps=jaccard_weights)
    with mock.patch.dict(lovasz_hinge.__globals__, jaccard_weights=weights):
        lovasz_hinge(logits, target)
        assert weights.call_args.args[0].shape == (2, 20)
        lovasz_hinge(logits, target, margin="elu")  # each of its hinges is positive
        assert weights.call_args.args[0].shape == (2, 400)
        lovasz_hinge(-logits, target)
        assert weights.call_args.args[0].shape == (2, 400)


def test_it_equals_the_jaccard_loss_where_every_hinge_is_0_or_1(path):
    for target in itertools.product([0, 1], repeat=4):
        for wrong in itertools.product([0, 1], repeat=4):
            t, w = torch.tensor(target).double(), torch.tensor(wrong).double()
            logits = (2 * t - 1) * (1 - w)  # 0 where wrong, +1 or -1 where right
            loss = lovasz_hinge(logits.view(1, 1, 2, 2), t.view(1, 1, 2, 2)).item()
            mistakes = [i for i, x in enumerate(wrong) if x]
            assert loss == pytest.approx(jaccard_loss(mistakes, target), abs=1e-12)


def test_it_is_convex_along_random_segments(path):
    torch.manual_seed(0)
    for share in (0, 0.3, 1):
        _, target = random_pair(1, 1, share=share)
        for _ in range(50):
            a, b = random_pair(1, 1)[0], random_pair(1, 1)[0]
            s = torch.rand(()).double()
            between = lovasz_hinge(s * a + (1 - s) * b, target)
            ends = s * lovasz_hinge(a, target) + (1 - s) * lovasz_hinge(b, target)
            assert between <= ends + 1e-12


@pytest.mark.parametrize("share", [0, 0.4, 1])
@pytest.mark.parametrize(
    "options", [{}, {"margin": "elu"}, {"symmetric": True}, {"per_image": False}])
def test_the_gradient_matches_finite_differences(path, share, options):
    torch.manual_seed(1)
    logits, target = random_pair(share=share)  # random doubles: no ties
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: lovasz_hinge(z, target, **options), logits)


def test_the_gradient_is_the_weight_of_each_pixel(path):
    torch.manual_seed(0)
    logits, target = random_pair(1, 1)
    logits.requires_grad_()
    lovasz_hinge(logits, target).backward()
    z, t = logits.detach().flatten().tolist(), target.flatten().tolist()
    hinges = [max(0.0, 1 - a * (2 * b - 1)) for a, b in zip(z, t)]
    order = sorted(range(len(z)), key=lambda i: -hinges[i])
    for k, i in enumerate(order):
        step = jaccard_loss(order[: k + 1], t) - jaccard_loss(order[:k], t)
        wanted = -(2 * t[i] - 1) * step if hinges[i] > 0 else 0
        assert logits.grad.flatten()[i].item() == pytest.approx(wanted, abs=1e-12)


def test_without_positives_only_the_worst_pixel_pays(path):
    logits = torch.tensor([-3.0, 0.5, 2.0, -0.5]).view(1, 1, 2, 2).requires_grad_()
    loss = lovasz_hinge(logits, torch.zeros(1, 1, 2, 2))
    loss.backward()
    assert loss.item() == 3.0 and logits.grad.flatten().tolist() == [0, 0, 1, 0]


def test_with_positives_only_it_is_the_mean_hinge(path):
    logits = torch.tensor([-3.0, 0.5, 2.0, -0.5]).view(1, 1, 2, 2).requires_grad_()
    loss = lovasz_hinge(logits, torch.ones(1, 1, 2, 2))
    loss.backward()
    assert loss.item() == pytest.approx((4 + 0.5 + 0 + 1.5) / 4)
    assert logits.grad.flatten().tolist() == [-0.25, -0.25, 0, -0.25]


def test_a_right_prediction_costs_nothing_and_pulls_at_nothing(path):
    target = (torch.rand(2, 1, 4, 4) < 0.3).float()
    logits = ((2 * target - 1) * 5).requires_grad_()
    loss = lovasz_hinge(logits, target)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_weights_sum_to_one_and_none_is_negative_in_float32():
    torch.manual_seed(0)
    hinges = torch.rand(2, 300_000)
    target = (torch.rand(2, 300_000) < torch.tensor([[0.0], [0.1]])).float()
    weights = jaccard_weights(hinges, target, target.sum(1, keepdim=True))
    assert weights.min() >= 0
    torch.testing.assert_close(weights.double().sum(1), torch.ones(2).double(), atol=1e-4, rtol=0)


def test_float32_weights_keep_their_digits_where_differences_would_lose_them():
    torch.manual_seed(0)
    hinges, target = torch.rand(1, 100_000), (torch.rand(1, 100_000) < 0.1).float()
    positives = target.sum(1, keepdim=True)
    exact = jaccard_weights(hinges.double(), target.double(), positives.double())
    error = (jaccard_weights(hinges, target, positives) - exact).abs()
    assert (error <= 1e-5 * exact).all()


def test_it_computes_in_float32_under_autocast_and_from_half():
    torch.manual_seed(0)
    logits, target = random_pair(h=64, w=64)
    logits, target = logits.bfloat16(), target.to(torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = lovasz_hinge(logits, target)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, lovasz_hinge(logits.double(), target.double()).float())


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("n", [1, 2])
def test_the_layout_in_memory_does_not_matter(path, n, per_image):
    torch.manual_seed(0)
    logits, target = random_pair(n, 2, 8, 8)
    other = logits.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(lovasz_hinge(other, target, per_image=per_image),
                               lovasz_hinge(logits, target, per_image=per_image))


def test_the_order_of_images_and_pixels_does_not_matter():
    torch.manual_seed(0)
    logits, target = random_pair(3, 1)
    shuffled = torch.randperm(12)
    other = [x.flatten(2)[[2, 0, 1]][:, :, shuffled].view(3, 1, 3, 4) for x in (logits, target)]
    torch.testing.assert_close(lovasz_hinge(*other), lovasz_hinge(logits, target))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="differ"):
        lovasz_hinge(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="softplus"):
        lovasz_hinge(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), margin="softplus")


def test_with_the_elu_no_gradient_reaches_what_has_no_weight():
    """Negatives behind the last positive, and in an image without positives all but the worst."""
    logits = torch.tensor([3.0, -3.5, -1.0, 2.0, -2.5]).view(1, 1, 1, 5).requires_grad_()
    for positive, pushed in (([0], [0, 2, 3, 4]), ([1], [1]), ([], [0])):
        target = torch.zeros(1, 1, 1, 5)
        target[..., positive] = 1  # errors, 1 - z or 1 + z: in the first case -2, -2.5, 0, 3, -1.5
        gradient, = torch.autograd.grad(lovasz_hinge(logits, target, margin="elu"), logits)
        assert gradient.flatten().nonzero()[:, 0].tolist() == pushed


def test_a_network_that_says_the_same_everywhere_is_drawn_to_0_where_the_loss_is_1():
    target = torch.zeros(1, 1, 10, 10)
    target[..., 0, :5] = 1
    for z, slope in ((-2.0, -1), (-0.1, -1), (0.1, 1), (2.0, 1)):
        z = torch.tensor(z, requires_grad=True)
        loss = lovasz_hinge(z.expand_as(target), target)
        assert loss > 1 and torch.autograd.grad(loss, z)[0].sign() == slope
    assert lovasz_hinge(torch.zeros_like(target), target) == pytest.approx(1)
