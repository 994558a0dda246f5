from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.nn import functional as F

from lab import measure
from lab.measure import (
    Traffic,
    alive_after,
    in_turn,
    in_turn_apart,
    measured,
    milliseconds,
)
from minseg.losses import make_loss
from minseg.run.memory import c_library


def small_net():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.Upsample(scale_factor=2), nn.Conv2d(8, 1, 3, 1, 1))


def test_functions_are_timed_in_turn_after_a_warm_up():
    calls = []
    medians = in_turn({name: partial(calls.append, name) for name in "ab"}, rounds=2)
    assert calls == ["a", "b"] * 3 and set(medians) == {"a", "b"}
    in_turn({"c": partial(calls.append, "c")}, rounds=1, calls=5)
    assert calls.count("c") == 10


def faults():
    """Makes a function that writes 64 MiB anew, and fails where that costs no page fault."""
    import resource

    def write():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        times.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        if len(times) > 2 and times[-1] < 4:
            raise ArithmeticError("no page faults")

    times = []
    return write


@pytest.mark.slow
@pytest.mark.skipif(not c_library(), reason="needs the GNU C library")
def test_each_way_has_a_process_that_keeps_its_memory_or_does_not():
    assert in_turn_apart({"free": faults}, rounds=5, not_kept=["free"])["free"] > 0
    with pytest.raises(ArithmeticError):
        in_turn_apart({"kept": faults}, rounds=5, not_kept=[])


def test_bytes_that_are_kept_are_counted_once_and_those_that_are_freed_not_at_all():
    x = torch.ones(100, requires_grad=True)
    assert alive_after(lambda: x.exp()) == 400  # exp keeps its result, which is there anyway
    assert alive_after(lambda: x * 2 + 1) == 400  # nothing needs the product
    weight = torch.ones(100, requires_grad=True)
    assert alive_after(lambda: x.exp() * weight) == 800  # the factors are needed; one is new
    assert alive_after(lambda: x.exp().sum().item()) == 0


@pytest.mark.slow
def test_a_job_in_its_own_process_returns_its_result_seconds_and_memory():
    result, seconds, gib = measured(partial, torch.ones, 2**27)  # half a GiB
    assert result.sum() == 2**27 and seconds > 0 and 0.45 < gib < 1.1


def moved(function):
    with Traffic() as traffic:
        function()
    return dict(traffic.moved)


def test_an_operator_moves_what_it_reads_and_what_it_writes():
    x, y = torch.ones(100), torch.ones(100)
    assert moved(lambda: x + y) == {"sums, products, means": 1200}
    assert moved(lambda: x.relu_()) == {"activations": 800}
    assert moved(lambda: x.view(10, 10).t()) == moved(lambda: torch.empty(9)) == {}
    assert moved(lambda: x.to(torch.bfloat16)) == moved(lambda: y.bfloat16()) == {
        "copies, casts": 600}
    assert moved(lambda: x.copy_(y)) == {"copies, casts": 800}
    assert moved(lambda: x[:1].expand(100).exp()) == {"other": 404}
    assert moved(lambda: x.zero_()) == moved(lambda: torch.zeros_like(x)) == {"other": 400}
    image, weight = torch.ones(1, 2, 8, 8), torch.ones(3, 2, 3, 3)
    assert moved(lambda: F.conv2d(image, weight)) == {
        "convolution, forward": 4 * (128 + 54 + 3 * 36)}


def test_adamw_reads_four_numbers_of_a_parameter_and_writes_three():
    parameter = nn.Parameter(torch.ones(1000))
    parameter.grad = torch.ones(1000)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    optimizer.step()
    assert sum(moved(optimizer.step).values()) == pytest.approx(28_000, rel=0.01)


def test_a_step_on_more_images_moves_more_and_one_in_16_bits_less():
    def counted(images, amp=False):
        net, traffic = small_net().train(), Traffic()
        optimizer = torch.optim.AdamW(net.parameters(), 1e-4, fused=True)
        step = measure.train_step(net, optimizer, make_loss("bce+dice"),
                                  measure.random_batch(images, 64, "cpu"), amp,
                                  begin=partial(setattr, traffic, "part"))
        step()
        with traffic:
            step()
        return traffic.moved

    small, large, short = counted(2), counted(8), counted(8, True)
    assert set(small) > {"loss", "optimiser", "EMA", "upsampling", "convolution, backward"}
    assert large["activations"] == pytest.approx(4 * small["activations"])
    assert short["activations"] == pytest.approx(large["activations"] / 2, rel=0.01)
    assert short["upsampling"] == pytest.approx(large["upsampling"] / 2)
    assert large["EMA"] == small["EMA"] == short["EMA"]
    assert short["copies, casts"] > large["copies, casts"]  # the weights become 16-bit


def test_the_profile_knows_the_parts_of_a_step():
    net = small_net().train()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, fused=True)
    step = measure.train_step(net, optimizer, make_loss("dice"), measure.random_batch(2, 32, "cpu"),
                              False, begin=measure.mark)
    step()
    spent = milliseconds(step, "cpu", steps=1)
    assert {"convolution, forward", "convolution, backward", "batch norm, backward", "activations",
            "upsampling", "loss", "optimiser", "EMA"} < set(spent)
    assert min(spent["convolution, forward"], spent["upsampling"]) > 0


def test_kernels_count_for_the_operator_that_started_them(monkeypatch):
    def event(start, name, device_time, kind=DeviceType.CPU):
        return SimpleNamespace(name=name, device_type=kind, self_device_time_total=device_time,
                               self_cpu_time_total=1e9, time_range=SimpleNamespace(start=start))

    events = [event(5, "aten::mul", 3000), event(4, "begins: loss", 0),
              event(1, "begins: network", 0), event(2, "aten::cudnn_convolution", 1000),
              event(3, "triton_poi_fused_convolution_silu_1", 500), event(0, "aten::sum", 0),
              event(2.5, "sm90_xmma_fprop", 1000, DeviceType.CUDA),
              event(6, "begins: optimiser", 0), event(7, "Optimizer.step#AdamW.step", 9e9),
              event(8, "aten::_fused_adamw_", 250)]

    class Profile:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def events(self):
            return events

    monkeypatch.setattr(measure, "profile", lambda activities: Profile())
    assert milliseconds(lambda: None, "cuda", steps=2) == {
        "convolution, forward": 0.5, "fused by the compiler": 0.25, "loss": 1.5,
        "optimiser": 0.125}


def test_memory_on_a_gpu_is_the_second_step_s_peak_beyond_what_was_there(monkeypatch):
    calls = []

    def peak():
        calls.append("peak")
        return 5 * 2**30

    for name, function in {"memory_allocated": lambda: 2**31, "max_memory_allocated": peak,
                           "reset_peak_memory_stats": lambda: calls.append("reset"),
                           "empty_cache": lambda: None}.items():
        monkeypatch.setattr(torch.cuda, name, function)
    step, gib = measure.step_and_peak(lambda: lambda: calls.append("step"))
    assert calls == ["step", "reset", "step", "peak"] and gib == 3
    step()
    assert calls[-1] == "step"
