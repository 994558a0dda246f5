"""Plots of results. Colours are Okabe and Ito's, and nothing is told by colour alone."""

from collections.abc import Sequence
from pathlib import Path

from minseg.run.report import BLUE, FAINT, INK, ORANGE, PAPER, font

from .sheet import Sheet

GREEN, RED, PURPLE = (0, 158, 115), (213, 94, 0), (170, 90, 140)
GREY = (120, 120, 120)
LINES = (INK, RED, BLUE, GREEN, PURPLE, ORANGE)


def nice(span: float, most: int) -> float:
    """A round step, 1, 2 or 5 times a power of ten, of which at most `most` fit into `span`.

    >>> nice(0.083, 8), nice(64, 8)
    (0.02, 10)
    """
    steps = (base * 10.0**power for power in range(-6, 7) for base in (1, 2, 5))
    step = next(step for step in steps if span / step <= most)
    return int(step) if step >= 1 else step


def signed(value: float) -> str:
    """Three places with a sign; there is no minus zero.

    >>> signed(-0.0004), signed(-0.0123)
    ('+0.000', '-0.012')
    """
    return f"{round(value, 3) + 0:+.3f}"


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high, `most` or fewer."""
    step = nice(high - low, most - 1)
    return [i * step for i in range(-int(-low / step // 1) if low > 0 else int(low / step),
                                    int(high / step + 1e-9) + 1) if low <= i * step]


class Plot(Sheet):
    """A sheet with a plane on it: `left`, `top`, `right`, `bottom` are the plane's
    pixels, `x` and `y` its limits."""

    def __init__(self, height: int, box: Sequence[int], x: Sequence[float], y: Sequence[float]):
        super().__init__(height)
        (self.left, self.top, self.right, self.bottom), self.x, self.y = box, x, y

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a point."""
        (x0, x1), (y0, y1) = self.x, self.y
        return (self.left + (x - x0) / (x1 - x0) * (self.right - self.left),
                self.bottom - (y - y0) / (y1 - y0) * (self.bottom - self.top))

    def axes(self, across: Sequence[float], up: Sequence[float], form: str = "{:g}",
             form_up: str = "{:g}") -> None:
        """Faint lines at round numbers, with the numbers."""
        for value in across:
            x, _ = self.at(value, self.y[0])
            self.draw.line([(x, self.top), (x, self.bottom)], FAINT, 2)
            self.text(x, self.bottom + 14, form.format(value), GREY, 26, "ma")
        for value in up:
            _, y = self.at(self.x[0], value)
            self.draw.line([(self.left, y), (self.right, y)], FAINT, 2)
            self.text(self.left - 14, y, form_up.format(value), GREY, 26, "rm")

    def dot(self, x: float, y: float, colour, filled: bool) -> None:
        """A disc, or a ring, at a pixel."""
        self.draw.ellipse([x - 9, y - 9, x + 9, y + 9], colour if filled else PAPER, colour, 4)


def shade(row: dict) -> tuple[tuple[int, int, int], bool]:
    """Colour and filling of an effect: filled where it survives Holm's correction."""
    if row["p_holm"] > 0.05:
        return GREY, False
    return (BLUE if row["difference"] > 0 else RED), True


def forest(path: str | Path, families: dict[str, Sequence[dict]], title: str) -> None:
    """One line an effect: its point, its interval, and both in figures; by families."""
    rows = sum(len(part) for part in families.values())
    step, top = 46, 150
    bottom = top + step * (rows + len(families))
    bounds = sorted(abs(row[side]) for part in families.values() for row in part
                    for side in ("low", "high"))
    limit = 1.1 * max([0.0, *bounds[: int(0.85 * len(bounds)) + 1]]) or 1.0  # the rest is cut
    plot = Plot(bottom + 110, (400, top, 1120, bottom), (-limit, limit), (1, 0))
    plot.text(30, 40, title, size=36)
    plot.text(30, 96, "filled: survives Holm's correction at 0.05; ring: could not be told apart",
              GREY, 28)
    plot.axes([0, *(sign * value for value in ticks(0, limit, 4)[1:] for sign in (-1, 1))], [],
              "{:+.3g}")
    plot.draw.line([plot.at(0, 1), plot.at(0, 0)], INK, 3)
    plot.text((plot.left + plot.right) / 2, bottom + 76, "Dice, difference to the baseline", GREY,
              28, "mm")
    y = top + step / 2
    for family, part in families.items():
        plot.text(30, y, family, size=30)
        plot.draw.line([(30, y + step / 2), (1570, y + step / 2)], FAINT, 2)
        y += step
        for row in part:
            colour, filled = shade(row)
            low, high, middle = (plot.at(min(max(row[name], -limit), limit), 0)[0]
                                 for name in ("low", "high", "difference"))
            plot.draw.line([(low, y), (high, y)], colour, 5)
            for name, sign in (("low", -1), ("high", 1)):
                if sign * row[name] > limit:
                    x = plot.at(sign * limit, 0)[0]
                    plot.draw.polygon([(x + 16 * sign, y), (x, y - 10), (x, y + 10)], colour)
            if abs(row["difference"]) <= limit:
                plot.dot(middle, y, colour, filled)
            plot.text(70, y, row["arm"], size=28)
            difference, low, high = (signed(row[name]) for name in ("difference", "low", "high"))
            plot.text(1160, y, f"{difference}  [{low}, {high}]", colour if filled else INK, 28)
            y += step
    plot.save(path)


