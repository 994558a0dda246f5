"""# What a run shows: progress, curves, previews

Text on the terminal during the run, and pictures for afterwards. Labels are blue and predictions
orange: two colours of Okabe and Ito's palette, which colour-blind people can tell apart, too.
"""

import argparse
import math
import platform
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import date
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch.nn import functional as F

from ..files.atomic import atomic
from ..processes import rank
from .errors import print_any_name

BLUE, ORANGE, INK, FAINT, PAPER = (0, 114, 178), (230, 159, 0), (40, 40, 40), (220,) * 3, (255,) * 3
LEGEND = "orange: prediction    blue: label"
PANEL = 130, 1010, 330  # of curves.png, which is 1,200 pixels wide: left, right, height


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line. (argparse alone prints the usage first.) Its
    program can print any name."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        print_any_name()

    def error(self, message: object) -> NoReturn:
        """Prints one line on stderr, with what may have been meant, and exits with 2."""
        message = str(message)
        if message.startswith("unrecognized arguments: "):
            first, known = message.split()[2], [name for action in self._actions
                                                for name in action.option_strings]
            if first.startswith("--"):
                alike = get_close_matches(first.partition("=")[0], known, 1)
            else:  # train.py DIR
                alike = [f"--data {first}"] if "--data" in known else []
            message += f": did you mean {alike[0]}?" if alike else ""
        self.exit(2, "" if rank() else f"{self.prog}: {message}\n")

    def device(self, name: str | None) -> str:
        """`name`, if there is such a device. For None: cuda if there is one, otherwise cpu."""
        name = name or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.zeros(1, device=name).item()
            if torch.device(name).type == "cuda" and torch.device(name).index is not None:
                torch.cuda.set_device(name)  # some calls use the current device
        except (RuntimeError, AssertionError, ImportError):
            self.error(f"--device {name}: there is no such device: use --device cpu")
        return name


def environment(device: str) -> dict:
    """What a run's numbers depend on besides its options: the device's name, threads, versions, the
    commit ("" where this is no checkout), and the date."""
    name, commit, root = platform.processor(), "", Path(__file__).parents[2]
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name()
    elif (cpuinfo := Path("/proc/cpuinfo")).exists():
        model = re.search(r"model name\s*: (.*)", cpuinfo.read_text())
        name = model[1].strip() if model else name
    if (root / ".git").exists():  # else git would find the repository around an installed copy
        with suppress(FileNotFoundError):  # no git
            commit = subprocess.run(
                ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12",
                 "--exclude=*"], capture_output=True, text=True).stdout.strip()
    versions = {name: metadata.version(name) for name in ("numpy", "pillow", "tifffile")}
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
            **versions, "python": platform.python_version(), "commit": commit,
            "date": str(date.today())}


def duration(seconds: float) -> str:
    """Seconds in the form people read: 48 s, 3:05 min, 2:10 h.

    >>> duration(48.2), duration(185), duration(7800)
    ('48 s', '3:05 min', '2:10 h')
    """
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    unit, step = ("min", 60) if seconds < 3600 else ("h", 3600)
    whole, rest = divmod(seconds, step)
    return f"{whole}:{rest * 60 // step:02d} {unit}"


def some(names: Iterable[str], most: int = 8) -> str:
    """The first `most` of the names, with "..." for the rest."""
    names = list(names)
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])


