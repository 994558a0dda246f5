"""# What a run shows: progress, curves, previews

Text on the terminal during the run, and pictures for afterwards. Labels are blue and predictions
orange: two colours of Okabe and Ito's palette, which colour-blind people can tell apart, too.
"""

import argparse
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch.nn import functional as F

from ..data.files import atomic

BLUE, ORANGE, INK, FAINT, PAPER = (0, 114, 178), (230, 159, 0), (40, 40, 40), (220,) * 3, (255,) * 3
LEGEND = "orange: prediction    blue: label"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line. (argparse alone prints the usage first.)"""

    def error(self, message: str) -> NoReturn:
        """Prints one line on stderr, with what may have been meant, and exits with 2."""
        if message.startswith("unrecognized arguments: "):
            first, known = message.split()[2], [name for action in self._actions
                                                for name in action.option_strings]
            if first.startswith("--"):
                alike = get_close_matches(first.partition("=")[0], known, 1)
            else:  # train.py DIR
                alike = [f"--data {first}"] if "--data" in known else []
            message += f": did you mean {alike[0]}?" if alike else ""
        self.exit(2, f"{self.prog}: {message}\n")

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


class Progress:
    """One line that shows how much of the work is done and how long the rest will take. On a
    terminal the line is redrawn; in a log file a new line is written every half minute. If `total`
    is a float, it has no meaning to users, and the line shows per cent."""

    def __init__(self, total: float, label: str, done: int = 0):
        self.total, self.label = total, label
        self.done: float = done
        self.before = done
        self.start = self.shown = time.monotonic()
        self.live = sys.stderr.isatty()

    def step(self, count: float = 1, text: str = "") -> None:
        """Adds `count` to what is done of `total`. `text` is shown after the time left."""
        self.done += count
        if self.done > self.total - 1e-6:  # fractions of 1 may add up to a little less
            self.done = self.total
        now = time.monotonic()
        if now - self.shown < (0.2 if self.live else 30) and self.done < self.total:
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
                  side: int = 420, columns: int | None = None, size: int = 16,
                  legend: str = LEGEND) -> None:
    """Draws pictures into one PNG, each with its caption and at most `side` pixels wide and high.
    `size`: the font size in pixels."""
    columns = columns or min(len(pictures), 2 if len(pictures) < 6 else 4)
    gap, text = 12, size * 3 // 2
    scaled = [ImageOps.contain(picture, (side, side), Image.Resampling.LANCZOS)
              for picture, _ in pictures]
    step = max(picture.height for picture in scaled) + text + gap  # from one row to the next
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * step + gap + text), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap // 2), legend, INK, font(size))
    for i, (picture, (_, caption)) in enumerate(zip(scaled, pictures)):
        x, y = gap + i % columns * (side + gap), gap + text + i // columns * step
        sheet.paste(picture, (x, y + text))
        draw.text((x, y), caption, INK, font(size))
    with atomic(path) as temporary:
        sheet.save(temporary)


def draw_curves(path: str | Path, curves: dict[str, Sequence[float]], title: str,
                limits: tuple[float, float] | None = None) -> None:
    """Draws one or two curves over the epochs into a PNG. Each curve has its own axis, from 0 to
    its largest value; or both share an axis between `limits`, which are then written beside it.
    `curves` maps a name to its values, one per epoch."""
    left, right, high, low = 20.0, 610.0, 50.0, 360.0
    image = Image.new("RGB", (800, 400), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((left, 10), title, INK, font(16))
    draw.line([(left, low), (right, low)], FAINT, 2)
    epochs = max(len(values) for values in curves.values())
    for epoch in range(0, epochs, max(1, -(-epochs // 10))):
        x = left + (right - left) * (epoch + 1) / epochs
        draw.text((x, low + 6), str(epoch + 1), INK, font(14), anchor="ma")
    draw.text((right + 12, low + 6), "epoch", INK, font(14))
    for limit, y in zip(limits or (), (low, high)):
        draw.text((left, y), f"{limit:g}", INK, font(14), anchor="ld")
    for (name, values), colour, label in zip(curves.items(), (ORANGE, BLUE), (high, high + 30)):
        bottom, top = limits or (0.0, max([1e-9, *values]))
        points = [(left + (right - left) * (i + 1) / epochs,
                   low - (low - high) * (v - bottom) / (top - bottom))
                  for i, v in enumerate(values)]
        draw.line(points, colour, 3)
        for x, y in points:
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], colour)
        draw.text((right + 12, label), f"{name} {values[-1]:.3f}", colour, font(18), anchor="lm")
    with atomic(path) as temporary:
        image.save(temporary)
