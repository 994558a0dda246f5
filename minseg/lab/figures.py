"""The figures of the docstrings, drawn by the code that they explain.

    python -m minseg.lab.figures                     all of them, into docs/figures/
    python -m minseg.lab.figures windows lovasz      some

Drawn with Pillow for a width of 800 pixels, twice as large. Colour maps run from dark blue over
grey to yellow, which the colour-blind can tell apart, and which stay in order in print.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..crossval import group_folds
from ..data.files import atomic
from ..data.synthetic import synthetic_slide
from ..dice import dice_loss
from ..lovasz import lovasz_hinge
from ..run.report import BLUE, FAINT, INK, ORANGE, PAPER, Parser, font
from ..sampling import epoch_indices
from ..tiling import blend_window, tile_starts
from .plots import GREEN, GREY, PURPLE, RED, Plot, plain

FOLDER = Path("docs/figures")
MAP = np.array([(0, 34, 78), (47, 67, 110), (87, 93, 109), (124, 123, 120), (164, 154, 115),
                (208, 187, 94), (254, 232, 56)], float)  # dark blue, grey, yellow


def heat(values: Tensor | np.ndarray, low: float = 0.0, high: float = 1.0) -> Image.Image:
    """Numbers (H, W) as colours, dark for `low`, bright for `high`."""
    at = np.clip((np.asarray(values, float) - low) / (high - low), 0, 1) * (len(MAP) - 1)
    left = np.minimum(at.astype(int), len(MAP) - 2)
    share = (at - left)[..., None]
    return Image.fromarray(np.uint8((1 - share) * MAP[left] + share * MAP[left + 1] + 0.5))


class Sheet:
    """Paper 1600 wide, with a title, for pictures and words."""

    def __init__(self, height: int, title: str):
        self.image = Image.new("RGB", (1600, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.text(30, 40, title, size=36)

    def text(self, x: float, y: float, words: str, colour=INK, size: int = 28,
             anchor: str = "lm") -> None:
        """Words at a pixel."""
        self.draw.text((x, y), plain(words), colour, font(size), anchor=anchor)

    def paste(self, picture: Image.Image, x: int, y: int, width: int, caption: str = "",
              smooth: bool = False) -> int:
        """A picture, `width` wide, with words above it. Returns its height."""
        height = round(width * picture.height / picture.width)
        kind = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        self.image.paste(picture.convert("RGB").resize((width, height), kind), (x, y))
        self.text(x, y - 24, caption)
        return height

    def line(self, points: Sequence, colour, width: int = 5) -> None:
        """A line through pixels."""
        self.draw.line(list(points), colour, width, "curve")

    def save(self, path: Path) -> None:
        """Writes the PNG."""
        with atomic(path) as temporary:
            self.image.save(temporary, optimize=True)


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
    sheet.text(60, 1080, "hann and linear add up to a constant: no pixel is favoured. The Gaussian "
               "trusts the middle only;", GREY)
    sheet.text(60, 1120, "the division by the sum mends what is uneven.", GREY)
    sheet.save(path)


def draw_lovasz(path: Path) -> None:
    """Three losses of two pixels, the first positive, the second not."""
    sheet = Sheet(860, "Two pixels, the left one positive: the loss for all their logits")
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
                                (430, "--negatives 1: every positive, as many of the others", {}),
                                (710, "--negatives balanced: big and small areas alike",
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
    for y, order, caption in ((150, range(len(groups)), "images, as wide as they hold positives"),):
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
               "that saw none of it.", GREY)
    sheet.save(path)


def box(sheet: Sheet, x: float, y: float, width: float, colour, words: str) -> None:
    """A filled rectangle, 80 high, with words in it."""
    sheet.draw.rectangle([x, y, x + width - 4, y + 80], colour)
    sheet.text(x + width / 2 - 2, y + 40, words, PAPER, 30, "mm")


FIGURES: dict[str, Callable[[Path], None]] = {
    "overlap": draw_overlap, "windows": draw_windows, "lovasz": draw_lovasz,
    "sampling": draw_sampling, "folds": draw_folds,
}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m minseg.lab.figures", description=__doc__.split("\n")[0])
    parser.add_argument("figures", nargs="*", metavar="NAME", choices=[[], *FIGURES],
                        help="which (default all): " + ", ".join(FIGURES))
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR",
                        help="default docs/figures")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.figures or FIGURES:
        FIGURES[name](args.out / f"{name}.png")
        print(args.out / f"{name}.png", flush=True)


if __name__ == "__main__":
    main()
