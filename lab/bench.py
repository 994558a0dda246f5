"""Benchmarks, as programs: they print a table and write it to docs/results/ as JSON.

    python -m lab.bench lovasz --against smp --model runs/synthetic/fold0/model.pt
    python -m lab.bench hypercolumn
    python -m lab.bench rle
    python -m lab.bench tiling --model runs/synthetic/fold0/model.pt --against monai
    python -m lab.bench train --against smp
    python -m lab.bench memory --amp --encoders efficientnet-b0 efficientnet-b7
    python -m lab.bench loader
    python -m lab.bench spread

Machines are noisy and change their speed within a minute, so two things are compared in turn, round
by round, and what counts is the ratio of their medians.
"""

import json
import multiprocessing
import platform
import statistics
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minseg.data.files import atomic
from minseg.data.rle import Encoder, rle_encode
from minseg.data.slides import shrink
from minseg.data.synthetic import synthetic_slide
from minseg.dice import dice_score
from minseg.efficientnet import SCALES
from minseg.hypercolumn import Hypercolumn
from minseg.lovasz import lovasz_hinge
from minseg.run.checkpoint import Ensemble, load_model
from minseg.run.options import infer_options
from minseg.run.predictor import predictor
from minseg.run.report import Parser
from minseg.tiling import predict_image

from .steps import TRICKS, bench_loader, bench_memory, bench_spread, bench_train

RESULTS = Path("docs/results")


def environment(device: str) -> dict:
    """What a figure depends on: the device's name, the threads, versions and the commit."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    if device == "cpu" and Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:  # no git here
        commit = ""
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "python": platform.python_version(), "commit": commit, "date": str(date.today())}


def in_turn(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each function, timed A B C A B C ... after a round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(rounds + 1):
        for name, function in functions.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def peak() -> float:
    """GiB that this process has held at most (Linux)."""
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's, too
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def save(name: str, device: str, rows: list[dict], out: Path) -> None:
    """Writes the rows with their environment to `out`/bench-`name`.json."""
    out.mkdir(parents=True, exist_ok=True)
    with atomic(out / f"bench-{name}.json") as temporary:
        temporary.write_text(json.dumps({**environment(device), "rows": rows}, indent=2) + "\n")
    print(out / f"bench-{name}.json")


@torch.no_grad()
def trained_logits(model: Path, images: int, size: int) -> tuple[Tensor, Tensor]:
    """Logits (images, 1, size, size) of a trained network on new synthetic slides, and truth."""
    net, facts = load_model(model)
    scale = facts["scale"]
    logits, targets = [], []
    for i in range(images):
        image, mask = synthetic_slide(10_000 + i, size * scale, size * scale)
        x = torch.from_numpy(shrink(image, scale)).permute(2, 0, 1)[None].float() / 255
        logits.append(net(x))
        targets.append(torch.from_numpy(shrink(mask * 255, scale) >= 128)[None, None].float())
    return torch.cat(logits), torch.cat(targets)


def bench_lovasz(args) -> list[dict]:
    """Forward and backward of the Lovász hinge on random and on a trained network's logits."""
    shape = (args.images, 1, args.size, args.size)
    torch.manual_seed(0)
    batches = {"random": (torch.randn(shape), (torch.rand(shape) < 0.1).float())}
    if args.model:
        batches["trained"] = trained_logits(args.model, args.images, args.size)
    losses = {"minseg": lovasz_hinge}
    if args.against == "smp":
        from segmentation_models_pytorch.losses import LovaszLoss

        losses["smp"] = LovaszLoss("binary", per_image=True)
    rows = []
    for name, (logits, target) in batches.items():
        logits, target = logits.to(args.device).requires_grad_(), target.to(args.device)

        def step(loss):
            logits.grad = None
            value = loss(logits, target)
            value.backward()
            return value.item()

        values = {name: step(loss) for name, loss in losses.items()}
        steps = {n: lambda loss=loss: step(loss) for n, loss in losses.items()}
        seconds = in_turn(steps, args.rounds)
        hinges = (1 - logits.detach() * (2 * target - 1)).clamp(min=0)
        row = {"bench": "lovasz", "logits": name, "shape": list(shape),
               "positive_hinges": round(hinges.count_nonzero().item() / hinges.numel(), 4),
               "seconds": {n: round(s, 4) for n, s in seconds.items()}, "values": values}
        line = f"lovasz, {name} logits ({row['positive_hinges']:.1%} with a hinge): "
        line += ", ".join(f"{n} {s:.3f} s" for n, s in seconds.items())
        if len(seconds) > 1:
            row["ratio"] = round(seconds["minseg"] / seconds[args.against], 3)
            line += f", ratio {row['ratio']}"
        print(line, flush=True)
        rows.append(row)
    return rows


