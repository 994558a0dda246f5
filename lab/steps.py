"""Whole training steps, for `python -m lab.bench train`: what they cost in time, memory and
bytes moved, here and with segmentation_models.pytorch.

Every step takes the same images and masks that lie on the device already, and does all that
`train.py` does with them but augmentation: forward, loss, backward, optimiser, averaged weights.
"""

import argparse
import gc
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from minseg.data.tiles import Tiles
from minseg.losses import make_loss
from minseg.run.step import EMA, autocast_dtype, blocks, recompute_activations
from minseg.unet import UNet

TRICKS = {
    "plain": {}, "gates": {"gates": True}, "scse": {"attention": "scse"},
    "cbam": {"attention": "cbam"}, "hypercolumn": {"hypercolumn": True},
    "deep": {"deep_supervision": True},
    "all": {"gates": True, "attention": "scse", "hypercolumn": True, "deep_supervision": True},
}


def batch(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] and masks of discs, on the device."""
    torch.manual_seed(0)
    images = torch.rand(args.images, 3, args.size, args.size)
    x = torch.linspace(-1, 1, args.size)
    discs = x[:, None].hypot(x) < torch.rand(args.images, 1, 1, 1) * 0.5
    return images.to(args.device), discs.float().to(args.device)


def minseg_step(args: argparse.Namespace, name: str, tricks: str, recompute: bool = False,
                compiled: bool = False) -> Callable[[], Tensor]:
    """train.py's own step on one batch."""
    import train  # the program that is measured; it lies beside docs/

    images, masks = batch(args)
    net = UNet(name, **TRICKS[tricks]).to(args.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, fused=True)
    dtype = autocast_dtype(args.device) if args.amp else None
    scaler = torch.amp.GradScaler(torch.device(args.device).type, enabled=dtype == torch.float16)
    average, loss = EMA(net, 0.99), make_loss(args.loss)
    if recompute:
        recompute_activations(net)
    forward = torch.compile(net, dynamic=False) if compiled else net

    def step() -> Tensor:
        value = train.training_step(forward, loss, [(images, masks)], optimizer, scaler, dtype)
        average.update()
        return value

    step.net = net
    return step


