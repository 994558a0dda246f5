"""Benchmarks, as programs: they print a table and write it to docs/results/ as JSON.

    python -m minseg.lab.bench lovasz --against smp --model runs/synthetic/fold0/model.pt
    python -m minseg.lab.bench hypercolumn

Machines are noisy and change their speed within a minute, so two things are compared in turn, round
by round, and what counts is the ratio of their medians.
"""

import json
import multiprocessing
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.slides import shrink
from ..data.synthetic import synthetic_slide
from ..hypercolumn import Hypercolumn
from ..lovasz import lovasz_hinge
from ..run.checkpoint import atomic, load_model
from ..run.report import Parser

RESULTS = Path("docs/results")


def environment(device: str) -> dict:
    """What a figure depends on: the device's name, the threads, versions and the commit."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    if device == "cpu" and Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
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
    import resource  # Unix only

    torch.set_num_threads(1)  # no scratch space for each thread
    step = hypercolumn_step(kind, args)
    if args.device == "cuda":
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


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


BENCHES = {"lovasz": bench_lovasz, "hypercolumn": bench_hypercolumn}


def main(argv: list[str] | None = None) -> None:
    """The command line: `python -m minseg.lab.bench WHAT`."""
    parser = Parser(prog="python -m minseg.lab.bench", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=BENCHES)
    parser.add_argument("--against", choices=("smp",), help="segmentation_models.pytorch")
    parser.add_argument("--model", type=Path, metavar="FILE",
                        help="model.pt of a run on synthetic slides: times its logits, too")
    parser.add_argument("--images", type=int, help="default 16; hypercolumn 2")
    parser.add_argument("--size", type=int, default=640, help="side in pixels, default 640")
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default docs/results")
    args = parser.parse_args(argv)
    args.images = args.images or (2 if args.what == "hypercolumn" else 16)
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