class Concatenation(nn.Module):
    """The hypercolumn taken literally: enlarge, stack, convolve."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.project = nn.Conv2d(sum(in_channels), out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, maps):
        size = maps[0].shape[2:]
        large = [F.interpolate(x, size, mode="bilinear") for x in maps[1:]]
        return F.relu(self.norm(self.project(torch.cat([maps[0], *large], 1))))


def hypercolumn_step(kind: type[nn.Module], args) -> Callable[[], None]:
    """A forward and backward pass of `kind` on the five decoder maps of the plain U-Net."""
    channels = (16, 32, 64, 128, 256)
    torch.manual_seed(0)
    module = kind(channels, 16).to(args.device)
    maps = [torch.rand(args.images, c, args.size >> k, args.size >> k, device=args.device)
            .requires_grad_() for k, c in enumerate(channels)]
    return lambda: module(maps).sum().backward()


def peak_memory(kind: type[nn.Module], args) -> float:
    """GiB that one step of `kind` needs beyond its maps and weights, in a process of its own."""
    torch.set_num_threads(1)  # no scratch space for each thread
    step = hypercolumn_step(kind, args)
    if args.device == "cuda":
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    before = peak()
    step()
    return peak() - before


def bench_hypercolumn(args) -> list[dict]:
    """Memory and time of the hypercolumn and of the concatenation that it replaces."""
    kinds = {"minseg": Hypercolumn, "concatenation": Concatenation}
    memory = {}
    for name, kind in kinds.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory[name] = pool.apply(peak_memory, (kind, args))
    steps = {name: hypercolumn_step(kind, args) for name, kind in kinds.items()}
    seconds = in_turn(steps, args.rounds)
    row = {"bench": "hypercolumn", "shape": [args.images, 496, args.size, args.size],
           "peak_gib": {n: round(v, 3) for n, v in memory.items()},
           "seconds": {n: round(v, 4) for n, v in seconds.items()}}
    for name in kinds:
        print(f"{name}: {memory[name]:.2f} GiB beyond its maps, {seconds[name]:.3f} s")
    return [row]


def bench_rle(args) -> list[dict]:
    """Run-length coding of a mask with 600 blobs: in bands of 256 rows, and as a whole."""
    rng, size = np.random.default_rng(0), args.size
    mask = np.zeros((size, size), bool)
    side = size // 150
    y, x = np.ogrid[-1:1 : 2j * side, -1:1 : 2j * side]
    for top, left in rng.integers(0, size - 2 * side, (600, 2)):
        mask[top : top + 2 * side, left : left + 2 * side] |= y**2 + x**2 < 1
    before, start = peak(), time.perf_counter()
    coder = Encoder(size, size)
    for top in range(0, size, 256):
        coder.add(mask[top : top + 256])
    code = coder.encode()
    seconds = time.perf_counter() - start
    memory = (peak() - before) * 2**10
    row = {"bench": "rle", "size": [size, size], "blobs": 600, "runs": len(code.split()) // 2,
           "seconds": round(seconds, 2), "peak_mib_beyond_the_mask": round(memory, 1),
           "equals_the_whole_mask_s": code == rle_encode(mask)}
    print(row)
    return [row]


def write_large(path: Path, height: int, width: int) -> None:
    """A Deflate TIFF in tiles of 256 pixels: one synthetic slide, again and again."""
    image, _ = synthetic_slide(0, 1024, 1024)
    parts = [zlib.compress(image[y : y + 256, x : x + 256].tobytes())
             for y in range(0, 1024, 256) for x in range(0, 1024, 256)]
    tiles = (parts[y % 4 * 4 + x % 4] for y in range(-(-height // 256))
             for x in range(-(-width // 256)))
    tifffile.imwrite(path, tiles, shape=(height, width, 3), dtype=np.uint8, tile=(256, 256),
                     compression="zlib", photometric="rgb", metadata=None, bigtiff=True)


def stream(height: int, width: int, model: Path | None, args) -> dict:
    """Runs infer.py's own loop over one large slide, in a process of its own: seconds, megapixels
    a second, the network's share, and peak memory above that of the idle process. Without a model
    the predictor is free: it finds a disc in each tile."""
    import infer  # the program that is measured; it lies beside docs/

    inside = 0.0
    with tempfile.TemporaryDirectory(prefix="minseg-bench-") as folder:
        path = Path(folder, "slide.tiff")
        write_large(path, height, width)
        options = infer_options([str(path), "--model", str(model), "--out", folder + "/masks",
                               "--device", args.device, *["--amp"] * args.amp])
        options.out.mkdir()
        options.overlap = args.overlap
        ensemble = Ensemble([], [str(model)], 1, args.tile, 0.5, None, None, None)
        x = torch.linspace(-1, 1, args.tile)
        disc = (1 - x.hypot(x[:, None])).clamp(min=0).expand(options.batch, 1, -1, -1)
        network = lambda tiles: disc[: len(tiles)]  # noqa: E731
        if model:
            network = predictor([load_model(model)[0]], device=args.device, amp=args.amp)
            network(torch.zeros(8, 3, args.tile, args.tile, dtype=torch.uint8))

        def predict(tiles):
            nonlocal inside
            start = time.perf_counter()
            result = network(tiles)
            if args.device == "cuda":
                torch.cuda.synchronize()
            inside += time.perf_counter() - start
            return result

        before = peak()
        start = time.perf_counter()
        infer.segment(path, predict, ensemble, options, set())
        seconds = time.perf_counter() - start
        memory = peak() - before
    return {"bench": "tiling", "predictor": "network" if model else "free",
            "size": [height, width], "tile": args.tile, "overlap": args.overlap,
            "seconds": round(seconds, 1), "megapixels_a_second": round(
                height * width / 1e6 / seconds, 2), "network_share": round(inside / seconds, 3),
            "peak_gib_above_idle": round(memory, 3)}


def bench_tiling(args) -> list[dict]:
    """Slides that stream: with a free predictor, with a network, against another library."""
    rows, size = [], args.size
    jobs = [(size, size, None), (2 * size, size, None)]
    if args.model:  # on a CPU a network needs long: a smaller slide tells as much
        part = size if args.device == "cuda" else min(size, 4096)
        jobs.append((part, part, args.model))
    for job in jobs:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(stream, (*job, args)))
        print("{predictor} predictor, {size[0]} x {size[1]}: {seconds} s, {megapixels_a_second} "
              "megapixels a second, the predictor's share {network_share:.0%}, peak memory "
              "{peak_gib_above_idle} GiB above idle".format(**rows[-1]), flush=True)
    return rows + against_monai(args) if args.against == "monai" else rows


@torch.inference_mode()
def against_monai(args) -> list[dict]:
    """The same weights, pixels, tiles, overlap and window: MONAI's sliding window over
    segmentation_models.pytorch's U-Net, and this project's, in turn."""
    import segmentation_models_pytorch as smp
    from monai.inferers import sliding_window_inference

    if not args.model:
        raise ValueError("--against monai needs --model: its weights go into both networks")
    net, facts = load_model(args.model)
    theirs = smp.Unet("efficientnet-b0", encoder_weights=None)
    names = [name for name in theirs.state_dict() if not name.startswith(
        ("encoder._conv_head", "encoder._bn1"))]  # which it never uses
    if len(names) != len(net.state_dict()):
        raise ValueError(f"{args.model}: is not the plain U-Net with an EfficientNet-B0")
    theirs.load_state_dict(dict(zip(names, net.state_dict().values())), strict=False)
    theirs = theirs.eval().to(args.device)
    mean, std = net.mean.to(args.device), net.std.to(args.device)
    size, tile, batch = 2048, 256, 8
    half = facts["scale"] * size // 2
    image = np.tile(shrink(synthetic_slide(1, half, half)[0], facts["scale"]), (2, 2, 1))

    def monai():
        x = torch.from_numpy(image).to(args.device).permute(2, 0, 1)[None]
        return sliding_window_inference(
            (x / 255 - mean) / std, tile, batch, lambda tiles: theirs(tiles).sigmoid(),
            overlap=0.25, mode="gaussian")[0].cpu()

    def minseg(amp):
        predict = predictor([net], device=args.device, amp=amp)
        return lambda: predict_image(predict, image, tile=tile, stride=192, window="gaussian",
                                     batch=batch, device=args.device)

    ways = {"monai + smp": monai, "minseg": minseg(False), "minseg, bfloat16": minseg(True)}
    results = {name: way() for name, way in ways.items()}
    seconds = in_turn(ways, args.rounds)
    cut, rows = results["monai + smp"] >= 0.5, []
    for name, result in results.items():
        rows.append({"bench": "tiling against monai", "way": name, "size": [size, size],
                     "tile": tile, "overlap": 0.25, "window": "gaussian",
                     "seconds": round(seconds[name], 3),
                     "times_as_fast": round(seconds["monai + smp"] / seconds[name], 2),
                     "largest_difference": (result - results["monai + smp"]).abs().max().item(),
                     "dice_of_masks": dice_score(result >= 0.5, cut)})
        print("{way}: {seconds} s, {times_as_fast} times as fast; probabilities differ by at most "
              "{largest_difference:.1e}, Dice of the masks {dice_of_masks:.5f}".format(**rows[-1]))
    return rows


BENCHES = {"lovasz": bench_lovasz, "hypercolumn": bench_hypercolumn, "rle": bench_rle,
           "tiling": bench_tiling, "train": bench_train, "memory": bench_memory,
           "loader": bench_loader, "spread": bench_spread}


def main(argv: list[str] | None = None) -> None:
    """The command line: `python -m lab.bench WHAT`."""
    parser = Parser(prog="python -m lab.bench", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=BENCHES)
    parser.add_argument("--against", choices=("smp", "monai"),
                        help="lovasz, train: segmentation_models.pytorch; tiling: MONAI with it")
    parser.add_argument("--model", type=Path, metavar="FILE",
                        help="model.pt of a run on synthetic slides, for its logits or its speed")
    parser.add_argument("--images", type=int, help="default 16; hypercolumn 2")
    parser.add_argument("--size", type=int, help="side in pixels, default 640; tiling, rle 30000")
    parser.add_argument("--tile", type=int, default=512, help="of tiling, default 512")
    parser.add_argument("--overlap", type=float, default=0.25, help="of tiling, default 0.25")
    parser.add_argument("--amp", action="store_true", help="16-bit numbers: tiling, train, memory")
    parser.add_argument("--encoders", nargs="+", default=["efficientnet-b0"], choices=SCALES,
                        metavar="NAME", help="of train, memory; default efficientnet-b0")
    parser.add_argument("--tricks", nargs="+", default=["plain"], choices=TRICKS, metavar="NAME",
                        help=f"of train, memory: {', '.join(TRICKS)}; default plain")
    parser.add_argument("--loss", default="dice+lovasz", help="of train, default dice+lovasz")
    parser.add_argument("--compile", action="store_true", help="train: also compiled")
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default docs/results")
    args = parser.parse_args(argv)
    args.images = args.images or (2 if args.what == "hypercolumn" else 16)
    args.size = args.size or (30_000 if args.what in ("tiling", "rle") else 640)
    try:
        rows = BENCHES[args.what](args)
    except ImportError as error:
        parser.error(f"--against {args.against}: {error.name} is not installed: "
                     "pip install -e '.[audit]'")
    except ValueError as error:
        parser.error(error)
    save(args.what, args.device, rows, args.out)


if __name__ == "__main__":
    main()
