"""What the programs of this folder share: timing, memory, the environment of a result, and the few
places where they use the inside of `train.py` and `infer.py`."""

import argparse
import gc
import json
import math
import multiprocessing
import re
import statistics
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import tifffile
import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

import infer
import train
from minseg.deep_supervision import deep_supervision_loss
from minseg.files.atomic import atomic
from minseg.run.checkpoint import Ensemble
from minseg.run.memory import keep_memory, trim_memory
from minseg.run.options import infer_options
from minseg.run.prepare import make_sampler
from minseg.run.report import environment
from minseg.run.tiles import Tiles
from minseg.synthetic import synthetic_slide
from minseg.training import EMA, autocast_dtype

RESULTS = Path("docs/results")

# Results and what they depend on


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


def in_turn(functions: dict[str, Callable[[], object]], rounds: int,
            calls: int = 1) -> dict[str, float]:
    """The median seconds of each function, called in the order A B C A B C ..., after one round of
    warm-up. Machines change their speed within a minute, and in this order it affects all alike.
    With several `calls` each turn has so many, and nothing waits for the GPU between them. Freed
    memory stays in the process (`minseg.run.memory`), as in train.py."""
    keep_memory()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                function()
            synchronize()
            seconds[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def in_turn_apart(makers: dict[str, Callable[[], Callable]], rounds: int,
                  not_kept: Collection[str]) -> dict[str, float]:
    """`in_turn` of the functions that `makers` make, each in a process of its own. There, freed
    memory is kept, except for those named in `not_kept`: they do what programs do that change
    nothing. (Once a process has asked for other thresholds, it cannot go back to that.)"""
    spawn = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    with ExitStack() as stack:
        processes = {name: stack.enter_context(spawn.Pool(1)) for name in makers}
        for _ in range(rounds + 1):
            for name, make in makers.items():
                seconds[name].append(processes[name].apply(_time, (make, name not in not_kept)))
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


_function: list[Callable] = []  # in a process of `in_turn_apart`: what it times


def _time(make: Callable[[], Callable], keep: bool) -> float:
    if not _function:
        if keep:
            keep_memory()
        _function.append(make())
    start = time.perf_counter()
    _function[0]()
    return time.perf_counter() - start


def peak(device: str = "cpu") -> float:
    """The most memory, in GiB, that this process has held so far (on a CPU: Linux only)."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's as well
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def resident() -> float:
    """The memory, in GiB, that this process holds once what is free has been returned."""
    trim_memory()
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 2**20


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


def step_and_peak(make: Callable[[], Callable]) -> tuple[Callable, float]:
    """The function that `make` returns, which takes one step, and the GiB that its second step
    holds at most on the GPU, beyond what was there before `make`."""
    gc.collect()
    torch.cuda.empty_cache()
    before, step = torch.cuda.memory_allocated(), make()
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    return step, (torch.cuda.max_memory_allocated() - before) / 2**30


def bandwidth(device: str) -> float:
    """Bytes per second that the device reads and writes while it copies a large tensor."""
    source = torch.ones(2**28 if device.startswith("cuda") else 2**24, device=device)
    target = torch.empty_like(source)
    seconds = in_turn({"copy": partial(target.copy_, source)}, rounds=20)["copy"]
    return 2 * source.nbytes / seconds


def product_speed(device: str, dtype: torch.dtype) -> float:
    """Operations per second in the product of two large matrices: as `@`, or as a convolution of
    1 x 1, whichever is faster. (On a CPU `@` is done by MKL, which is slow on AMD's.)"""
    n = 8192 if device.startswith("cuda") else 2048
    a, b = torch.rand(2, n, n, device=device).to(dtype)
    image = b.view(16, 8, n // 128, n).permute(0, 3, 1, 2)  # (16, n, 8, n / 128), channels last
    kernel = a.view(n, n, 1, 1)
    ways: dict[str, Callable] = {"@": lambda: a @ b, "1 x 1": lambda: F.conv2d(image, kernel)}
    return 2 * n**3 / min(in_turn(ways, rounds=10).values())


def operations(step: Callable[[], object]) -> int:
    """The multiplications and additions of a forward pass, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


# What the operators of a training step move and how long they take

GROUPS = {  # of the network's operators: an operator belongs to the first pattern in its name
    "fused by the compiler": "^triton|Compiled",
    "convolution, backward": "conv.*backward",
    "convolution, forward": "conv",
    "batch norm, backward": "batch_norm.*backward",
    "batch norm, forward": "batch_norm",
    "activations": "silu|relu|sigmoid|threshold",
    "upsampling": "upsample",
    "concatenation, padding": "cat$|pad|slice",
    "sums, products, means": "add|sub|mul|div|sum|mean",
    "copies, casts": "copy|clone",
}
# These move nothing, or a single number.
FREE = re.compile("empty|detach|alias|_unsafe_view|lift|^device$|_local_scalar")
WRITE_ONLY = re.compile(r"_like$|^new_|^zero_$|^fill_$")  # do not read the tensor they are given
MARK = "begins: "


def group_of(operator: str, part: str) -> str:
    """The row of an operator, by its name and the part of the step that it belongs to."""
    if part != "network":
        return part
    return next((group for group, names in GROUPS.items() if re.search(names, operator)), "other")


class Traffic(TorchDispatchMode):
    """Adds up the bytes that operators move through memory, group by group: each tensor that goes
    in is read once, each that comes out is written once, and views are free."""

    def __init__(self):
        super().__init__()
        self.moved: Counter[str] = Counter()
        self.part = "network"

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        result = function(*args, **kwargs or {})
        if not function.is_view and not FREE.search(name):
            self.moved[group_of(name, self.part)] += _moved(function, name, args, kwargs, result)
        return result


def _moved(function, name: str, args: tuple, kwargs: dict | None, result: object) -> int:
    """The bytes that one call of an operator reads and writes."""
    def nbytes(values: object) -> int:  # an expanded dimension has stride 0 and is read once
        return sum(x.element_size() * math.prod(n for n, s in zip(x.shape, x.stride()) if s)
                   for x in tree_flatten(values)[0] if isinstance(x, Tensor))

    read = () if WRITE_ONLY.search(name) else args[1:] if name == "copy_" else (args, kwargs)
    if function._schema.returns:
        return nbytes(read) + nbytes(result)
    written = [value for argument, value in zip(function._schema.arguments, args)
               if argument.alias_info and argument.alias_info.is_write
               and argument.name != "grads"]  # optimisers write these only to unscale them
    return nbytes(read) + nbytes(written)


def mark(part: str) -> None:
    """Leaves a mark in the profile: here a part of the step begins."""
    with record_function(MARK + part):
        pass


def milliseconds(step: Callable[[], object], device: str, steps: int = 3) -> dict[str, float]:
    """The milliseconds of a step by group of operators, as torch.profiler measures them: on CUDA
    those of the kernels that an operator starts. The step must call `mark`."""
    cuda = device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]) as profiler:
        for _ in range(steps):
            step()
        synchronize()
    times: Counter[str] = Counter()
    part = "network"
    for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
        if event.device_type != DeviceType.CPU:  # a kernel: the operator's own event includes it
            continue
        if event.name.startswith(MARK):
            part = event.name.removeprefix(MARK)
        elif re.search("^(aten::|triton_)|Compiled", event.name):
            own = event.self_device_time_total if cuda else event.self_cpu_time_total
            times[group_of(event.name.removeprefix("aten::"), part)] += own / 1e3 / steps
    return {group: time for group, time in times.items() if time > 0}


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
               batch: tuple[Tensor, Tensor], amp: bool, compiled: bool = False,
               begin: Callable[[str], None] = lambda part: None) -> Callable[[], Tensor]:
    """A function that takes one of train.py's own steps on `batch` and returns the loss.
    `compiled` does what train.py does with --compile. `begin` is called with the name of each part
    of the step when it begins: "network", "loss", "optimiser" and "EMA"."""
    kind = batch[0].device.type
    dtype = autocast_dtype(kind) if amp else None
    scaler = torch.amp.GradScaler(kind, enabled=dtype == torch.float16)
    ema, forward = EMA(net, 0.99), torch.compile(net, dynamic=False) if compiled else net

    def network(images: Tensor) -> Tensor | list[Tensor]:
        logits = forward(images)
        finest = logits if isinstance(logits, Tensor) else logits[0]
        # The backward pass comes here when it has gone through all of the loss.
        finest.register_hook(lambda gradient: begin("network"))
        begin("loss")
        return logits

    def step() -> Tensor:
        begin("network")
        value = train.training_step(network, loss, [batch], optimizer, scaler, dtype)
        begin("EMA")
        ema.update()
        return value

    optimizer.register_step_pre_hook(lambda *_: begin("optimiser"))
    return step


def train_minseg(args: argparse.Namespace, tiles: Tiles, train_on: Tensor, steps: int, *,
                 build: Callable = train.build,
                 after_step: Callable[[int, nn.Module], None] = lambda step, net: None,
                 changes: Mapping[str, object] | None = None) -> tuple[nn.Module, dict, float]:
    """train.py's own training, without scores and logs after epochs; `build` and `after_step` are
    its own. `changes` are other values for constants of modules. Returns the network with the
    averaged weights, the arguments that make it, and the seconds."""
    args.epochs = steps / len(make_sampler(args, tiles, train_on)(0))
    replaced = {**(changes or {}), "minseg.run.loop.save_log": lambda *_: None}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(patch(name, value))
        start = time.monotonic()
        net, network = train.train(args, tiles, train_on, [], Path(folder), build=build,
                                   after_step=after_step)
        synchronize()
        return net, network, time.monotonic() - start


def segment_slide(path: Path, out: Path, predict: Callable, scale: int, tile: int,
                  threshold: float, *options: str) -> None:
    """infer.py's own loop over one slide, with any function as the network. `options` are others
    of infer.py."""
    args = infer_options([str(path), "--model", "none", "--out", str(out), *options])
    ensemble = Ensemble([], [], scale, tile, threshold, microns=None, white=None, label=None)
    out.mkdir(parents=True, exist_ok=True)
    infer.segment(path, predict, ensemble, args, set(), lambda share: None)


def write_large(path: Path, height: int, width: int) -> None:
    """A large Deflate TIFF in tiles of 256 pixels: one synthetic slide of 1024, repeated."""
    image, _ = synthetic_slide(0, 1024, 1024)
    blocks = [zlib.compress(image[y : y + 256, x : x + 256].tobytes())
              for y in range(0, 1024, 256) for x in range(0, 1024, 256)]
    tiles = (blocks[y % 4 * 4 + x % 4] for y in range(-(-height // 256))
             for x in range(-(-width // 256)))
    tifffile.imwrite(path, tiles, shape=(height, width, 3), dtype=np.uint8, tile=(256, 256),
                     compression="zlib", photometric="rgb", metadata=None, bigtiff=True)
