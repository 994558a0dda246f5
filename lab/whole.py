"""Whole slides, from file to file. Writes docs/results/whole.json.

    python -m lab.whole --before DIR --model model.pt

How long it takes to cut a slide of 8192 x 8192, to score it after an epoch, and to score a fold,
with a network that costs nothing. --before: also with the minseg in another checkout, in turn.

Then slides from file to mask beside what people write: tifffile, MONAI's sliding window over
segmentation_models.pytorch's U-Net, tifffile. --model: the network whose weights both get; larger
slides have one that costs nothing.

Times are seconds of processor time, of all threads together: other programs on the machine hardly
change them.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lab.bench import UNUSED
from lab.measure import RESULTS, peak, record, segment_slide
from minseg.files import kept
from minseg.files.masks import Item
from minseg.files.objects import Outlines
from minseg.files.polygons import feature, write_features
from minseg.files.rle import rle_encode
from minseg.files.slides import shrink
from minseg.predictor import predictor, skip_flat
from minseg.run.checkpoint import load_model
from minseg.run.memory import keep_memory
from minseg.run.report import Parser
from minseg.run.scores import finish_fold, predict, summarize
from minseg.run.tiles import BLANK_CONTRAST, cut
from minseg.synthetic import synthetic_slide

MASKS = {"run-length code": "mask.txt", "polygons": "mask.geojson", "TIFF": "mask.tiff"}
SIDE = 8192  # pixels of the slide that is cut and scored
BLOCK, FIELD = 256, 1024  # pixels of a TIFF's tile, and of the synthetic slide that is repeated
TILE, OVERLAP, BATCH = 512, 0.25, 8  # of the prediction beside the peers
LIMIT = 16  # GiB of memory for the peers and for minseg


class Blurred(nn.Module):
    """A network that costs nothing: it takes for an object what is dark in its neighbourhood."""

    def forward(self, x: Tensor) -> Tensor:
        dark = F.avg_pool2d(0.45 - x[:, 1:2], 16)
        return 40 * F.interpolate(dark, x.shape[2:], mode="bilinear")


# The slides


def write_tiles(path: Path, side: int, tissue: np.ndarray, glass: np.ndarray) -> None:
    """An image of `side` x `side` pixels in Deflate tiles: in the middle, on 40 % of it, the image
    `tissue`, repeated, and `glass` around it. Memory does not grow with its size."""
    n = FIELD // BLOCK
    kinds = [[zlib.compress(field[y : y + BLOCK, x : x + BLOCK].tobytes())
              for y in range(0, FIELD, BLOCK) for x in range(0, FIELD, BLOCK)]
             for field in (glass, tissue)]
    count = -(-side // BLOCK)
    inside = abs((np.arange(count) + 0.5) / count - 0.5) < 0.4**0.5 / 2
    blocks = (kinds[int(inside[y] and inside[x])][y % n * n + x % n]
              for y in range(count) for x in range(count))
    tifffile.imwrite(path, blocks, shape=(side, side, *tissue.shape[2:]), dtype=np.uint8,
                     tile=(BLOCK, BLOCK), compression="zlib", metadata=None, bigtiff=True,
                     photometric="rgb" if tissue.ndim == 3 else "minisblack")


def write_slide(folder: Path, side: int, scale: int = 1) -> Path:
    """A slide, tissue on 40 % of it, and its mask; drawn `scale` times as large and reduced."""
    image, mask = synthetic_slide(0, FIELD * scale, FIELD * scale)
    glass = np.random.default_rng(0).integers(236, 244, (FIELD, FIELD, 3), np.uint8)
    write_tiles(folder / "slide.tiff", side, shrink(image, scale), glass)
    mask = (shrink(mask * np.uint8(255), scale) >= 128) * np.uint8(255)
    write_tiles(folder / "mask.tiff", side, mask, np.zeros_like(mask))
    return folder / "slide.tiff"


def write_masks(folder: Path) -> None:
    """The mask of a slide in the other forms."""
    mask = tifffile.imread(folder / "mask.tiff") > 0
    (folder / "mask.txt").write_text(rle_encode(mask))
    outlines = Outlines(*mask.shape)
    with write_features(folder / "mask.geojson", "") as write:
        for each in [*outlines.add(mask, mask), *outlines.finish()]:
            write(feature(each, "glomerulus"))


# Cutting and scoring


def cut_and_score(folder: Path, mask: str, scale: int) -> dict[str, float]:
    """The processor seconds of some steps. Each needs what those before it have written:

    - cut: the slide into tiles
    - first epoch, epoch: the score after an epoch, without overlap, and after the next one
    - fold: the score of a fold whose probabilities are there, and the preview
    - summary: the score of all folds, in the process that scored the fold
    - summary later: the same, as if in another process
    """
    keep_memory()  # as train.py
    args = argparse.Namespace(scale=scale, tile=256, batch=BATCH, device="cpu", amp=False,
                              white=None, microns=None)
    path, out = folder / MASKS[mask], folder / "run"
    item = Item("slide", folder / "slide.tiff", path, "a",
                runs=path.read_text() if mask == "run-length code" else None)
    shutil.rmtree(out, ignore_errors=True)
    (out / "fold0" / "probabilities").mkdir(parents=True)
    predict(Blurred(), [item], args, folder=out / "fold0" / "probabilities")
    (out / "fold0" / "model.pt").touch()
    steps: dict[str, Callable[[], object]] = {
        "cut": partial(cut, item, out, scale=scale, tile=256, stride=128, margin=64),
        "first epoch": partial(predict, Blurred(), [item], args, overlap=0),
        "epoch": partial(predict, Blurred(), [item], args, overlap=0),
        "fold": partial(finish_fold, out / "fold0", [item]),
        "summary": partial(summarize, out, [item], [0]),
        "summary later": partial(summarize, out, [item], [0])}
    taken = {}
    for name, step in steps.items():
        if name == "summary later":
            kept._kept = None  # what the process keeps for itself
        taken[name] = seconds(step)
    return taken


def seconds(job: Callable[[], object]) -> float:
    """The processor time that a function takes, in all threads together."""
    start = time.process_time()
    job()
    return time.process_time() - start


# From file to file


def with_minseg(path: Path, out: Path, model: Path | None) -> None:
    """As `infer.py` does it, with --skip-flat."""
    net = load_model(model)[0] if model else Blurred()
    segment_slide(path, out, skip_flat(predictor([net], device="cpu"), BLANK_CONTRAST), 1, TILE,
                  0.5, "--overlap", str(OVERLAP), "--window", "gaussian", "--batch", str(BATCH),
                  "--skip-flat")


@torch.inference_mode()
def with_monai(path: Path, out: Path, model: Path | None) -> None:
    """The whole slide in memory, MONAI's sliding window over the same weights in
    segmentation_models.pytorch's U-Net, the whole mask in memory."""
    from monai.inferers import sliding_window_inference

    net: nn.Module = Blurred()
    mean, std = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    if model:
        import segmentation_models_pytorch as smp

        ours, net = load_model(model)[0], smp.Unet("efficientnet-b0", encoder_weights=None).eval()
        names = [name for name in net.state_dict() if not name.startswith(UNUSED)]
        net.load_state_dict(dict(zip(names, ours.state_dict().values(), strict=True)), strict=False)
        mean, std = ours.mean, ours.std
    image = torch.from_numpy(tifffile.imread(path)).permute(2, 0, 1)[None].float() / 255
    logits = sliding_window_inference((image - mean) / std, TILE, BATCH, net, overlap=OVERLAP,
                                      mode="gaussian")
    mask = (logits[0, 0].sigmoid() >= 0.5).numpy().astype(np.uint8) * 255
    tifffile.imwrite(out / "mask.tiff", mask, tile=(BLOCK, BLOCK), compression="zlib")