def smp_step(args: argparse.Namespace, name: str, added: bool = False,
             compiled: bool = False) -> Callable[[], Tensor]:
    """segmentation_models.pytorch's U-Net in the loop that its documentation shows. `added`: with
    channels-last, a fused optimiser; on CUDA autocast is on either way."""
    import segmentation_models_pytorch as smp

    images, masks = batch(args)
    net = smp.Unet(name, encoder_weights=None).to(args.device).train()
    losses = {"bce": nn.BCEWithLogitsLoss(), "dice": smp.losses.DiceLoss("binary"),
              "lovasz": smp.losses.LovaszLoss("binary", per_image=True)}
    parts = [losses[part] for part in args.loss.split("+")]
    if added:
        net = net.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, fused=added)
    mean, std = (torch.tensor(values, device=args.device).view(1, 3, 1, 1)
                 for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    kind, dtype = torch.device(args.device).type, autocast_dtype(args.device)
    scaler = torch.amp.GradScaler(kind, enabled=args.amp and dtype == torch.float16)
    forward = torch.compile(net, dynamic=False) if compiled else net

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(kind, dtype, enabled=args.amp):
            logits = forward((images - mean) / std)
            loss = sum(part(logits, masks) for part in parts)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    step.net = net
    return step


class Traffic(TorchDispatchMode):
    """Adds up the bytes that operators read and write: each tensor that goes in or comes out, once
    an operator; views cost nothing. Fused operators move less than this, so it is what eager
    PyTorch moves at least, where nothing stays in a cache."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if not function.is_view and function.overloadpacket.__name__ not in ("empty", "detach"):
            tensors, _ = tree_flatten((args, kwargs, result))
            self.bytes += sum(t.numel() * t.element_size() for t in tensors
                              if isinstance(t, Tensor))
        return result


def bandwidth(device: str) -> float:
    """Bytes a second that the device reads and writes in the copy of a large tensor."""
    source = torch.empty(2**28, dtype=torch.uint8, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(10):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() / best


def peak_of(make: Callable, arguments: tuple, device: str) -> float:
    """GiB that the second of two steps holds at most: on CUDA in tensors; on a CPU in the process,
    which is a new one, beyond what it held before it made the network."""
    if device.startswith("cuda"):
        gc.collect()
        before = torch.cuda.memory_allocated()
        step = make(*arguments)
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_on_cpu, (make, arguments))


def _peak_on_cpu(make: Callable, arguments: tuple) -> float:
    from .bench import peak

    torch.set_num_threads(1)  # no scratch space for each thread
    make(*arguments)  # what is imported counts before
    before = peak()
    step = make(*arguments)
    step()
    step()
    return peak() - before


class Alive(TorchDispatchMode):
    """Remembers what operators bring into the world, and tells how much of it is still there."""

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

    def bytes(self) -> int:
        """Of the storages that have not been freed."""
        return sum(size for storage, size in self.storages.values() if not storage.expired())


def kept_bytes(args: argparse.Namespace, name: str, tricks: str, recompute: bool = False) -> int:
    """Bytes an image that a training step holds when its forward pass has ended, since the backward
    pass needs them; recomputed, with the insides of the one block that then needs most. From one
    and two images of half the side: maps grow with the area, norms' statistics and the 16-bit
    copies of weights do not, and are taken off."""
    side = max(64, args.size // 64 * 32)  # a multiple of 32, else the network pads it
    torch.manual_seed(0)
    net = UNet(name, **TRICKS[tricks]).train().to(memory_format=torch.channels_last)
    inner = [0]
    if recompute:
        recompute_activations(net)
        for block in blocks(net):
            block.register_forward_hook(lambda block, inputs, output: inner.append(alive_after(
                lambda: type(block).forward(block, *inputs))))
    found = []
    for images in (1, 2):
        x = torch.rand(images, 3, side, side)
        x = x.contiguous(memory_format=torch.channels_last)
        inner.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.amp):
            kept = alive_after(lambda: net(x))
        found.append(kept + max(inner, default=0))
    return round((args.size / side) ** 2 * (found[1] - found[0]))


def alive_after(function: Callable[[], object]) -> int:
    """Bytes that are there, and were not before, while the result of `function` is."""
    with Alive() as alive:
        result = function()
    size = alive.bytes()
    del result
    return size


def multiply_adds(args: argparse.Namespace, name: str, tricks: str) -> int:
    """Of the forward pass of an image."""
    net = UNet(name, **TRICKS[tricks]).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        net(torch.zeros(1, 3, args.size, args.size))
    return flops.get_total_flops() // 2


def bench_memory(args: argparse.Namespace) -> list[dict]:
    """What a batch needs at least: maps kept for the backward pass, and 20 bytes a parameter: its
    weight, gradient, two moments and average. Counted, not timed: it holds on every device, but
    leaves out what single operators need while they run."""
    rows = []
    for name in args.encoders:
        for tricks in args.tricks:
            parameters = sum(p.numel() for p in UNet(name, **TRICKS[tricks]).parameters())
            for recompute in (False, True):
                kept = kept_bytes(args, name, tricks, recompute)
                rows.append({"bench": "memory", "encoder": name, "tricks": tricks,
                             "recomputed": recompute, "images": args.images, "size": args.size,
                             "numbers": "bfloat16" if args.amp else "float32",
                             "parameters": parameters, "kept_mib_an_image": round(kept / 2**20, 1),
                             "gib": round((args.images * kept + 20 * parameters) / 2**30, 2)})
                print("{encoder}, {tricks}, recomputed {recomputed}: {kept_mib_an_image} MiB an "
                      "image, {gib} GiB a batch".format(**rows[-1]), flush=True)
    return rows


def busiest(step: Callable[[], Tensor], device: str) -> dict[str, float]:
    """Milliseconds of a step: all of it, and the ten operators that take most, on CUDA the device's
    own time. What all operators leave of the whole, the device has waited."""
    cuda, kinds = device.startswith("cuda"), torch.profiler.ProfilerActivity
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    step()
    with torch.profiler.profile(activities=[kinds.CPU, *[kinds.CUDA] * cuda]) as found:
        start = time.perf_counter()
        step().item()
        seconds = time.perf_counter() - start
    times = {event.key: getattr(event, own) / 1e3 for event in found.key_averages()}
    largest = sorted(times, key=times.get, reverse=True)[:10]
    shown = {"step": 1e3 * seconds, "operators": sum(times.values()),
             **{name: times[name] for name in largest}}
    return {name: round(milliseconds, 2) for name, milliseconds in shown.items()}


def bench_spread(args: argparse.Namespace) -> list[dict]:
    """The loss after 20 steps of each of three runs of one seed: on a CPU they are the same; CUDA
    adds in another order each time."""
    rows = []
    for name in args.encoders:
        losses = []
        for _ in range(3):
            step = minseg_step(args, name, args.tricks[0])
            losses.append([step().item() for _ in range(20)][-1])
        rows.append({"bench": "spread", "encoder": name, "tricks": args.tricks[0],
                     "losses": losses, "spread": max(losses) - min(losses)})
        print("{encoder}: losses {losses}, spread {spread:.2e}".format(**rows[-1]), flush=True)
    return rows


def ways(args: argparse.Namespace, name: str, tricks: str) -> dict[str, tuple[Callable, tuple]]:
    """What is timed in turn: a name, and what makes the step."""
    ours = (args, name, tricks)
    found = {"minseg": (minseg_step, ours), "minseg, recomputed": (minseg_step, (*ours, True))}
    if args.compile:
        found["minseg, compiled"] = minseg_step, (*ours, False, True)
    if args.against == "smp" and tricks == "plain":
        found["smp"] = smp_step, (args, name)
        found["smp, everything added"] = smp_step, (args, name, True, args.compile)
    return found


def bench_train(args: argparse.Namespace) -> list[dict]:
    """A row for each encoder, tricks and way: images a second, peak memory, share of bandwidth."""
    from .bench import in_turn

    speed, rows = bandwidth(args.device), []
    for name in args.encoders:
        for tricks in args.tricks:
            operations, makers = multiply_adds(args, name, tricks), ways(args, name, tricks)
            steps = {}  # frees those of before, whose memory would count here
            gc.collect()
            memory = {way: peak_of(*maker, args.device) for way, maker in makers.items()}
            steps = {way: make(*arguments) for way, (make, arguments) in makers.items()}
            traffic = {}
            for way, step in steps.items():
                if "compiled" in way or (args.compile and "added" in way):
                    continue  # what a compiled step moves is not seen from here
                with Traffic() as moved:
                    step()
                traffic[way] = moved.bytes
            seconds = in_turn(steps, args.rounds)
            for way in makers:
                rate = args.images / seconds[way]
                row = {"bench": "train", "encoder": name, "tricks": tricks, "way": way,
                       "images": args.images, "size": args.size, "loss": args.loss,
                       "amp": str(autocast_dtype(args.device))[6:] if args.amp else "float32",
                       "multiply_adds": operations,
                       "parameters": sum(p.numel() for p in steps[way].net.parameters()),
                       "seconds_a_step": round(seconds[way], 4),
                       "images_a_second": round(rate, 3), "peak_gib": round(memory[way], 3)}
                if way == "minseg":
                    row["milliseconds"] = busiest(steps[way], args.device)
                if way in traffic:
                    row["gib_moved_an_image"] = round(traffic[way] / args.images / 2**30, 3)
                    row["share_of_bandwidth"] = round(traffic[way] / seconds[way] / speed, 3)
                rows.append(row)
                print("{encoder}, {tricks}, {way}: {images_a_second} images a second, "
                      "{peak_gib} GiB".format(**row), flush=True)
    return rows


def bench_loader(args: argparse.Namespace) -> list[dict]:
    """Tiles a second that a warm cache of 1 GiB feeds, `args.size` pixels a side with a margin."""
    margin, rows = args.size // 8, []
    stored = (args.size + 2 * margin) ** 2 * 4  # bytes
    tiles = max(1, 2**30 // stored)
    with tempfile.TemporaryDirectory(prefix="minseg-bench-") as folder:
        path = Path(folder, "slide-0.tiles")
        with open(path, "wb") as file:
            for _ in range(tiles):
                file.write(torch.randint(0, 256, (stored,), dtype=torch.uint8).numpy())
        cache = Tiles(Path(folder), [{"file": path.name, "places": [(0, 0)] * tiles,
                                      "area": [0.5] * tiles, "blank": 0}], args.size, margin)
        for workers in (1, 2, 4):
            order = torch.randint(tiles, (40, args.images)).tolist()
            for _ in cache.batches(order[:10], args.device, workers):
                pass
            start = time.perf_counter()
            count = sum(len(images) for images, _ in cache.batches(order, args.device, workers))
            if args.device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            rows.append({"bench": "loader", "workers": workers, "size": args.size, "margin": margin,
                         "images": args.images, "images_a_second": round(count / seconds, 1),
                         "gib_a_second": round(count * stored / seconds / 2**30, 2)})
            print("{workers} workers: {images_a_second} images of {size} x {size} a second, "
                  "{gib_a_second} GiB a second".format(**rows[-1]), flush=True)
    return rows
