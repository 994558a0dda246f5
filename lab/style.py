"""The look of every picture: colours, letters, panels, and how a figure becomes a file.

The colours are Okabe and Ito's, which colour-blind readers can tell apart; numbers become colours
by cividis, which everybody sees alike and which keeps its order in print. A figure is 8 inches wide
at 200 dots per inch: letters of 10 points stay legible when it is shown 800 pixels wide. matplotlib
draws (`pip install -e '.[lab]'`); nothing outside of this file imports it.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from minseg.files.atomic import atomic

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
PALETTE = BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, "#636363", BLACK
INK, GREY, FAINT = "#282828", "#636363", "#dcdcdc"
LINES = list(zip((BLUE, RED, INK, GREEN, PURPLE, GREY), ("-", "--", ":", "-", "--", "-."),
                 "os^DvP"))
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib and has accents
    "font.size": 10, "axes.titlesize": 11, "axes.labelsize": 10, "figure.titlesize": 13,
    "text.color": INK, "axes.labelcolor": GREY, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.edgecolor": "none", "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0,
    "grid.color": FAINT, "axes.axisbelow": True, "axes.unicode_minus": False,
    "figure.facecolor": "white", "axes.facecolor": "none", "image.cmap": "cividis",
    "image.interpolation": "nearest", "lines.linewidth": 2.5, "legend.frameon": False,
    "figure.constrained_layout.h_pad": 0.08, "figure.constrained_layout.w_pad": 0.08,
}


def need_matplotlib() -> None:
    """ValueError that says how to install matplotlib where it is missing."""
    if find_spec("matplotlib") is None:
        raise ValueError("matplotlib draws the pictures: python -m pip install -e '.[lab]'")


def sheet(title: str, rows: int | Sequence = 1, columns: int = 1, *, height: float, note: str = "",
          **options):
    """A figure, `height` inches high, with a title and a note at its foot; and its axes: an array
    of `rows` x `columns`, or a dictionary where `rows` is a mosaic of names."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcdefaults()  # without the user's own settings: the same bytes everywhere
    matplotlib.rcParams.update(STYLE)
    figure = Figure((8, height), 200, layout="constrained")
    figure.suptitle(title, x=0.012, ha="left")
    if note:
        figure.supxlabel(note, x=0.012, ha="left", color=GREY, fontsize=10)
    if isinstance(rows, int):
        return figure, figure.subplots(rows, columns, **options)
    return figure, figure.subplot_mosaic(rows, **options)


def show(axes, values, title: str = "", note: str = "", **options) -> None:
    """An image (H, W, 3), or numbers (H, W) as colours, with words above and below it."""
    axes.imshow(np.asarray(values), **options)
    axes.set(xticks=[], yticks=[], title=title, xlabel=note)


def outline(axes, mask, colour: str, width: float = 1.5) -> None:
    """The outline of a mask (H, W) over an image."""
    axes.contour(np.asarray(mask, float), [0.5], colors=[colour], linewidths=width)


def arrow(axes, start, end, coordinates="data") -> None:
    """An arrow between two points of the axes; `coordinates` are those of `start`."""
    axes.annotate("", end, start, "data" if coordinates == "data" else "axes fraction", coordinates,
                  {"arrowstyle": "-|>", "color": GREY, "linewidth": 2}).set_in_layout(False)


def curves(title: str, lines: dict[str, tuple[Sequence, Sequence]], across: str, up: str,
           height: float = 4.5):
    """A figure of named curves, each a pair of its x and its y."""
    figure, axes = sheet(title, height=height)
    for i, ((name, points), (colour, line, marker)) in enumerate(zip(lines.items(), LINES)):
        axes.plot(*points, color=colour, linestyle=line, label=name, linewidth=2, markersize=6,
                  marker=marker, markevery=(0.02 * i, 0.1) if len(points[0]) > 12 else None)
    axes.set(xlabel=across, ylabel=up)
    axes.grid()
    figure.legend(loc="outside lower left", ncols=3)
    return figure, axes


def draw(figure) -> Image.Image:
    """The figure as pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # so that arrows between axes know where these will lie
    figure.set_layout_engine("none")
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def thumbnail(figure, shown: Sequence) -> Image.Image:
    """The axes `shown` alone, arranged as in the figure, on 240 x 160 pixels: without words and
    markers, which would be unreadable. Lines keep their width, and so are thick here."""
    from matplotlib.text import Text

    figure.set(size_inches=(1.2, 0.8), dpi=200, layout_engine="none")
    for part in (*figure.findobj(Text), *figure.legends, *figure.axes):
        part.set_visible(part in shown)
    places = {axes: (axes.get_subplotspec().rowspan.start, axes.get_subplotspec().colspan.start)
              for axes in shown}
    down, across = (sorted(set(starts)) for starts in zip(*places.values()))
    for axes, (row, column) in places.items():
        axes.set(position=(across.index(column) / len(across) + 0.02,
                           1.03 - (down.index(row) + 1) / len(down),
                           1 / len(across) - 0.04, 1 / len(down) - 0.06), anchor="C")
        axes.tick_params(labelleft=False, labelbottom=False)
        for line in axes.lines:
            line.set(marker="", clip_on=False)
        for child in axes.child_axes:
            child.set_visible(False)
    return draw(figure)


def save(figure, path: Path, small: Sequence = ()) -> Path:
    """Writes the PNG, in 256 colours, and returns its path. The `thumbnail` of the axes `small`
    goes into small/ beside it, too."""
    pictures = {path: draw(figure).quantize(256, dither=Image.Dither.NONE)}
    if len(small := list(small)):
        pictures[path.parent / "small" / path.name] = thumbnail(figure, small)
    for place, picture in pictures.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic(place) as temporary:
            picture.save(temporary, optimize=True)
    return path
