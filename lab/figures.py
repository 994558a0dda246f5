"""The figures of the docstrings, drawn by the code that they explain.

    python -m lab.figures                     all of them, into docs/figures/
    python -m lab.figures windows lovasz      some

Those that show a network at work (`lab.maps`) train two small ones first, into
runs/figures-*."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import train
from minseg.crossval import group_folds
from minseg.data.files import atomic
from minseg.data.synthetic import synthetic_slide
from minseg.dice import dice_loss
from minseg.efficientnet import EfficientNet
from minseg.losses import first_stage
from minseg.lovasz import lovasz_hinge
from minseg.run.report import BLUE, FAINT, INK, ORANGE, PAPER, Parser
from minseg.sampling import epoch_indices
from minseg.tiling import blend_window, tile_starts
from minseg.tta import flips_and_turns

from .maps import NETWORK_FIGURES, picture, trained
from .plots import GREEN, GREY, PURPLE, RED, Plot
from .sheet import Sheet, heat

FOLDER = Path("docs/figures")


def draw_overlap(path: Path) -> None:
    """Two tiles that overlap, what each weighs, and who has the say at each place."""
    sheet = Sheet(1010, "A pixel that two tiles predict: the one it lies deeper in counts more")
    image, _ = synthetic_slide(3, 256, 448)
    tile, stride, zoom, x0, y0 = 256, 192, 3, 128, 110
    weight = blend_window(tile).numpy()
    shown = Image.fromarray(image[64:192]).resize((448 * zoom, 128 * zoom), Image.LANCZOS)
    sheet.image.paste(shown, (x0, y0))
    for k, (left, colour) in enumerate(((0, BLUE), (stride, RED))):
        box = [x0 + left * zoom, y0, x0 + (left + tile) * zoom - 1, y0 + 128 * zoom]
        sheet.draw.rectangle(box, outline=colour, width=8)
        x = box[0] if not k else box[2] - 170
        sheet.draw.rectangle([x, y0, x + 170, y0 + 64], colour)
        sheet.text(x + 85, y0 + 32, f"patch {k + 1}", PAPER, 36, "mm")
    at = 208
    x, y = x0 + at * zoom, y0 + 64 * zoom
    sheet.draw.ellipse([x - 14, y - 14, x + 14, y + 14], PAPER, INK, 5)
    top, bottom = y0 + 128 * zoom + 90, 900
    sheet.text(30, top - 44, "weight along the middle row", GREY)
    middle = weight[tile // 2]
    total = np.zeros(448)
    for left in (0, stride):
        total[left : left + tile] += middle
    for left, colour, name in ((0, BLUE, "patch 1"), (stride, RED, "patch 2")):
        points = [(x0 + (left + i + 0.5) * zoom, bottom - (bottom - top) * w)
                  for i, w in enumerate(middle)]
        sheet.line(points, colour)
        share = middle[at - left] / total[at]
        level = bottom - (bottom - top) * middle[at - left]
        sheet.draw.ellipse([x - 10, level - 10, x + 10, level + 10], colour)
        sheet.text(x - 26, level, f"{name}: {share:.0%} of the result here", colour, anchor="rm")
    sheet.draw.line([(x, y + 14), (x, bottom)], INK, 2)
    sheet.draw.line([(x0, bottom), (x0 + 448 * zoom, bottom)], FAINT, 3)
    sheet.text(x0, bottom + 40, "linear window: the distance to the nearest side", GREY)
    sheet.save(path)


def draw_windows(path: Path) -> None:
    """The four windows, and what tiles that overlap by half weigh together."""
    sheet = Sheet(1180, "Four windows, and what tiles half a tile apart weigh together")
    tile, width = 64, 340
    for k, (kind, colour) in enumerate(zip(("uniform", "linear", "hann", "gaussian"),
                                           (INK, BLUE, GREEN, RED))):
        x, window = 60 + k * (width + 40), blend_window(tile, kind)
        sheet.paste(heat(window), x, 140, width, kind)
        for top, values, words in ((520, window[tile // 2], "one tile, its middle row"),
                                   (800, None, "their sum, stride half a tile")):
            if values is None:
                values = torch.zeros(3 * tile)
                for start in tile_starts(3 * tile, tile, tile // 2):
                    values[start : start + tile] += window[tile // 2]
                values = values[tile // 2 : -tile // 2] / 2
            bottom = top + 200
            sheet.text(x, top - 10, words, GREY, 24)
            sheet.draw.line([(x, bottom), (x + width, bottom)], FAINT, 3)
            step = width / len(values)
            sheet.line([(x + (i + 0.5) * step, bottom - 160 * float(v))
                        for i, v in enumerate(values)], colour)
    sheet.text(60, 1080, "All but the Gaussian, which trusts the middle, add up to a constant;",
               GREY)
    sheet.text(60, 1120, "the division by the sum evens the Gaussian out.", GREY)
    sheet.save(path)


def draw_lovasz(path: Path) -> None:
    """Three losses of two pixels, the first positive, the second not."""
    sheet = Sheet(860, "Two pixels, one positive, one negative: the loss for all their logits")
    steps = torch.linspace(-3, 3, 61)
    first, second = torch.meshgrid(steps, steps.flip(0), indexing="xy")
    logits = torch.stack([first, second], -1).view(-1, 1, 1, 2)
    target = torch.tensor([1.0, 0.0]).expand(len(logits), 1, 1, 2)
    wrong = torch.stack([first < 0, second > 0], -1)
    jaccard = wrong.sum(-1) / (1 + wrong[..., 1].float())
    each = {"1 - Jaccard: no gradient": jaccard,
            "Lovász hinge: convex": torch.stack([
                lovasz_hinge(z[None], t[None]) for z, t in zip(logits, target)]).view(61, 61),
            "Dice loss: not convex": torch.stack([
                dice_loss(z[None], t[None], smooth=0.0) for z, t in zip(logits, target)]
            ).view(61, 61)}
    for k, (name, values) in enumerate(each.items()):
        x, high = 90 + k * 510, 4.0 if "Lov" in name else 1.0
        levels = (values / high * 12).floor() / 12  # steps, so that lines of equal loss show
        sheet.paste(heat(levels), x, 160, 440, name)
        for value in (-2, 0, 2):
            at = (value + 3) / 6 * 440
            sheet.text(x + at, 624, f"{value}", GREY, 26, "mm")
            if not k:
                sheet.text(x - 12, 600 - at, f"{value}", GREY, 26, "rm")
        sheet.text(x + 220, 664, "logit of the positive pixel", GREY, 26, "mm")
        for i in range(100):
            sheet.draw.line([(x + i * 4.4, 710), (x + i * 4.4, 734)],
                            heat(np.full((1, 1), i / 99)).getpixel((0, 0)), 5)
        sheet.text(x, 760, "0", GREY, 26)
        sheet.text(x + 440, 760, f"{high:g}", GREY, 26, "rm")
    sheet.text(90, 820, "upwards: the logit of the negative pixel", GREY, 26)
    sheet.save(path)


def draw_sampling(path: Path) -> None:
    """Which of 60 tiles each of six epochs sees: all, one negative a positive, balanced bins."""
    sheet = Sheet(1010, "What an epoch sees: a column is a tile, a row an epoch")
    rng = np.random.default_rng(0)
    area = np.sort(np.concatenate([np.zeros(42), rng.beta(1, 3, 18) * 0.5]))[::-1].copy()
    step, left = 23, 130
    for top, words, options in ((150, "all tiles", {"negatives": math.inf}),
                                (430, "negatives = 1: every positive, as many of the others", {}),
                                (710, "bins = 4, too: big and small areas alike",
                                 {"bins": 4})):
        sheet.text(30, top - 36, words)
        for epoch in range(6):
            drawn = epoch_indices(torch.tensor(area), **options,
                                  generator=torch.Generator().manual_seed(epoch)).bincount(
                                      minlength=60)
            for i, times in enumerate(drawn.tolist()):
                x, y = left + i * step, top + epoch * 32
                sheet.draw.rectangle([x, y, x + step - 5, y + 26],
                                     (BLUE if area[i] else ORANGE) if times else FAINT)
                if times > 1:
                    sheet.text(x + (step - 5) / 2, y + 13, str(times), PAPER, 20, "mm")
            sheet.text(left + 60 * step + 12, top + epoch * 32 + 13, f"{int(drawn.sum())}", GREY,
                       24)
        sheet.text(30, top + 90, "epochs", GREY, 24)
    sheet.text(left, 940, "blue: tiles with something, the largest area first", BLUE)
    sheet.text(left + 700, 940, "orange: without", (150, 100, 0))
    sheet.text(left, 980, "a number: drawn so often; at the right: tiles in the epoch", GREY)
    sheet.save(path)


def draw_folds(path: Path) -> None:
    """Images of patients, and the folds they go to."""
    sheet = Sheet(760, "Folds of whole groups: a patient's images stay together")
    rng = np.random.default_rng(4)
    groups = [name for name, count in zip("ABCDEFGHI", (3, 2, 2, 4, 1, 2, 1, 3, 2))
              for _ in range(count)]
    positives = rng.integers(20, 100, len(groups)).tolist()
    folds = group_folds(groups, positives, 3)
    colours = (BLUE, ORANGE, GREEN, RED, PURPLE, (86, 180, 233), (150, 140, 20), GREY, INK)
    scale = 1300 / sum(positives)
    for y, order, caption in ((150, range(len(groups)), "images; width: positive pixels"),):
        sheet.text(30, y - 34, caption, GREY)
        x = 150.0
        for i in order:
            box(sheet, x, y, positives[i] * scale, colours["ABCDEFGHI".index(groups[i])], groups[i])
            x += positives[i] * scale
    for fold in range(3):
        y, x = 330 + fold * 120, 150.0
        sheet.text(30, y + 40, f"fold {fold}")
        for i in sorted((i for i, f in enumerate(folds) if f == fold), key=lambda i: groups[i]):
            box(sheet, x, y, 2.6 * positives[i] * scale, colours["ABCDEFGHI".index(groups[i])],
                groups[i])
            x += 2.6 * positives[i] * scale
        total = sum(p for p, f in zip(positives, folds) if f == fold)
        sheet.text(x + 20, y + 40, f"{total} positives", GREY)
    sheet.text(30, 715, "Each fold is held out in turn; a patient's score comes from a network "
               "that saw none of that patient's images.", GREY)
    sheet.save(path)


def draw_efficientnet(path: Path) -> None:
    """One block of B0 in numbers, and what compound scaling makes of the network."""
    sheet = Sheet(900, "One MBConv block: wide inside, thin between blocks")
    block = EfficientNet("efficientnet-b0", num_classes=0).blocks[2]  # 24 channels, a shortcut
    thin, wide = block.branch[0].in_channels, block.branch[0].out_channels
    stops = (("x", thin, BLUE), ("expand 1x1", wide, ORANGE), ("depthwise 3x3", wide, ORANGE),
             ("squeeze: weigh channels", wide, ORANGE), ("project 1x1", thin, BLUE),
             ("+ x", thin, BLUE))
    for k, (name, channels, colour) in enumerate(stops):
        x, high = 60 + k * 256, channels * 2
        sheet.draw.rectangle([x, 300 - high // 2, x + 150, 300 + high // 2], colour)
        sheet.text(x + 75, 300, str(channels), PAPER, 30, "mm")
        sheet.text(x + 75, 476, name, GREY, 24, "mm")
        if k:
            sheet.arrow((x - 96, 300), (x - 12, 300), GREY)
    sheet.draw.line([(135, 300 - thin - 6), (135, 118), (1415, 118)], GREY, 4)
    sheet.arrow((1415, 116), (1415, 300 - thin - 6), GREY)
    sheet.text(775, 94, "the shortcut: x is added again", GREY, 24, "mm")
    sheet.text(30, 570, "Parameters of B0 to B7, in millions", size=36)
    for k in range(8):
        with torch.device("meta"):  # shapes only, no memory
            count = sum(p.numel() for p in EfficientNet(f"efficientnet-b{k}").parameters()) / 1e6
        x, high = 60 + k * 192, count * 2.6
        sheet.draw.rectangle([x, 840 - high, x + 130, 840], BLUE)
        sheet.text(x + 65, 820 - high, f"{count:.1f}", INK, 26, "mm")
        sheet.text(x + 65, 866, f"B{k}", GREY, 26, "mm")
    sheet.save(path)


def draw_dice(path: Path) -> None:
    """What an empty image costs, by how much is wrongly found in it, for three values of smooth."""
    plot = Plot(860, (140, 130, 1100, 740), (-3, 3), (0, 1.05))
    plot.text(30, 40, "What Dice makes of an image with nothing to find", size=36)
    plot.text(30, 92, "loss", GREY)
    plot.axes([], [0, 0.25, 0.5, 0.75, 1])
    for power in range(-3, 4):
        x, _ = plot.at(power, 0)
        plot.text(x, 770, f"{10.0**power:g}", GREY, 26, "mm")
    plot.text(620, 820, "S: probability found in it, all pixels together", GREY, 28, "mm")
    sums = 10 ** torch.linspace(-3, 3, 121)
    pixels = 64 * 64
    logits = torch.logit(sums / pixels).view(-1, 1, 1, 1).expand(-1, 1, 64, 64)
    for row, (smooth, colour, words) in enumerate((
            (1.0, BLUE, "smooth 1 (here)"), (1e-5, RED, "smooth 1e-5 (MONAI)"))):
        losses = [dice_loss(z[None], torch.zeros(1, 1, 64, 64), smooth=smooth).item()
                  for z in logits]
        plot.line([plot.at(math.log10(s), loss) for s, loss in zip(sums.tolist(), losses)], colour)
        plot.text(1130, 200 + 60 * row, words, colour)
    plot.line([plot.at(-3, 0), plot.at(3, 0)], INK)
    plot.text(1130, 320, "an empty batch in", INK)
    plot.text(1130, 356, "segmentation_models.pytorch", INK)
    plot.save(path)


def draw_losses(path: Path) -> None:
    """The learning rate of two stages, and which loss is trained with."""
    steps = 300
    first = first_stage(steps, 0.6)
    plot = Plot(640, (120, 150, 1560, 520), (0, steps), (0, 1.05))
    plot.text(30, 40, '--loss dice --then lovasz --switch 0.6', size=36)
    plot.text(30, 100, "learning rate, share of the highest", GREY)
    plot.axes(range(0, steps + 1, 60), [0, 0.5, 1])
    for begin, end, colour, words in ((0, first, BLUE, "Dice: find the objects"),
                                      (first, steps, RED, "Lovász: refine them")):
        rates = [train.learning_rate(step, steps, first) for step in range(begin, end)]
        plot.line([plot.at(begin + i, rate) for i, rate in enumerate(rates)], colour, 6)
        x, y = plot.at(begin + 0.5 * (end - begin), 0.86)
        plot.text(x, y, words, colour, 30)
    plot.text((plot.left + plot.right) / 2, 600, "step", GREY, 28, "mm")
    plot.save(path)


def draw_tta(path: Path) -> None:
    """The eight views of a tile, as the network gets them."""
    sheet = Sheet(780, "Eight views of one tile: four quarter turns, and each in the mirror")
    tile = picture()[0][20:148, 60:188].permute(2, 0, 1)[None]  # (1, 3, 128, 128)
    views: list[torch.Tensor] = []
    flips_and_turns(lambda tiles: views.append(tiles) or tiles[:, :1])(tile)
    for k, view in enumerate(views[0]):
        name = f"{k % 4 * 90} degrees" + ", flipped" * (k > 3)
        sheet.paste(Image.fromarray(view.permute(1, 2, 0).numpy()), 90 + k % 4 * 384,
                    150 + k // 4 * 330, 256, name)
    sheet.save(path)


def box(sheet: Sheet, x: float, y: float, width: float, colour, words: str) -> None:
    """A filled rectangle, 80 high, with words in it."""
    sheet.draw.rectangle([x, y, x + width - 4, y + 80], colour)
    sheet.text(x + width / 2 - 2, y + 40, words, PAPER, 30, "mm")


# What of each figure tells it from the others when it is small: left, top, right, bottom.
TELLING = {
    "unet": (160, 130, 1100, 757), "efficientnet": (40, 110, 700, 550),
    "compare-random-imagenet": (20, 10, 605, 400), "gates": (1200, 200, 1570, 447),
    "scse": (750, 130, 1395, 560), "cbam": (420, 640, 1160, 980),
    "hypercolumn": (300, 470, 1530, 1290), "dice": (130, 130, 1040, 737),
    "lovasz": (600, 160, 1040, 453), "losses": (120, 140, 700, 527),
    "deep_supervision": (110, 150, 970, 723), "sampling": (130, 430, 790, 870),
    "seam": (550, 150, 1030, 470), "tta": (90, 150, 730, 577), "folds": (150, 150, 1065, 760),
}


def draw_small(folder: Path) -> None:
    """Small copies, for a table, of the figures that lie in `folder`: into its folder small/."""
    (folder / "small").mkdir(exist_ok=True)
    for name, box in TELLING.items():
        if (folder / f"{name}.png").exists():
            with Image.open(folder / f"{name}.png") as whole, atomic(
                    folder / "small" / f"{name}.png") as temporary:
                whole.convert("RGB").resize((240, 160), Image.LANCZOS, box).save(temporary)


FIGURES: dict[str, Callable[[Path], None]] = {
    "efficientnet": draw_efficientnet, "dice": draw_dice, "lovasz": draw_lovasz,
    "losses": draw_losses, "sampling": draw_sampling, "overlap": draw_overlap,
    "windows": draw_windows, "tta": draw_tta, "folds": draw_folds,
}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m lab.figures", description=__doc__.split("\n")[0])
    names = [*FIGURES, *NETWORK_FIGURES]
    parser.add_argument("figures", nargs="*", metavar="NAME", choices=[[], *names],
                        help="which (default all): " + ", ".join(names))
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR",
                        help="folder of the networks that some show (default runs)")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR",
                        help="default docs/figures")
    args = parser.parse_args(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for name in args.figures or names:
            path = args.out / f"{name}.png"
            if name in FIGURES:
                FIGURES[name](path)
            else:
                draw, network = NETWORK_FIGURES[name]
                draw(path, trained(network, args.runs))
            print(path, flush=True)
        draw_small(args.out)
    except (ValueError, OSError) as error:
        print(f"figures: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
