"""# The same pixel in another tile

    python -m lab.shifts Lite0=runs/A/fold0/model.pt SCSE=runs/B/fold0/model.pt

**Idea.** Two tiles that overlap show the network the same pixels, and its answers differ. Overlap
and windows (`minseg.tiling`) average that away, but where does it come from?

- **Borders.** Beyond a tile's border a convolution sees zeros. What that changes spreads inwards
  with each layer, as far as the receptive field reaches.
- **Means.** Squeeze-and-excitation, SCSE and CBAM take means (CBAM also maxima) over the whole
  tile. Another tile has another mean, so every pixel's answer changes, however far inside it lies.
- **The grid.** A stride of 2 keeps every second pixel. After a shift that is no multiple of 32 the
  encoder's maps are sampled at other pixels.

Two tiles, the second one shifted down and to the right, see the same pixel x:

    mismatch(d) = mean |p_1(x) - p_2(x)| over pixels at the distance d
    d(x)        = distance to the nearest border of either tile

The second tile is predicted twice: as it is, and with its means replaced by the first tile's
(`Means`). What is left then comes from borders and grid alone.

Then whole images: predicted twice, with tiles that begin elsewhere, so `left` tells the mean
|p_1 - p_2| that each way to blend (an overlap and a window) leaves.

Writes docs/results/shifts.json and draws docs/figures/shifts.png.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minseg.files.datasets import find_slides
from minseg.predictor import predictor
from minseg.run.checkpoint import load_model
from minseg.run.prepare import draw_synthetic_slides
from minseg.run.report import Parser, Progress
from minseg.tiling import predict_image

from . import measure, style
from .plots import stored_chart
from .study import WAYS

TILES = 128, 1152  # the larger one has pixels that lie farther inside than the network sees
SHIFTS = 32, 16, 8, 4, 2, 1  # pixels, down and to the right; the larger tiles get the first two
BLENDS = {name: way for name, way in WAYS.items() if way.keys() == {"overlap", "window"}}
REACH = 520  # pixels: a plain U-Net on Lite0 sees no farther (tests/test_shifts.py), nor on B0
WIDTH = 8  # of a bin of distances, in pixels
BLENDED = 512  # pixels a side: the part of an image that is predicted as a whole


class Means(TorchFunctionMode):
    """Inside the block, records the means and maxima that a network takes over whole maps. With
    `given`, those of another block, it hands out these instead."""

    def __init__(self, given: "Means | None" = None):
        super().__init__()
        self.recorded: list[Tensor] = []
        self.given = None if given is None else iter(given.recorded)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (Tensor.mean, Tensor.amax) and args[1:] == ((2, 3),):
            if self.given is not None:
                return next(self.given)
            self.recorded.append(function(*args, **kwargs or {}))
            return self.recorded[-1]
        return function(*args, **kwargs or {})


def distance(tile: int, shift: int) -> Tensor:
    """For each pixel that both tiles show, (tile - shift, tile - shift), the distance of its centre
    to the nearest border of either tile.

    >>> distance(4, 1)[1]
    tensor([0.5000, 1.5000, 0.5000])
    """
    at = torch.arange(tile - shift) + 0.5  # from the second tile's corner
    nearest = torch.minimum(at, tile - shift - at)
    return torch.minimum(nearest[:, None], nearest)


@torch.inference_mode()
def mismatch(net: nn.Module, image: Tensor, tile: int, shift: int) -> Tensor:
    """Sums over pairs of tiles, in bins of the distance, (3, bins): |p_1 - p_2| as they are; the
    same with the first tile's means in both; and the number of pixels. `image`: (1, 3, H, W) in
    [0, 1]."""
    bins = (distance(tile, shift) / WIDTH).long().flatten()
    found = torch.zeros(3, int(bins.max()) + 1, dtype=torch.float64)
    height, width = image.shape[2:]

    def answers(y: int, x: int, cut: tuple[slice, slice]) -> Tensor:
        logits = net(image[..., y : y + tile, x : x + tile])
        return logits.sigmoid()[0, 0][cut].flatten().cpu().double()

    later, earlier = (slice(shift, None),) * 2, (slice(tile - shift),) * 2
    for y in range(0, height - tile - shift + 1, 2 * tile):
        for x in range(0, width - tile - shift + 1, 2 * tile):
            with Means() as means:
                first = answers(y, x, later)
            second = answers(y + shift, x + shift, earlier)
            with Means(means):
                alike = answers(y + shift, x + shift, earlier)
            for row, values in zip(found, ((first - second).abs(), (first - alike).abs(),
                                           torch.ones_like(first))):
                row.index_add_(0, bins, values)
    return found


@torch.inference_mode()
def left(net: nn.Module, images: Sequence, tile: int, shift: int, device: str) -> dict[str, float]:
    """The mean |p_1 - p_2| that each of `BLENDS` leaves in two parts of each image, equally large,
    of which the second begins `shift` pixels farther down and to the right."""
    predict, result = predictor([net], device=device), {}
    for name, way in BLENDS.items():
        options = {"tile": tile, "stride": round(tile * (1 - way["overlap"])),
                   "window": way["window"], "device": device}
        total, pixels = 0.0, 0
        for image in images:
            # The same size: otherwise both would end with the same tile (`tile_starts`).
            first, second = (predict_image(predict, part, **options)[0] for part in
                             (image[:-shift, :-shift], image[shift:, shift:]))
            # Their own borders lie elsewhere, so what is near them is left out.
            inside = (slice(tile // 2, -tile // 2),) * 2
            first, second = (p[inside].double() for p in (first[shift:, shift:],
                                                          second[:-shift, :-shift]))
            total += (first - second).abs().sum().item()
            pixels += first.numel()
        result[name] = total / pixels
    return result


def measure_model(path: Path, name: str, images: Sequence, device: str, bar: Progress) -> dict:
    """All that is measured of one network."""
    net, _ = load_model(path, device)
    row: dict = {"name": name, "mismatch": {}}
    for tile in TILES:
        for shift in SHIFTS if tile == TILES[0] else SHIFTS[:2]:
            found = sum(mismatch(net, torch.tensor(image).permute(2, 0, 1)[None].to(device) / 255,
                                 tile, shift) for image in images)
            row["mismatch"][f"tile {tile}, shift {shift}"] = {
                "as they are": (found[0] / found[2]).tolist(),
                "same means": (found[1] / found[2]).tolist(), "pixels": found[2].tolist()}
    parts = [image[: BLENDED + SHIFTS[0], : BLENDED + SHIFTS[0]] for image in images]
    row["left"] = left(net, parts, TILES[0], SHIFTS[0], device)
    bar.step()
    return row


def middles(data: Path, scale: int, microns: float | None, side: int) -> list:
    """The middle of each image, `side` scaled pixels a side."""
    slides = [item.open(scale, microns) for item in find_slides(data)]
    for slide in slides:
        if min(slide.height, slide.width) < side:
            raise ValueError(f"{data}: an image has {slide.height} x {slide.width} scaled pixels: "
                             f"it needs {side} a side")
    return [slide.read((slide.height - side) // 2, (slide.width - side) // 2, side, side)
            for slide in slides]


def main(argv: list[str] | None = None) -> None:
    """Measures each network, writes what came out and draws it."""
    parser = Parser(prog="python -m lab.shifts", description=__doc__.split("\n")[0].strip("# "))
    add = parser.add_argument
    add("models", nargs="+", metavar="NAME=MODEL", help="a name, and a run's model.pt")
    add("--data", type=Path, metavar="DIR", help="images, as for train.py (default: two synthetic "
        "slides, drawn for it)")
    add("--device", help="cpu or cuda (default: cuda if there is one)")
    add("--docs", type=Path, default=Path("docs"), metavar="DIR",
        help="for results/ and figures/ (default docs)")
    args = parser.parse_args(argv)
    device = parser.device(args.device)
    try:
        style.need_matplotlib()
        named = [(name, Path(model or name)) for name, _, model in
                 (text.partition("=") for text in args.models)]
        (scale, microns), *others = {
            (of["scale"], of["microns"] if of["resample"] else None)
            for of in (load_model(model)[1] for _, model in named)}
        if others:
            raise ValueError("the models were trained at different sizes of pixels: give models of "
                             "one --scale or --microns")
        least = max(TILES[1], 2 * TILES[0]) + SHIFTS[0]
        side = 4 * scale * least // 3  # a third more, since glass surrounds the tissue
        images = middles(args.data or draw_synthetic_slides(
            Path("runs") / f"shifts-slides-{side}", count=2, height=side, width=side),
            scale, microns, least)
    except (ValueError, OSError) as error:
        parser.error(error)
    bar = Progress(len(named), "networks")
    rows = [measure_model(path, name, images, device, bar) for name, path in named]
    facts = {"images": len(images), "tiles": TILES, "bin": WIDTH, "reach": REACH}
    path = measure.write_json(args.docs / "results/shifts.json",
                              {**measure.environment(device), **facts, "rows": rows})
    print(path, style.save(stored_chart("shifts", path.parent), args.docs / "figures/shifts.png"),
          sep="\n")


if __name__ == "__main__":
    main()
