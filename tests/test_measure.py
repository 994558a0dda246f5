from functools import partial

import pytest
import torch

from lab.measure import alive_after, in_turn, measured


def test_functions_are_timed_in_turn_after_a_warm_up():
    calls = []
    medians = in_turn({name: partial(calls.append, name) for name in "ab"}, rounds=2)
    assert calls == ["a", "b"] * 3 and set(medians) == {"a", "b"}


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
