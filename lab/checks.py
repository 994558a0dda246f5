"""What `lab.gpu` checks: the tests, the numbers of a step, and a run that is killed and resumed."""

import argparse
import copy
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from minseg.losses import make_loss
from minseg.synthetic import write_slides
from minseg.unet import UNet

from .bench import ENCODER, LOSS
from .measure import random_batch

ROOT = Path(__file__).parents[1]
TESTS = ["tests/test_cuda.py", "tests/test_training.py", "tests/test_loop.py"]


def short(value: float) -> float:
    """Two digits of a number, for differences."""
    return float(f"{value:.2g}")


def cuda_tests(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """The tests of what runs on CUDA."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS,
               "-o", "faulthandler_timeout=60"]  # where a test hangs is then told on stderr
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True,
                            errors="replace").stdout.splitlines() or ["failed: see stderr"]
    count = {name: int(n) for n, name in re.findall(r"(\d+) (\w+)", output[-1])}
    if not count:
        raise RuntimeError(f"pytest: {output[-1]}")
    failed = count.get("failed", 0) + count.get("error", 0) + count.get("errors", 0)
    yield {"way": "tests", "passed": count.get("passed", 0), "not_run": count.get("skipped", 0),
           "failed": failed, "asked": {"failed": 0}, "output": output[-40:] if failed else []}


def float32(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """Logits, loss and gradients of a step in 32 bits: relative errors against 64 on a CPU."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    net, loss = UNet(ENCODER, stochastic_depth=0.0).train(), make_loss(LOSS)
    batch = random_batch(2, min(args.size, 256), "cpu")

    def results(device: str, dtype: torch.dtype) -> dict[str, Tensor]:
        other = copy.deepcopy(net).to(device, dtype)
        images, masks = (x.to(device, dtype) for x in batch)
        logits = other(images)
        (value := loss(logits, masks)).backward()
        gradients = torch.cat([p.grad.flatten() for p in other.parameters()])
        found = {"logits": logits, "loss": value, "gradients": gradients}
        return {name: x.detach().double().cpu() for name, x in found.items()}

    exact, errors = results("cpu", torch.float64), {}
    for way, device in (("CPU", "cpu"), ("device", args.device)):
        found = results(device, torch.float32)
        asked = {name: f"about {error}, as on a CPU" for name, error in errors.items()}
        errors = {name: short((found[name] - x).norm() / x.norm()) for name, x in exact.items()}
        yield {"way": way, **errors, "asked": asked}


SAVE_EACH_STEP = ("import sys, train\nfrom minseg.run import loop\n"
                  "loop.SAVE_EVERY = loop.SAVE_AFTER_EPOCH = 0\ntrain.main(sys.argv[1:])")
SMALL_RUN = "--encoder efficientnet-lite0 --scale 2 --tile 64 --batch 4 --epochs 3"


def resume(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """train.py, killed in its second epoch and resumed, beside runs without interruption."""
    write_slides(folder / "slides", 4, seed=1, height=300, width=256)

    def begin(name: str, *others: str) -> subprocess.Popen:
        command = [sys.executable, "-c", SAVE_EACH_STEP, "--data", folder / "slides", "--out",
                   folder / name, "--device", args.device, *SMALL_RUN.split(), *others]
        return subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, text=True)

    def weights(name: str, *others: str) -> Tensor:
        errors = (process := begin(name, *others)).communicate()[1]
        if process.returncode:
            raise RuntimeError((errors.splitlines() or ["train.py failed"])[-1])
        state = torch.load(folder / name / "fold0" / "model.pt", weights_only=True)["state"]
        return torch.cat([x.flatten().double() for x in state.values() if x.is_floating_point()])

    first, second = weights("first"), weights("second")
    apart = short((second - first).norm() / first.norm())
    yield {"way": "two runs without interruption", "difference": apart}
    killed = begin("killed")
    while killed.poll() is None and not (folder / "killed" / "fold0" / "log.csv").exists():
        time.sleep(0.01)
    if killed.poll() is not None:
        raise RuntimeError(f"train.py ended with {killed.returncode} before it was killed")
    killed.kill()
    killed.communicate()
    later = weights("killed", "--resume")
    yield {"way": "killed and resumed", "difference": short((later - first).norm() / first.norm()),
           "asked": {"difference": f"about {apart}, as without interruption"}}
