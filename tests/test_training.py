"""A training step: the same mathematics in less time and less memory."""

import copy
import hashlib
import itertools

import pytest
import torch
from torch import nn

import train
from minseg import UNet, deep_supervision_loss, dice_loss, make_loss
from minseg.run.options import RECIPES, train_options
from minseg.training import EMA, autocast_dtype, backward_whole, recompute_activations, seeded

pytestmark = pytest.mark.usefixtures("small_networks")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRICKS = [{"gates": gates, "attention": attention, "hypercolumn": column, "deep_supervision": deep}
          for gates, attention, column, deep in itertools.product(
              (False, True), (None, "scse", "cbam", "cbam3"), (False, True), (False, True))]


def batch(n=2, size=32, device=DEVICE, dtype=torch.float32):
    torch.manual_seed(1)
    images = torch.rand(n, 3, size, size, dtype=dtype)
    return images.to(device), (images[:, :1] > 0.6).to(dtype).to(device)


def one_step(net, loss, *, dtype=None, accumulate=1, parts=None, scaler=None):
    """A training step as train.py takes it; returns the loss."""
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, fused=True)
    scaler = scaler or torch.amp.GradScaler(DEVICE, enabled=dtype == torch.float16)
    return train.training_step(net, loss, parts or [batch()], optimizer, scaler, dtype, accumulate)


@pytest.mark.parametrize("tricks", TRICKS, ids=str)
def test_every_combination_of_switches_takes_a_step_in_half_precision(tricks):
    net = UNet("efficientnet-lite0", **tricks).to(DEVICE, memory_format=torch.channels_last)
    before = net.head.weight.clone()
    loss = one_step(net, make_loss("dice+lovasz"), dtype=torch.bfloat16)
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert not torch.equal(net.head.weight, before)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_every_recipe_takes_a_step_in_every_precision(recipe, dtype, capsys):
    args = train_options(["--recipe", recipe, "--encoder", "efficientnet-lite0"])
    args.device = DEVICE
    for spec in filter(None, (args.loss, args.then)):
        net, _ = train.build(args, 100)
        assert one_step(net.train(), make_loss(spec), dtype=dtype).isfinite()


@pytest.mark.slow
@pytest.mark.parametrize("tricks", TRICKS[::11] + TRICKS[-1:], ids=str)
def test_the_network_is_one_graph_for_the_compiler(tricks):
    net = UNet("efficientnet-lite0", stochastic_depth=0.2, **tricks).to(DEVICE)
    compiled = torch.compile(net, fullgraph=True, dynamic=False, backend="eager")
    assert one_step(compiled, make_loss("bce+dice"), dtype=torch.bfloat16).isfinite()


def test_dice_and_cross_entropy_are_one_graph_and_the_same_compiled():
    logits, target = (t.to(DEVICE) for t in (torch.randn(2, 1, 8, 8), torch.ones(2, 1, 8, 8)))
    for spec in ("bce", "dice", "0.5*bce+dice"):
        loss = make_loss(spec)
        compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend="eager")
        torch.testing.assert_close(compiled(logits, target), loss(logits, target))


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_for_this_machine_it_learns_the_same(recompute):
    results, (images, masks) = [], batch(size=64)
    for compiled in (False, True):
        torch.manual_seed(0)
        net = UNet("efficientnet-lite0", stochastic_depth=0).to(DEVICE).train()
        if recompute:
            recompute_activations(net)
        forward = torch.compile(net, dynamic=False) if compiled else net
        value = make_loss("dice")(forward(images), masks)
        value.backward()
        results.append([value.detach(), net.head.weight.grad, net.encoder.stem[1].running_var])
    for plain, other in zip(*results):
        torch.testing.assert_close(plain, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tricks", [{}, TRICKS[-1]], ids=["plain", "all"])
def test_recomputed_activations_change_memory_and_nothing_else(tricks):
    torch.manual_seed(0)
    nets = [UNet("efficientnet-lite0", stochastic_depth=0.5, **tricks).double().train()]
    nets.append(copy.deepcopy(nets[0]))
    recompute_activations(nets[1])
    images, _masks = batch(dtype=torch.float64, device="cpu")
    kept = []
    for net in nets:
        count = [0]

        def keep(tensor):
            count[0] += tensor.nbytes
            return tensor

        torch.manual_seed(7)  # the same branches are dropped, the second time too
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = net(images)
        logits = logits if isinstance(logits, list) else [logits]
        sum((z * z).mean() for z in logits).backward()
        kept.append(count[0])
    states = [net.state_dict() for net in nets]
    for key, value in states[0].items():  # statistics and counts of batches, too
        assert torch.equal(value, states[1][key]), key
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters()):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad), name
    assert kept[1] < 0.5 * kept[0]


def test_a_copy_of_a_network_with_recomputed_activations_is_independent_of_it():
    net = UNet("efficientnet-lite0").train()
    recompute_activations(net)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert not other(batch(device="cpu")[0]).any() and net(batch(device="cpu")[0]).any()


