"""What the programs of this folder share: timing, memory, the environment of a result, and the few
places where they use the inside of `train.py` and `infer.py`."""

import argparse
import json
import multiprocessing
import platform
import re
import statistics
import subprocess
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import date
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import infer
import train
from minseg.data.datasets import Item
from minseg.data.files import atomic
from minseg.data.synthetic import synthetic_slide
from minseg.deep_supervision import deep_supervision_loss
from minseg.run.checkpoint import Ensemble
from minseg.run.options import infer_options, train_options
from minseg.run.prepare import make_sampler, prepare, training_tiles
from minseg.run.step import EMA, autocast_dtype

RESULTS = Path("docs/results")

# Results and what they depend on


def environment(device: str) -> dict:
    """What a measurement depends on: the device's name, the threads, versions and the commit."""
    name, commit = platform.processor(), ""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name()
    elif (cpuinfo := Path("/proc/cpuinfo")).exists():
        model = re.search(r"model name\s*: (.*)", cpuinfo.read_text())
        name = model[1].strip() if model else name
    with suppress(FileNotFoundError):  # no git
        commit = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12",
                                 "--exclude=*"], capture_output=True, text=True).stdout.strip()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "python": platform.python_version(), "commit": commit, "date": str(date.today())}


def write_text(path: Path, text: str) -> Path:
    """Writes a file in one move, makes its folder where there is none, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, content: dict) -> Path:
    """`write_text` of a dictionary."""
    return write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def record(path: Path, device: str, rows: Iterable[dict]) -> None:
    """Prints each row as soon as it is there, and writes all of them with the environment."""
    recorded = []
    for row in rows:
        recorded.append(row)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    print(write_json(path, {**environment(device), "rows": recorded}))


# Time and memory


def synchronize() -> None:
    """Waits until the GPU has done everything that it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turn(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each function, called in the order A B C A B C ..., after one round of
    warm-up. Machines change their speed within a minute, and in this order it affects all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def peak(device: str = "cpu") -> float:
    """The most memory, in GiB, that this process has held so far (on a CPU: Linux only)."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's as well
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def measured(prepare_job: Callable[..., Callable[[], object]], *arguments: object,
             threads: int | None = None, device: str = "cpu") -> tuple[object, float, float]:
    """Calls `prepare_job(*arguments)` in a new process, and then the function that it returns.
    Returns that function's result, its seconds, and its peak memory: GiB beyond what the process
    held before. Memory is more exact with one of `threads`, as each has buffers of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (prepare_job, arguments, threads, device))


def _measure(prepare_job: Callable, arguments: tuple, threads: int | None, device: str) -> tuple:
    torch.set_num_threads(threads or torch.get_num_threads())
    job = prepare_job(*arguments)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    before, start = peak(device), time.perf_counter()
    result = job()
    synchronize()
    return result, time.perf_counter() - start, peak(device) - before


class Allocations(TorchDispatchMode):
    """Remembers the storages that operators return, without keeping them alive."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result


def alive_after(function: Callable[[], object]) -> int:
    """The bytes that `function` allocates and that are still in use while its result is. For a
    forward pass these are the tensors that it keeps for the backward pass."""
    with Allocations() as allocations:
        result = function()
    size = sum(nbytes for storage, nbytes in allocations.storages.values()
               if not storage.expired())
    del result
    return size


# The inside of train.py and infer.py


def random_batch(images: int, size: int, device: str) -> tuple[Tensor, Tensor]:
    """Random images in [0, 1] and masks of discs, on the device."""
    torch.manual_seed(0)
    pixels = torch.rand(images, 3, size, size)
    x = torch.linspace(-1, 1, size)
    discs = x[:, None].hypot(x) < torch.rand(images, 1, 1, 1) * 0.5
    return pixels.to(device), discs.float().to(device)


def forward(net: nn.Module, loss: Callable, batch: tuple[Tensor, Tensor], amp: bool) -> Tensor:
    """The forward pass and the loss of a training step."""
    images, masks = batch
    with torch.autocast(images.device.type, autocast_dtype(images.device), enabled=amp):
        logits = net(images)
    return deep_supervision_loss(loss, logits, masks)


def train_step(net: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable,
               batch: tuple[Tensor, Tensor], amp: bool) -> Callable[[], Tensor]:
    """A function that takes one of train.py's own steps on `batch` and returns the loss."""
    kind = batch[0].device.type
    dtype = autocast_dtype(kind) if amp else None
    scaler = torch.amp.GradScaler(kind, enabled=dtype == torch.float16)
    ema = EMA(net, 0.99)

    def step() -> Tensor:
        value = train.training_step(net, loss, [batch], optimizer, scaler, dtype)
        ema.update()
        return value

    return step


def prepare_fold(options: Iterable[object],
                 fold: int) -> tuple[argparse.Namespace, list[Item], int]:
    """What train.py makes of its command line `options`: its arguments, the images that `fold`
    holds out, and the number of steps of an epoch."""
    args = train_options([str(option) for option in options])
    data = prepare(args)
    held_out = [item for item, other in zip(data.items, data.folds) if other == fold]
    steps_of = make_sampler(args, data.tiles, training_tiles(data.tiles, data.folds, fold))
    return args, held_out, len(steps_of(0))


def segment_slide(path: Path, out: Path, predict: Callable, scale: int, tile: int,
                  threshold: float, *options: str) -> None:
    """infer.py's own loop over one slide, with any function as the network. `options` are others
    of infer.py."""
    args = infer_options([str(path), "--model", "none", "--out", str(out), *options])
    ensemble = Ensemble([], [], scale, tile, threshold, microns=None, white=None, label=None)
    out.mkdir(parents=True, exist_ok=True)
    infer.segment(path, predict, ensemble, args, set())


def write_large(path: Path, height: int, width: int) -> None:
    """A large Deflate TIFF in tiles of 256 pixels: one synthetic slide of 1024, repeated."""
    image, _ = synthetic_slide(0, 1024, 1024)
    blocks = [zlib.compress(image[y : y + 256, x : x + 256].tobytes())
              for y in range(0, 1024, 256) for x in range(0, 1024, 256)]
    tiles = (blocks[y % 4 * 4 + x % 4] for y in range(-(-height // 256))
             for x in range(-(-width // 256)))
    tifffile.imwrite(path, tiles, shape=(height, width, 3), dtype=np.uint8, tile=(256, 256),
                     compression="zlib", photometric="rgb", metadata=None, bigtiff=True)
