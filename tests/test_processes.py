"""One run gives the same result, however many processes of torchrun compute it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import train
from minseg import processes
from minseg.run.checkpoint import load_model
from minseg.run.options import train_options
from minseg.run.prepare import prepare, training_tiles
from minseg.synthetic import write_slides

ROOT = Path(__file__).parent.parent
# Two stages with all losses, first that of the whole batch, and whatever draws random numbers.
RUN_OF_TEN = "--loss bce+batch_dice --then dice+lovasz --attention scse --deep-supervision"
STEPS = 10


def average_of_a_run(data, out, options):
    """What `train.train` makes in ten steps: the state of the EMA, and the losses of its log."""
    args = train_options(["--data", str(data), "--out", str(out), *"--tile 32 --scale 4 --folds 2 "
                          "--batch 2 --accumulate 2 --lr 1e-3 --switch 0.5 --encoder "
                          "efficientnet-lite0 --device cpu".split(), *options.split()])
    with processes.first_then_others():
        prepared = prepare(args)
        out.mkdir(parents=True, exist_ok=True)
    train_on = training_tiles(prepared.tiles, prepared.folds, 0)
    args.epochs = STEPS / (len(train_on) // 4)
    args.negatives = "all"
    net, _ = train.train(args, prepared.tiles, train_on, [], out)
    return net.state_dict()


def answers(data, out):
    """What a process of this test computes."""
    train.DEPTH_STEPS = STEPS  # or blocks would hardly ever be skipped
    return {"state": average_of_a_run(data, out, RUN_OF_TEN), "world": processes.world(),
            "squares": processes.divide(range(5), lambda number: number**2)}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(command, **options):
    """Two processes, as torchrun starts them."""
    port = str(free_port())
    return [subprocess.Popen(command, **options, env={
        **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}) for rank in range(2)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes") / "data"
    write_slides(folder, 4, height=256, width=256, glomeruli=(20, 30))
    return folder


@pytest.fixture(scope="module")
def one_and_two(data, tmp_path_factory):
    """`answers` of one process, and of two."""
    out = tmp_path_factory.mktemp("answers")
    program = (f"import sys, torch; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]; "
               "from pathlib import Path; import test_processes as t; t.processes.start(); "
               f"found = t.answers(Path({str(data)!r}), Path({str(out)!r}) / 'two'); "
               f"torch.save(found, Path({str(out)!r}) / f'{{t.processes.rank()}}.pt')")
    both = start_two([sys.executable, "-c", program])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "DEPTH_STEPS", STEPS)
        one = answers(data, out / "one")
    assert [process.wait(120) for process in both] == [0, 0]
    return one, *(torch.load(out / f"{rank}.pt") for rank in range(2))


def test_one_process_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # as other launchers set it
    processes.start()
    assert (processes.world(), processes.rank(), processes.share(3)) == (1, 0, slice(0, 3))
    done = []
    processes.by_first(done.append)("alone")
    assert done == ["alone"] and processes.gather("a") == ["a"] and not processes.any_process(False)
    loss = torch.ones(())
    assert processes.add_gradients(None, loss) is loss and processes.join(loss) is loss


def test_two_processes_train_the_network_that_one_trains(one_and_two):
    one, *two = (found["state"] for found in one_and_two)
    for other in two:  # each of the two has the whole result
        assert other.keys() == one.keys()
        for key, value in one.items():
            close = 1e-4 if "running" in key else 1e-6
            torch.testing.assert_close(other[key], value, rtol=close, atol=close, msg=key)


def test_what_is_divided_comes_back_in_order(one_and_two):
    for found, world in zip(one_and_two, (1, 2, 2)):
        assert (found["squares"], found["world"]) == ([0, 1, 4, 9, 16], world)


@pytest.mark.parametrize("counts", [[2], [1, 1], [3, 1, 2]])
def test_running_statistics_follow_from_those_of_the_parts(counts, monkeypatch):
    """Redone by one batch norm that sees all micro-batches in order. `counts`: steps' shares of
    each process, here three processes that take turns in one."""
    torch.manual_seed(0)
    world, alone = 3, nn.BatchNorm2d(4)
    norms = [nn.BatchNorm2d(4) for _ in range(world)]
    monkeypatch.setattr(processes, "world", lambda: world)
    kept = [processes.RunningStatistics(norm) for norm in norms]
    for count in counts:
        parts, added = torch.rand(world, count, 5, 4, 2, 2), []
        for part, norm in zip(parts, norms):
            for batch in part:
                alone(batch)
                norm(batch)
        monkeypatch.setattr(processes, "add_up",
                            lambda value, added=added: added.append(value) or value)
        before = [each.before for each in kept]
        for rank, each in enumerate(kept):
            monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
            each.combine(world * count)
        total = 0.9 ** (world * count) * before[0] + sum(added)
        for norm, each in zip(norms, kept):
            each.before = total
            norm.running_mean.copy_(total[:4])
            norm.running_var.copy_(total[4:])
            assert norm.num_batches_tracked == alone.num_batches_tracked
    torch.testing.assert_close(norms[0].running_mean, alone.running_mean)
    torch.testing.assert_close(norms[0].running_var, alone.running_var)


def torchrun(*arguments, count=2, **options):
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node",
                             str(count), "--master-port", str(free_port()), *map(str, arguments)],
                            cwd=ROOT, text=True, **options)


RUN = "--tile 32 --scale 4 --folds 2 --fold 0 --batch 2 --accumulate 2 --encoder efficientnet-lite0"


@pytest.mark.slow
def test_a_run_of_two_processes_is_stopped_killed_resumed_by_one_and_segments(data, tmp_path):
    options = ["--data", data, "--out", tmp_path / "run", *RUN.split(), "--epochs", "30"]
    resume = tmp_path / "run" / "fold0" / "resume.pt"

    def wait_for_epoch(number):
        log = tmp_path / "run" / "fold0" / "log.csv"
        deadline = time.monotonic() + 120
        while not (log.exists() and len(log.read_text().splitlines()) > number):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    running = torchrun("train.py", *options, stderr=subprocess.PIPE)
    wait_for_epoch(1)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=120)
    assert running.returncode and "stopped after" in errors and "--resume" in errors
    stopped = torch.load(resume, weights_only=True)["step"]
    assert stopped > 0

    running = torchrun("train.py", *options, "--resume", stderr=subprocess.PIPE)
    wait_for_epoch(3)
    children = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    _, errors = running.communicate(timeout=120)
    assert running.returncode and torch.load(resume, weights_only=True)["step"] >= stopped
    assert "another process" in errors or "Signal 9" in errors

    subprocess.run([sys.executable, "train.py", *map(str, options), "--resume"], cwd=ROOT,
                   check=True, capture_output=True)
    score = json.loads((tmp_path / "run" / "fold0" / "score.json").read_text())
    model = tmp_path / "run" / "fold0" / "model.pt"
    assert load_model(model) and not resume.exists()
    slides = sorted((data / "images").iterdir())
    table = tmp_path / "masks" / "all.csv"
    segmenting = torchrun("infer.py", *slides, "--model", model, "--out", tmp_path / "masks",
                          "--rle", table)
    assert segmenting.wait(120) == 0 and score["images"]
    assert [line.split(",")[0] for line in table.read_text().splitlines()] == [
        "id", *(path.stem for path in slides)]
    assert len(list((tmp_path / "masks").glob("*.tiff"))) == len(slides)


@pytest.mark.slow
def test_a_step_that_cannot_be_divided_is_refused(data, tmp_path):
    refused = torchrun("train.py", "--data", data, "--out", tmp_path / "run", *RUN.split(), count=3,
                       stderr=subprocess.PIPE)
    _, errors = refused.communicate(timeout=120)
    assert "--accumulate 2: 3 processes cannot divide the 2 micro-batches of a step" in errors
    assert not (tmp_path / "run").exists()