class Progress:
    """One line that shows how much of the work is done and how long the rest will take. On a
    terminal the line is redrawn; in a log file a new line is written every half minute. If `total`
    is a float, it has no meaning to users, and the line shows per cent."""

    def __init__(self, total: float, label: str, done: int = 0):
        self.total, self.label = total, label
        self.done: float = done
        self.before = done
        self.start = self.shown = time.monotonic()
        self.live, self.hidden = sys.stderr.isatty(), rank() > 0

    def step(self, count: float = 1, text: str = "") -> None:
        """Adds `count` to what is done of `total`. `text` is shown after the time left."""
        self.done += count
        if self.done > self.total - 1e-6:  # fractions of 1 may add up to a little less
            self.done = self.total
        now = time.monotonic()
        too_early = now - self.shown < (0.2 if self.live else 30) and self.done < self.total
        if self.hidden or too_early:
            return
        if not self.live and now - self.start < 30:
            return  # short work needs no line in a log
        self.shown = now
        pace = (now - self.start) / (self.done - self.before or 1)
        left = pace * (self.total - self.done)
        share = (f"{self.done / (self.total or 1):.0%}" if isinstance(self.total, float)
                 else f"{int(self.done + 1e-6)}/{self.total}")
        line = f"{self.label}  {share}  {duration(left)} left  {text}"
        if self.live:
            end = "\r\x1b[K" if self.done == self.total else ""
            print(f"\r{line}\x1b[K{end}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Prints a permanent line above the line that is redrawn."""
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        with suppress(OSError):  # the pipe is closed, or the disk with the log is full
            print(text, flush=True)


def outline(mask: np.ndarray, width: int = 2) -> np.ndarray:
    """The border of a mask (H, W), bool: its pixels at most `width` pixels away from outside."""
    outside = torch.from_numpy(~np.asarray(mask, bool)).float()[None]
    near = outside
    for side in ((2 * width + 1, 1), (1, 2 * width + 1)):  # the image's edge is not a border
        near = F.max_pool2d(near, side, 1, [n // 2 for n in side])
    return (near > outside)[0].numpy()


def draw_outlines(image: np.ndarray, prediction: np.ndarray, target: np.ndarray | None = None,
                  width: int | None = None) -> Image.Image:
    """The image (H, W, 3) with the outline of the target in blue, and over it the outline of the
    prediction in orange. Pixels where the target is 255 (void, not labelled) are hatched."""
    picture = image.copy()
    width = width or max(1, round(min(image.shape[:2]) / 400))
    if target is not None:
        y, x = np.arange(target.shape[0])[:, None], np.arange(target.shape[1])
        picture[(target == 255) & ((x + y) % (8 * width) < width)] = INK
        picture[outline(target == 1, 2 * width)] = BLUE
    picture[outline(prediction, width)] = ORANGE
    return Image.fromarray(picture)


font = ImageFont.load_default  # Pillow's built-in font


def contact_sheet(path: str | Path, pictures: Sequence[tuple[Image.Image, str]],
                  side: int = 420, columns: int = 2, size: int = 22,
                  legend: str = LEGEND) -> None:
    """Draws pictures into one PNG, each with its caption and at most `side` pixels wide and high.
    Of a caption that is wider, the end is shown. `size`: the font size in pixels."""
    columns, gap, text = min(columns, len(pictures)), 12, size * 3 // 2
    scaled = [ImageOps.contain(picture, (side, side), Image.Resampling.LANCZOS)
              for picture, _ in pictures]
    step = max(picture.height for picture in scaled) + text + gap  # from one row to the next
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * step + gap + text), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap // 2), legend, INK, font(size))
    for i, (picture, (_, caption)) in enumerate(zip(scaled, pictures)):
        caption = " ".join(caption.split())  # a line break in a file's name would need two lines
        x, y = gap + i % columns * (side + gap), gap + text + i // columns * step
        sheet.paste(picture, (x, y + text))
        while draw.textlength(caption, font(size)) > side and len(caption) > 4:
            caption = f"...{caption[4:]}"
        draw.text((x, y), caption, INK, font(size))
    with atomic(path) as temporary:
        sheet.save(temporary)


def round_step(span: float, most: int) -> float:
    """The smallest 1, 2 or 5 times a power of ten of which at most `most` cover `span`.

    >>> round_step(1, 5), round_step(2.3, 4), round_step(200, 8)
    (0.2, 1.0, 50.0)
    """
    least = span / most * (1 - 1e-9)
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def draw_panel(draw: ImageDraw.ImageDraw, top: float, name: str, values: Sequence[float],
               limits: tuple[float, float], colour: tuple) -> None:
    """A curve over the epochs, below its name, over the lines of round numbers that include
    `limits` and all values. Its last value stands at its end."""
    left, right, height = PANEL
    bottom, most = min(*limits, *values), max(*limits, *values)
    step = round_step((most - bottom) or 1, 5)
    first = math.floor(bottom / step + 1e-9)
    ticks = range(first, max(first + 1, math.ceil(most / step - 1e-9)) + 1)

    def at(epoch: float, value: float) -> tuple[float, float]:
        share = (value / step - ticks[0]) / (ticks[-1] - ticks[0])
        return left + (right - left) * epoch / len(values), top + height * (1 - share)

    draw.text((left, top - 20), name, INK, font(36), anchor="ls")
    for tick in ticks:
        x, y = at(0, tick * step)
        draw.line([(x, y), at(len(values), tick * step)], FAINT, 3)
        draw.text((x - 16, y), f"{tick * step:.6g}", INK, font(34), anchor="rm")
    points = [at(epoch, value) for epoch, value in enumerate(values, 1)]
    draw.line(points, colour, 7, joint="curve")
    for x, y in points if len(points) <= 30 else points[-1:]:  # more would merge
        draw.ellipse([x - 9, y - 9, x + 9, y + 9], colour)
    draw.text((right + 24, points[-1][1]), f"{values[-1]:.3f}", INK, font(36), anchor="lm")


def draw_curves(path: str | Path, rows: Sequence[dict], title: str, losses: str = "") -> None:
    """Draws held-out Dice, between 0 and 1, and below it the loss, over the epochs into a PNG that
    stays legible 400 pixels wide. `rows`: those of log.csv. Where the second stage begins there is
    a dashed line, and above it stand the `losses` of both."""
    (left, right, height), words = PANEL, font(36)
    lines = next(lines for columns in range(len(title), 0, -1)
                 if max(map(words.getlength, lines := textwrap.wrap(title, columns))) <= 1160)
    first = sum(row["stage"] == 1 for row in rows) % len(rows)  # epochs before the line, if any
    above = 20 + 46 * len(lines) + (130 if first else 70)
    below = above + height + 90  # where the lower panel begins
    image = Image.new("RGB", (1200, below + height + 70), PAPER)
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        draw.text((20, 14 + 46 * i), line, INK, words)
    if first:
        x, half = left + (right - left) * (first + 0.5) / len(rows), words.getlength(losses) / 2
        draw.text((min(max(x, 20 + half), 1180 - half), above - 90), losses, INK, words, "ms")
        for y in (*range(above, above + height, 28), *range(below, below + height, 28)):
            draw.line([(x, y), (x, y + 14)], INK, 4)
    draw_panel(draw, above, "held-out Dice", [row["held_out_dice"] for row in rows], (0, 1), BLUE)
    draw_panel(draw, below, "loss", [row["loss"] for row in rows], (0, 0), ORANGE)
    for epoch in range(0, len(rows) + 1, max(1, round(round_step(len(rows), 8)))):
        draw.text((left + (right - left) * epoch / len(rows), below + height + 16), str(epoch), INK,
                  font(34), anchor="ma")
    draw.text((1180, below + height + 16), "epoch", INK, font(34), anchor="ra")
    with atomic(path) as temporary:
        image.save(temporary)