MODULES = "monai.inferers", "segmentation_models_pytorch"
WAYS = {"minseg": with_minseg, "tifffile + MONAI + smp": with_monai}


def file_to_file(way: str, folder: Path, model: Path | None) -> dict[str, float]:
    """Processor seconds and peak memory of a way, with at most `LIMIT` GiB."""
    if way == "minseg":
        keep_memory()  # as infer.py
    else:
        for module in MODULES:  # loading them is not timed
            import_module(module)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT * 2**30,) * 2)
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    taken = seconds(partial(WAYS[way], folder / "slide.tiff", out, model))
    return {"seconds": round(taken, 1), "peak_gib": round(peak(), 2)}


# Each in a process of its own


def apart(function: str, *arguments: object, checkout: Path | None = None) -> Any:
    """What one of the functions above returns in a process of its own, with the minseg of another
    checkout if it is given. None if it ran out of memory."""
    path = (checkout or Path(__file__).parents[1]).resolve()
    process = subprocess.run(
        [sys.executable, __file__, function, *map(str, arguments)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(path)})
    if process.returncode:
        if re.search("MemoryError|allocate memory", process.stderr):
            return None
        raise RuntimeError(process.stderr)
    return json.loads(process.stdout.splitlines()[-1])


def child(function: str, *arguments: str) -> None:
    """In a process of `apart`: calls the function and prints what it returns as JSON."""
    with redirect_stdout(sys.stderr):
        if function == "cut_and_score":
            folder, mask, scale = arguments
            result = cut_and_score(Path(folder), mask, int(scale))
        else:
            way, folder, *model = arguments
            result = file_to_file(way, Path(folder), Path(*model) if model else None)
    print(json.dumps(result))


