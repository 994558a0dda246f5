"""What a GPU makes of this project, in one command and a few minutes.

    python -m lab.gpu --minutes 8

Writes docs/results/NAME/gpu.json after each result, so that nothing is lost if it is stopped.
Each part has a share of the minutes. Without a GPU the same runs on a CPU with small images, only
to try the program.
"""

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minseg.augment import augment
from minseg.run.checkpoint import save_model
from minseg.run.options import train_options
from minseg.run.prepare import prepare
from minseg.run.report import Parser, environment
from minseg.synthetic import write_slides
from minseg.training import autocast_dtype
from minseg.unet import UNet, convolve_enlarged

from . import bench, measure
from .checks import cuda_tests, float32, resume, short
from .measure import in_turn, synchronize
from .parts import SPAWN, Part, run_all

MORE = {"asked": {"times_as_fast": "more than 1"}}


def skipped(way: str, error: ImportError) -> dict:
    """A row in place of what cannot be measured here."""
    return {"way": way, "skipped": f"needs {error.name}: pip install -e '.[audit]'"}


def autocast(function: Callable, device: str, enabled: bool) -> Tensor:
    """The function's result under autocast."""
    with torch.autocast(device, autocast_dtype(device), enabled=enabled):
        return function()


def loop(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """train.py's loop, from tiles on the disk to the moving average, and its tiles alone."""
    side, (warm_up, steps) = max(256, 2 * args.size), args.steps
    write_slides(folder / "slides", 4, height=side, width=side)
    options = train_options([
        "--data", str(folder / "slides"), "--out", str(folder / "run"), "--device", args.device,
        *f"--tile {args.size} --stride {args.size // 4} --batch {args.images} --negatives all "
         f"--loss {bench.LOSS} --lr 1e-4 --amp on".split()])
    tiles, count = prepare(options).tiles, (warm_up + steps + 1) * args.images
    numbers = torch.arange(count) % len(tiles)  # as an epoch of so many tiles
    times = []

    def after_step(number: int, net: nn.Module) -> None:
        if number in (warm_up, warm_up + steps):
            synchronize()
            times.append(time.perf_counter())

    measure.train_minseg(options, tiles, numbers, warm_up + steps + 1, after_step=after_step)
    yield {"way": "train.py's loop", "images": args.images, "size": args.size, "amp": True,
           "images_a_second": round(steps * args.images / (times[1] - times[0]), 1),
           "asked": {"images_a_second": "at least 500"}}
    for workers in (options.workers, 4 * options.workers):
        start, generator = time.perf_counter(), torch.Generator()
        for batch in tiles.batches(numbers.view(-1, args.images), args.device, workers):
            augment(*batch, args.size, generator)
        synchronize()
        yield {"way": f"tiles read by {workers} threads and augmented",
               "images_a_second": round(count / (time.perf_counter() - start), 1)}


def step(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """A training step alone, beside one of segmentation_models.pytorch (smp)."""
    functions = {"minseg": bench.minseg_step(args)}
    try:
        functions["smp"] = bench.smp_step(args, added=True)
    except ImportError as error:
        yield skipped("smp", error)
    yield from rates(functions, args, "smp", {"asked": {"times_as_fast": "at least 2"}})


def rates(functions: dict[str, Callable], args: argparse.Namespace, other: str,
          asked: dict) -> Iterator[dict]:
    """Images a second of training steps. The first is compared with the `other` one."""
    seconds = in_turn(functions, args.rounds, calls=5)
    for number, (way, each) in enumerate(seconds.items()):
        compared = other in seconds and not number
        yield {"way": way, "images": args.images, "size": args.size, "amp": True,
               "images_a_second": round(args.images / each, 1),
               **({"times_as_fast": round(seconds[other] / each, 2), **asked} if compared else {})}


def tiling(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """An image predicted in tiles, beside MONAI's sliding window over smp's U-Net."""
    model, bench.SIDE = folder / "model.pt", args.side
    torch.manual_seed(0)
    net = UNet(bench.ENCODER).train()
    for _ in range(20):  # statistics for its norms, so that maps neither vanish nor overflow
        net(torch.rand(4, 3, 64, 64))
    save_model(model, {"encoder": bench.ENCODER}, net.state_dict(), scale=1,
               tile=bench.SMALL_TILE, threshold=0.5)
    ways = {f"minseg, {bits} bits": bench.predict_here(model, args.device, bits == 16)
            for bits in (32, 16)}
    try:
        theirs = bench.predict_with_monai(model, args.device)
        ways |= {f"monai + smp, {bits} bits": partial(autocast, theirs, args.device, bits == 16)
                 for bits in (32, 16)}
    except ImportError as error:
        yield skipped("monai + smp", error)
    seconds, results = in_turn(ways, args.rounds), {way: function() for way, function in
                                                    ways.items()}
    for way, each in seconds.items():
        row = {"way": way, "size": [args.side, args.side], "tile": bench.SMALL_TILE,
               "megapixels_a_second": round(args.side**2 / each / 1e6, 2)}
        peer = way.replace("minseg", "monai + smp")
        if peer in seconds and peer != way:
            difference = (results[way] - results["monai + smp, 32 bits"]).abs().max().item()
            row |= {"times_as_fast": round(seconds[peer] / each, 2), **MORE,
                    "largest_difference": short(difference)}
        yield row


def memory(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """The most memory that a step holds, beside what `lab.bench memory` counts."""
    for tricks in ("plain", "all"):
        net = UNet(bench.ENCODER, **bench.TRICKS[tricks])
        parameters = sum(p.numel() for p in net.parameters())
        for recompute in (False, True):
            kept = bench.kept_bytes(bench.ENCODER, tricks, args.size, recompute)
            counted = round((args.images * kept + 20 * parameters) / 2**30, 2)
            row = {"way": f"{tricks}{', recomputed' * recompute}", "counted_gib": counted}
            if args.device == "cuda":
                make = partial(bench.minseg_step, args, recompute, tricks)
                row |= {"peak_gib": round(measure.step_and_peak(make)[1], 2),
                        "asked": {"peak_gib": f"{counted}, or a little more"}}
            yield row


def spread(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """Where a step's time goes."""
    return ({"way": row.pop("operators"), **row} for row in bench.bench_spread(args))


def compiled(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """A step with --compile."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)  # nothing is compiled yet
    function = bench.minseg_step(args, compiled=True)
    start = time.perf_counter()
    function()
    synchronize()
    yield {"way": "first step", "seconds": round(time.perf_counter() - start, 1)}
    yield from rates({"compiled": function, "not compiled": bench.minseg_step(args)}, args,
                     "not compiled", MORE)


def literally(conv: nn.Conv2d, d: Tensor, skip: Tensor | None = None) -> Tensor:
    """What `convolve_enlarged` computes: enlarge, concatenate, convolve."""
    large = F.interpolate(d, scale_factor=2.0, mode="nearest")
    return conv(large if skip is None else torch.cat([large, skip], 1))


def decoder(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """The first convolution of each decoder block, transposed or of concatenated maps."""
    with torch.device("meta"):  # shapes alone
        net, found = UNet(bench.ENCODER), []
        for block in (net.block4, net.block3, net.block2, net.block1, net.block0):
            block.conv1.register_forward_pre_hook(lambda module, maps: found.append(
                (module[0].out_channels, [x.shape for x in maps if x is not None])))
        net(torch.empty(args.images, 3, args.size, args.size))
    for amp in (False, True):
        dtype, total = autocast_dtype(args.device) if amp else torch.float32, [0.0, 0.0]
        for channels, shapes in found:
            maps = [torch.randn(shape, device=args.device, dtype=dtype).contiguous(
                memory_format=torch.channels_last).requires_grad_() for shape in shapes]
            conv = nn.Conv2d(sum(shape[1] for shape in shapes), channels, 3, padding=1, bias=False)
            conv = conv.to(args.device, memory_format=torch.channels_last)

            def both(function, conv=conv, maps=maps, amp=amp) -> None:
                result = autocast(partial(function, conv, *maps), args.device, amp)
                torch.autograd.grad(result, [conv.weight, *maps], result.detach())

            seconds = in_turn({"transposed": partial(both, convolve_enlarged),
                               "concatenated": partial(both, literally)}, args.rounds, calls=5)
            total = [sum(pair) for pair in zip(total, seconds.values())]
            yield {"way": f"{[list(shape) for shape in shapes]} to {channels}", "amp": amp,
                   **{f"{way}_ms": round(1e3 * each, 3) for way, each in seconds.items()}}
        yield {"way": f"all, {16 if amp else 32} bits", "amp": amp,
               "times_as_fast": round(total[1] / total[0], 2), **MORE}


PARTS: dict[str, tuple[Part, float]] = {  # what matters most first; shares of the time, at most
    "tests": (cuda_tests, 0.2), "loop": (loop, 0.2), "step": (step, 0.1), "tiling": (tiling, 0.15),
    "memory": (memory, 0.15), "spread": (spread, 0.1), "compiled": (compiled, 0.3),
    "decoder": (decoder, 0.1), "float32": (float32, 0.1), "resume": (resume, 0.3)}


def describe(device: str) -> dict:
    """The environment, and what GPU it is."""
    facts = {**environment(device), "processors": os.cpu_count()}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        facts |= {"gib": round(card.total_memory / 2**30, 1), "cuda": torch.version.cuda,
                  "capability": f"{card.major}.{card.minor}",
                  "cudnn": torch.backends.cudnn.version()}
    return facts


def main(argv: list[str] | None = None) -> None:
    """The command line: `python -m lab.gpu`."""
    parser = Parser(prog="python -m lab.gpu", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--minutes", type=float, default=8, metavar="N", help="in all, at most (default 8)")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    add("--out", type=Path, metavar="FILE",
        help="default: docs/results/NAME/gpu.json; on a CPU runs/gpu.json")
    args = parser.parse_args(argv)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no such device: use --device cpu")
    with SPAWN.Pool(1) as pool:  # this process leaves the GPU alone, so that each part has all
        facts = pool.apply(describe, (device,))
    folder = re.sub("[^a-z0-9]+", "-", facts["device"].lower()).removeprefix("nvidia-").strip("-")
    sizes, path = {"images": 2, "size": 64, "side": 512, "rounds": 1, "steps": (1, 2)}, "runs"
    if device == "cuda":  # those of the post, where they fit
        sizes = {"images": 16 if facts["gib"] > 15 else 4, "size": 640, "side": bench.SIDE,
                 "rounds": 7, "steps": (20, 100)}
        path = measure.RESULTS / folder
    settings = argparse.Namespace(device=device, amp=True, **sizes)
    sys.exit(run_all(PARTS, settings, args.minutes, args.out or Path(path, "gpu.json"),
                     {**facts, **sizes}))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the part that runs ends, too
    main()