def scatter(path: str | Path, rows: Sequence[dict], title: str) -> None:
    """Cost against benefit: each row's `cost`, in times of the baseline's step, and its effect."""
    low = min([0.0, *(row["low"] for row in rows)])
    high = max([0.0, *(row["high"] for row in rows)])
    gap = max(0.08 * (high - low), 0.002)
    least, widest = (side([1.0, *(row["cost"] for row in rows)]) for side in (min, max))
    span = widest - least + 0.1
    plot = Plot(1000, (150, 130, 1560, 880), (least - 0.06 * span, widest + 0.24 * span),
                (low - gap, high + gap))
    plot.text(30, 40, title, size=36)
    plot.text(30, 92, "Dice, difference to the baseline, and its 95 % interval", GREY, 28)
    plot.axes(ticks(plot.x[0], widest, 8), ticks(*plot.y, 7), "{:.3g} x", "{:+.3g}")
    plot.text((plot.left + plot.right) / 2, 960, "time of a training step", GREY, 28, "mm")
    plot.draw.line([plot.at(plot.x[0], 0), plot.at(plot.x[1], 0)], INK, 3)
    taken, dots = [], [plot.at(row["cost"], row["difference"]) for row in rows]
    for row, (x, y) in zip(rows, dots):
        colour, filled = shade(row)
        plot.draw.line([plot.at(row["cost"], row["low"]), plot.at(row["cost"], row["high"])],
                       colour, 3)
        taken.append((x - 10, y - 10, x + 10, y + 10))
    for row, (x, y) in zip(rows, dots):
        colour, filled = shade(row)
        plot.dot(x, y, colour, filled)
        width = plot.draw.textlength(row["arm"], font(26))
        places = [(x + 20 + away, y + shift) for away in (0, 40, 120, 240)
                  for shift in (0, *(sign * n for n in range(26, 400, 26) for sign in (-1, 1)))]
        for left, middle in places:
            label = (left, middle - 14, left + width, middle + 14)
            if (plot.top < middle < plot.bottom and label[2] < plot.right + 30 and not any(
                    label[0] < b[2] and b[0] < label[2] and label[1] < b[3] and b[1] < label[3]
                    for b in taken)):
                break
        taken.append(label)
        if abs(middle - y) > 20 or left > x + 30:
            plot.draw.line([(x + 8, y), (left - 4, middle)], GREY, 2)
        plot.text(left, middle, row["arm"], colour if filled else INK, 26)
    plot.save(path)


def curves(path: str | Path, lines: dict[str, Sequence[float]], title: str, across: str,
           up: str) -> None:
    """Curves over 0.5, 1.5, 2.5 ..., with their names beside, the one that begins highest first.
    The axis upwards need not begin at 0."""
    lines = {name: values for name, values in lines.items() if values}
    every = [value for values in lines.values() for value in values] or [0.0, 1.0]
    longest = max([1, *(len(values) for values in lines.values())])
    gap = 0.1 * (max(every) - min(every)) or 1.0
    plot = Plot(1000, (120, 130, 1160, 880), (0, longest), (min(every) - gap, max(every) + gap))
    plot.text(30, 40, title, size=36)
    plot.text(30, 92, up, GREY, 28)
    plot.axes(ticks(0, longest, 9), ticks(*plot.y, 7))
    plot.text((plot.left + plot.right) / 2, 960, across, GREY, 28, "mm")
    order = sorted(zip(lines.items(), LINES), key=lambda line: -line[0][1][0])
    for row, ((name, values), colour) in enumerate(order):
        plot.draw.line([plot.at(i + 0.5, value) for i, value in enumerate(values)], colour, 5,
                       "curve")
        y = plot.top + 30 + 46 * row
        plot.draw.line([(plot.right + 20, y), (plot.right + 70, y)], colour, 7)
        plot.text(plot.right + 84, y, name, colour, 28)
    plot.save(path)
