"""What surrounds the steps of a run: losses that are watched, signals, and one process per fold."""

import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch
from torch import nn

import train
from minseg.run.loop import LOOK_EVERY, MOST_SKIPPED, Watch, locked, stop_when_asked

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Scaler:
    """A loss scaler as far as `Watch` sees it."""

    def __init__(self, scale=1.0):
        self.scale_ = scale

    def scale(self, value):
        return value * self.scale_


ONE_TILE = torch.tensor([[0]])


def test_a_loss_that_is_not_finite_is_named_with_step_rate_and_tiles():
    for bad in (torch.nan, torch.inf):
        watch = Watch(lambda tiles: f"slide{tiles[0]}")
        for step in range(3):
            watch.add(step, torch.tensor(bad if step == 1 else 0.5), Scaler(), 0.02,
                      torch.tensor([[step]]))
        with pytest.raises(FloatingPointError, match=f"step 1: the loss is {bad}; learning rate "
                                                     "0.02, tiles slide1"):
            watch.check()


def test_losses_are_checked_on_their_own_once_there_are_enough_of_them():
    watch = Watch(str)
    watch.add(0, torch.tensor(torch.nan), Scaler(), 0.1, ONE_TILE)
    for step in range(1, LOOK_EVERY - 1):
        watch.add(step, torch.tensor(0.5), Scaler(), 0.1, ONE_TILE)
    with pytest.raises(FloatingPointError, match="step 0"):
        watch.add(LOOK_EVERY - 1, torch.tensor(0.5), Scaler(), 0.1, ONE_TILE)


def test_too_many_skipped_steps_in_a_row_end_the_run_and_fewer_do_not():
    def skip(times, watch, step=0, scale=2.0**60):
        for k in range(times):
            scale /= 2
            watch.add(step + k, torch.tensor(0.5), Scaler(scale), 0.1, ONE_TILE)
        return scale

    watch = Watch(str)
    watch.add(0, torch.tensor(0.5), Scaler(2.0**60), 0.1, ONE_TILE)
    scale = skip(MOST_SKIPPED - 1, watch)
    watch.add(50, torch.tensor(0.5), Scaler(scale), 0.1, ONE_TILE)  # one that was not skipped
    skip(MOST_SKIPPED - 1, watch, 51, scale)
    watch.check()
    skip(1, watch, 90, scale / 2**(MOST_SKIPPED - 1))
    with pytest.raises(FloatingPointError, match=f"step 90: {MOST_SKIPPED} steps in a row"):
        watch.check()


def test_steps_skipped_by_a_real_scaler_are_noticed():
    net, watch = nn.Conv2d(3, 1, 1).to(DEVICE), Watch(str)
    batch = torch.rand(2, 3, 8, 8).to(DEVICE), torch.ones(2, 1, 8, 8).to(DEVICE)
    optimizer, scaler = torch.optim.AdamW(net.parameters(), 1e-3), torch.amp.GradScaler(DEVICE)

    for step in range(MOST_SKIPPED + 2):
        loss = train.training_step(net, lambda z, t: z.sum() * torch.inf, [batch], optimizer,
                                   scaler)
        watch.add(step, torch.ones_like(loss), scaler, 0.1, ONE_TILE)
    with pytest.raises(FloatingPointError, match="steps in a row"):
        watch.check()


def test_weights_that_are_not_finite_are_noticed():
    watch = Watch(str)
    watch.add(0, torch.tensor(0.5), Scaler(), 0.1, ONE_TILE)
    with pytest.raises(FloatingPointError, match="step 0: the weights are no longer finite"):
        watch.check([torch.ones(2), torch.tensor([1, torch.nan])])
    with pytest.raises(FloatingPointError):  # with nothing to look at before, too
        watch.check([torch.tensor(torch.nan)])


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_sets_the_event_and_the_second_stops_immediately(number, capsys):
    before = signal.getsignal(number)
    try:
        signal.signal(number, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt), stop_when_asked() as stop:
            assert not stop.is_set()
            os.kill(os.getpid(), number)
            assert stop.wait(5) and "stopping after this step" in capsys.readouterr().err
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    def work():
        with stop_when_asked() as stop:
            seen.append(stop.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.skipif(os.name != "posix", reason="file locks")
def test_a_folder_is_claimed_by_one_process_until_it_ends(tmp_path):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def claim():
        with locked(tmp_path) as free:
            theirs.send(free)
            time.sleep(60)

    process = context.Process(target=claim)
    process.start()
    assert ours.poll(60) and ours.recv()
    with locked(tmp_path) as free:
        assert not free
    process.kill()
    process.join()
    with locked(tmp_path) as free:
        assert free
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_after_a_stop_the_usual_handlers_are_back():
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with stop_when_asked() as asked:
        assert signal.getsignal(signal.SIGINT) is not before[0] and not asked.is_set()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