@pytest.mark.parametrize("tricks", [{}, {"deep_supervision": True, "stochastic_depth": 0.5}],
                         ids=["plain", "deep"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_dice_over_a_batch_in_parts_has_the_gradient_of_all_logits_together(tricks, dtype):
    """Redone with the graphs of all parts in memory. Batch norm counts each part once."""
    torch.manual_seed(0)
    net = UNet("efficientnet-lite0", **tricks).to(DEVICE).train()
    other = copy.deepcopy(net)
    images, masks = batch(4, 64)
    masks[:2] = 0  # as one batch of its own, this would have no object
    parts = list(zip(images.split(2), masks.split(2)))
    loss, gradients = make_loss("bce+batch_dice"), []

    class Optimizer(torch.optim.SGD):
        def step(self, closure=None):
            gradients.append([p.grad for p in self.param_groups[0]["params"]])

    torch.manual_seed(1)
    value = train.training_step(net, loss, iter(parts), Optimizer(net.parameters(), 1),
                                torch.amp.GradScaler(DEVICE, enabled=False), dtype, len(parts))
    torch.manual_seed(1)
    with torch.autocast(DEVICE, dtype, enabled=dtype is not None):
        maps = [other(x.contiguous(memory_format=torch.channels_last)) for x, _ in parts]
    maps = [torch.cat(each) for each in zip(*maps)] if tricks else torch.cat(maps)
    wanted = deep_supervision_loss(loss, maps, masks)
    wanted.backward()
    torch.testing.assert_close(value, wanted.detach())
    for found, p in zip(*gradients, other.parameters()):
        assert (found is None) == (p.grad is None)
        if found is not None:
            rough = 1e-3 if dtype is None else 2e-2
            torch.testing.assert_close(found, p.grad, rtol=rough, atol=rough * p.grad.abs().max())
    for name, buffer in other.named_buffers():
        torch.testing.assert_close(net.get_buffer(name), buffer)


def test_a_batch_in_a_single_part_has_the_gradient_of_a_plain_step():
    net, (images, masks) = nn.Conv2d(3, 1, 3, padding=1).to(DEVICE), batch(2)
    loss, scaler = make_loss("batch_dice"), torch.amp.GradScaler(DEVICE, enabled=False)
    value = backward_whole(net, loss, iter([(images, masks)]), scaler, None)
    found, net.weight.grad = net.weight.grad, None
    wanted = loss(net(images), masks)
    wanted.backward()
    torch.testing.assert_close(value, wanted.detach())
    torch.testing.assert_close(found, net.weight.grad)


@pytest.mark.parametrize("spec, over_batch", [
    ("bce", False), ("dice+lovasz", False), ("batch_dice", True), ("bce+0.5*batch_dice", True)])
def test_only_dice_over_the_batch_is_more_than_a_mean_over_images(spec, over_batch):
    torch.manual_seed(0)
    loss, logits, target = make_loss(spec), torch.randn(4, 1, 8, 8), torch.rand(4, 1, 8, 8).round()
    assert loss.over_batch is over_batch
    parts = [loss(z, t) for z, t in zip(logits.split(2), target.split(2))]
    assert torch.isclose(sum(parts) / 2, loss(logits, target)) != over_batch


@pytest.mark.parametrize("loss", [make_loss("dice"), dice_loss], ids=["made", "a function"])
def test_gradients_of_micro_batches_add_up_to_those_of_the_whole_batch(loss):
    def gradient(accumulate, parts):
        torch.manual_seed(0)
        net = nn.Conv2d(3, 1, 3, padding=1).to(DEVICE)  # without batch norm
        caught = []

        class Optimizer(torch.optim.SGD):
            def step(self, closure=None):
                caught.extend(p.grad.clone() for p in net.parameters())

        scaler = torch.amp.GradScaler(DEVICE, enabled=False)
        value = train.training_step(net, loss, parts, Optimizer(net.parameters(), 1), scaler, None,
                                    accumulate)
        assert all(p.grad is None for p in net.parameters())  # none is left for the next step
        return value, *caught

    images, masks = batch(4)
    whole = gradient(1, [(images, masks)])
    halves = gradient(2, [(images[:2], masks[:2]), (images[2:], masks[2:])])
    for a, b in zip(whole, halves, strict=True):
        torch.testing.assert_close(a, b)


def test_the_average_is_its_equation_for_weights_and_statistics_alike():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    ema, decay = EMA(net, 0.75), 0.75
    wanted = {name: value.double().clone() for name, value in net.state_dict().items()}
    for _ in range(3):
        net(torch.rand(2, 3, 4, 4)).square().sum().backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
        ema.update()
        for name, value in net.state_dict().items():
            wanted[name] = decay * wanted[name] + (1 - decay) * value
    averaged = ema.net.state_dict()
    assert averaged.pop("1.num_batches_tracked") == 0  # a count is not averaged
    for name, value in averaged.items():
        torch.testing.assert_close(value.double(), wanted[name])
    assert not torch.allclose(ema.net[0].weight, net[0].weight)
    assert not any(p.requires_grad for p in ema.net.parameters())
    assert all(p.requires_grad for p in net.parameters())  # the network itself learns on


def test_16_bits_are_bfloat16_except_where_a_gpu_only_emulates_it(monkeypatch):
    assert autocast_dtype("cpu") == torch.bfloat16
    for real, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated, real=real: real)
        assert autocast_dtype("cuda:1") == dtype


def test_random_numbers_depend_on_every_part_of_their_seed_and_on_nothing_else():
    def draw(*what):
        return torch.rand(4, generator=seeded(*what)).tolist()

    assert draw(0, "step", 1) == draw(0, "step", 1)
    assert len({str(draw(*what)) for what in ((0, "step", 1), (0, "step", 2), (1, "step", 1),
                                              (0, "epoch", 1))}) == 4
    # Those of the published runs: seven bytes of a hash of the words.
    digest = hashlib.sha256(b"(0, 'step', 17)").hexdigest()
    assert seeded(0, "step", 17).initial_seed() == int(digest[:14], 16)