def cutting_and_scoring(folder: Path, before: Path | None, scales: list[int],
                        rounds: int) -> Iterator[dict]:
    """A row for each kind of mask and scale: medians, and of the ratios of each round, too."""
    write_slide(folder, SIDE)
    write_masks(folder)
    checkouts = {"now": None, "before": before} if before else {"now": None}
    for mask in MASKS:
        for scale in scales:
            taken: dict[str, list[dict]] = {name: [] for name in checkouts}
            for _ in range(rounds):
                for name, path in checkouts.items():
                    taken[name].append(apart("cut_and_score", folder, mask, scale, checkout=path))
            row: dict[str, Any] = {"mask": mask, "scale": scale, "side": SIDE}
            for step in taken["now"][0]:
                times = {name: [each[step] for each in found] for name, found in taken.items()}
                row[step] = {name: round(statistics.median(each), 3)
                             for name, each in times.items()}
                if before:
                    ratios = (old / new for old, new in zip(times["before"], times["now"]))
                    row[step]["times_as_fast"] = round(statistics.median(ratios), 2)
            yield row


def files_to_files(folder: Path, side: int, model: Path | None) -> Iterator[dict]:
    """A row for each way to segment a slide."""
    write_slide(folder, side, 4)  # the scale of the networks that train.py trains by default
    for way in WAYS:
        found = apart("file_to_file", way, folder, *([model] if model else []))
        yield {"way": way, "side": side, "network": "U-Net, EfficientNet-B0" if model else "none",
               "tile": TILE, "overlap": OVERLAP, "limit_gib": LIMIT,
               **(found or {"out_of_memory": True})}


def main(argv: list[str] | None = None) -> None:
    """Measures all, and writes it."""
    parser = Parser(prog="python -m lab.whole", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--before", type=Path, metavar="DIR", help="another checkout of minseg, to compare with")
    add("--model", type=Path, metavar="FILE", help="model.pt of a run of `python train.py`")
    add("--scales", type=int, nargs="+", default=[4], metavar="N",
        help="of the slide that is cut and scored (default 4)")
    add("--rounds", type=int, default=5, help="of cutting and scoring (default 5)")
    add("--sides", type=int, nargs="+", default=[16384, 30000], metavar="N",
        help="of the slides with a network that costs nothing (default 16384 30000)")
    add("--out", type=Path, default=RESULTS, help="default docs/results")
    args = parser.parse_args(argv)

    def rows() -> Iterator[dict]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            yield from cutting_and_scoring(folder, args.before, args.scales, args.rounds)
            for side in args.sides:
                yield from files_to_files(folder, side, None)
            if args.model:
                yield from files_to_files(folder, 6144, args.model.resolve())

    record(args.out / "whole.json", "cpu", rows())


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in ("cut_and_score", "file_to_file"):
        child(*sys.argv[1:])
    else:
        main()
