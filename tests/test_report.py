"""What a run shows: one-line errors, quiet progress, outlines on the border, whole pictures."""

import io
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from minseg.run import report
from minseg.run.report import (
    BLUE,
    ORANGE,
    PAPER,
    Parser,
    Progress,
    contact_sheet,
    draw_curves,
    draw_outlines,
    duration,
    outline,
    some,
)


@pytest.mark.parametrize("seconds, text", [
    (0, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (60, "1:00 min"),
    (69, "1:09 min"), (3599.4, "59:59 min"), (3599.6, "1:00 h"), (3600, "1:00 h"),
    (3659, "1:00 h"), (3660, "1:01 h"), (7199, "1:59 h"), (360_000, "100:00 h"),
])
def test_durations_are_written_as_people_read_them(seconds, text):
    assert duration(seconds) == text


# Errors


@pytest.mark.parametrize("arguments, words", [
    (["--size", "many"], "argument --size: invalid int value: 'many'"),
    (["--colour"], "unrecognized arguments: --colour"),
    (["--kind", "c"], "invalid choice: 'c'"),
    (["--knid", "a"], "unrecognized arguments: --knid a: did you mean --kind?"),
    (["slides"], "unrecognized arguments: slides: did you mean --data slides?"),
])
def test_a_wrong_argument_gives_one_line_and_exit_code_2(capsys, arguments, words):
    parser = Parser(prog="tool")
    parser.add_argument("--size", type=int)
    parser.add_argument("--kind", choices=["a", "b"])
    parser.add_argument("--data")
    with pytest.raises(SystemExit) as end:
        parser.parse_args(arguments)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tool: ") and err.endswith("\n") and err.count("\n") == 1
    assert words in err


def test_of_many_names_the_first_are_listed():
    assert some("abcdefgh") == "a, b, c, d, e, f, g, h"
    assert some("abcdefghi") == "a, b, c, d, e, f, g, h, ..."
    assert some("abc", 2) == "a, b, ..."


# Progress


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(report, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def work(clock, steps, seconds, **options):
    progress = Progress(steps, "work")
    for _ in range(steps):
        clock.now += seconds
        progress.step(**options)


def test_quick_work_writes_nothing_into_a_log(clock, capsys):
    work(clock, steps=100, seconds=0.29)
    assert capsys.readouterr() == ("", "")


def test_long_work_writes_a_line_every_half_minute_and_a_last_one(clock, capsys):
    work(clock, steps=100, seconds=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.strip() for line in err.splitlines()] == [
        "work  30/100  1:10 min left", "work  60/100  40 s left", "work  90/100  10 s left",
        "work  100/100  0 s left",
    ]


@pytest.mark.parametrize("steps, seconds", [(1, 100), (2, 20), (3, 10)])
def test_long_work_in_few_steps_has_a_last_line(clock, capsys, steps, seconds):
    work(clock, steps, seconds, text="loss 0.5")
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"work  {steps}/{steps}  0 s left  loss 0.5"


def test_steps_may_count_for_several(clock, capsys):
    progress = Progress(400, "rows")
    clock.now += 50
    progress.step(100)
    assert capsys.readouterr().err.strip() == "rows  100/400  2:30 min left"


@pytest.mark.parametrize("before, count, line", [
    (50, 10, "60/100  4:00 min left"), (0, 0, "0/100  1:40 h left")])
def test_the_pace_is_that_of_what_was_done_since_the_beginning(clock, capsys, before, count, line):
    progress = Progress(100, "work", before)
    clock.now += 60
    progress.step(count)
    assert capsys.readouterr().err.strip() == f"work  {line}"


def test_shares_of_a_step_add_up_to_the_whole(clock, capsys):
    progress = Progress(3, "slides")
    for _ in range(30):
        clock.now += 3
        progress.step(0.1)
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert [line.split("  ")[2] for line in lines] == ["1:00 min left", "30 s left", "0 s left"]
    assert lines[-1] == "slides  3/3  0 s left"


def test_a_total_without_a_meaning_is_shown_in_per_cent(clock, capsys):
    progress = Progress(2e9, "segmenting")  # bytes
    clock.now += 60
    progress.step(5e8, "a, slide 1 of 3")
    assert capsys.readouterr().err.strip() == "segmenting  25%  3:00 min left  a, slide 1 of 3"


def test_a_share_is_no_whole_step_yet(clock, capsys):
    progress = Progress(3, "slides")
    clock.now += 60
    progress.step(1.5)
    assert capsys.readouterr().err.strip() == "slides  1/3  1:00 min left"


@pytest.mark.parametrize("share", [1 / 3, 1 / 7, 0.001])
def test_a_terminals_line_is_cleared_when_the_shares_are_all_there(clock, monkeypatch, share):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    progress = Progress(2, "slides")
    for _ in range(round(2 / share)):
        clock.now += 1
        progress.step(share)
    assert terminal.getvalue().endswith("\r\x1b[K") and "  2/2  " in terminal.getvalue()
    assert terminal.getvalue().count("  2/2  ") == 1


def test_a_terminal_shows_one_line_redrawn_and_cleared_at_the_end(clock, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    work(clock, steps=100, seconds=0.05)
    text = terminal.getvalue()
    assert "\n" not in text and text.startswith("\rwork  ") and text.endswith("\r\x1b[K")
    assert 20 <= text.count("work") <= 27  # five times a second
    assert "100/100" in text


@pytest.mark.parametrize("live", [True, False])
def test_what_is_shown_is_seen_at_once(clock, monkeypatch, live):
    streams = {name: io.TextIOWrapper(io.BytesIO(), write_through=False)
               for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        stream.isatty = lambda: live
        monkeypatch.setattr(sys, name, stream)
    progress = Progress(2, "slides")
    clock.now += 31
    progress.step(text="a")
    shown = streams["stderr"].buffer.getvalue()
    assert shown == (b"\rslides  1/2  31 s left  a\x1b[K" if live else
                     f"slides  1/2  31 s left  a{os.linesep}".encode())
    progress.say("a line that stays")
    assert streams["stderr"].buffer.getvalue() == shown + b"\r\x1b[K" * live
    assert streams["stdout"].buffer.getvalue().rstrip() == b"a line that stays"


def test_every_program_can_print_any_name(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    Parser(prog="tool")
    assert stream.errors == "backslashreplace"


# Outlines


def naive_outline(mask, width):
    height, length = mask.shape
    border = np.zeros(mask.shape, bool)
    for y in range(height):
        for x in range(length):
            around = mask[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
            border[y, x] = mask[y, x] and not around.all()
    return border


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("size", [(24, 37), (37, 24), (3, 9), (1, 1)])
@pytest.mark.parametrize("kind", ["blobs", "noise", "full", "empty"])
def test_the_outline_is_what_lies_within_the_width_of_a_pixel_outside(kind, size, width):
    rng = np.random.default_rng(0)
    mask = {
        "blobs": (rng.random((6, 6)) > 0.4).repeat(7, 0).repeat(7, 1)[: size[0], : size[1]],
        "noise": rng.random(size) > 0.1, "full": np.ones(size, bool), "empty": np.zeros(size, bool),
    }[kind]
    result = outline(mask, width)
    assert result.dtype == bool
    assert np.array_equal(result, naive_outline(mask, width))


@pytest.mark.parametrize("value", [1, 255, 7])
def test_an_outline_of_numbers_is_that_of_what_is_not_zero(value):
    mask = np.zeros((9, 9), np.uint8)
    mask[2:7, 3:8] = value
    assert np.array_equal(outline(mask, 1), naive_outline(mask > 0, 1))


def test_the_prediction_is_painted_over_the_target_and_the_rest_is_kept():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    prediction, target = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.uint8)
    prediction[5:25, 5:30] = 1
    target[10:35, 5:45] = 1
    before = image.copy()
    picture = np.asarray(draw_outlines(image, prediction, target))
    orange, blue = naive_outline(prediction, 1), naive_outline(target, 2)
    assert (orange & blue).any()
    assert (picture[orange] == ORANGE).all()
    assert (picture[blue & ~orange] == BLUE).all()
    assert np.array_equal(picture[~orange & ~blue], image[~orange & ~blue])
    assert np.array_equal(image, before)


def test_without_a_target_only_the_prediction_is_painted():
    image = np.full((20, 20, 3), 9, np.uint8)
    prediction = np.zeros((20, 20), bool)
    prediction[4:15, 4:15] = True
    picture = np.asarray(draw_outlines(image, prediction))
    assert np.array_equal((picture == ORANGE).all(2), naive_outline(prediction, 1))
    assert not (picture == BLUE).all(2).any()


def test_void_is_hatched_and_its_border_is_that_of_no_object():
    image, target = np.full((24, 40, 3), 9, np.uint8), np.zeros((24, 40), np.uint8)
    target[4:20, 8:32] = 255
    for width in (1, 2):
        picture = np.asarray(draw_outlines(image, target == 7, target, width))
        for y in range(24):  # from the lower left to the upper right, an eighth of all
            for x in range(40):
                hatched = target[y, x] == 255 and (x + y) // width % 8 == 0
                assert (picture[y, x] == (40 if hatched else 9)).all()


def test_lines_grow_with_the_shorter_side_of_the_image():
    mask = np.zeros((1200, 1500), bool)
    mask[100:1000, 100:1000] = True
    picture = np.asarray(draw_outlines(np.zeros((1200, 1500, 3), np.uint8), mask))
    assert (picture[500] == ORANGE).all(1).sum() == 2 * 3


# Pictures


def box(pixels, colour):
    """Left, top, width and height of a colour's pixels, and how many there are."""
    y, x = np.nonzero((pixels == colour).all(2))
    return x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1, len(x)


@pytest.mark.parametrize("count, columns, rows", [(1, 1, 1), (2, 2, 1), (5, 2, 3), (8, 2, 4)])
def test_a_contact_sheet_shows_every_picture_whole_in_rows(tmp_path, count, columns, rows):
    sizes = [(50, 30), (30, 50), (200, 200), (7, 5)]
    colours = [(20 * i + 10, 3, 250 - 20 * i) for i in range(count)]
    pictures = [(Image.new("RGB", sizes[i % 4], c), f"slide {i}") for i, c in enumerate(colours)]
    contact_sheet(tmp_path / "a.png", pictures, side=70)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    with Image.open(tmp_path / "a.png") as sheet:
        assert (sheet.format, sheet.mode) == ("PNG", "RGB")
        pixels = np.asarray(sheet)
    assert columns * 70 < pixels.shape[1] < columns * 70 + (columns + 1) * 20
    assert rows * 103 < pixels.shape[0] < (rows + 1) * 103 + 30
    corners = []
    for i, colour in enumerate(colours):
        left, top, width, height, number = box(pixels, colour)
        assert max(width, height) == 70 and number == width * height
        assert width / height == pytest.approx(sizes[i % 4][0] / sizes[i % 4][1], rel=0.03)
        above = pixels[top - 36 : top - 1, left : left + 70]
        assert (above != PAPER).any()  # the caption
        corners.append((top, left))
    assert corners == sorted(corners)
    assert len({top for top, _ in corners}) == rows
    assert len({left for _, left in corners}) == columns


def test_a_caption_with_a_line_break_is_drawn_on_one_line(tmp_path):
    for name, caption in (("a", "new\nline: Dice 1"), ("b", "new line: Dice 1")):
        contact_sheet(tmp_path / f"{name}.png", [(Image.new("RGB", (420, 9), BLUE), caption)])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_of_a_caption_that_is_always_too_wide_a_letter_stays(tmp_path):
    texts = []
    with writing(texts, {}):
        contact_sheet(tmp_path / "a.png", [(Image.new("RGB", (9, 9)), "longer")], 16, legend="")
    assert texts[-1][0] == "...r"


def test_a_contact_sheet_has_these_margins_and_its_captions_are_above_the_pictures(tmp_path):
    texts, sizes, colours = [], {}, [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    pictures = [(Image.new("RGB", (90, 60), colour), f"a{colour[0]}") for colour in colours]
    with writing(texts, sizes):
        contact_sheet(tmp_path / "a.png", pictures, side=300)
    with Image.open(tmp_path / "a.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (12 + 33 + 2 * (200 + 33 + 12), 12 + 2 * 312, 3)
    assert texts == [("orange: prediction    blue: label", 12, 6), ("a1", 12, 45),
                     ("a4", 324, 45), ("a7", 12, 290)]
    assert [box(pixels, colour)[:4] for colour in colours] == [
        (12, 78, 300, 200), (324, 78, 300, 200), (12, 323, 300, 200)]
    assert set(sizes.values()) == {22}


def test_pictures_of_a_contact_sheet_are_420_pixels_unless_told(tmp_path):
    contact_sheet(tmp_path / "a.png", [(Image.new("RGB", (900, 600), (1, 2, 3)), "a")])
    with Image.open(tmp_path / "a.png") as sheet:
        assert box(np.asarray(sheet), (1, 2, 3))[2:4] == (420, 280)


def test_a_long_caption_loses_its_beginning_and_covers_no_other(tmp_path):
    contact_sheet(tmp_path / "a.png", [(Image.new("RGB", (420, 9), BLUE), "f" * 64 + ": Dice 1"),
                                       (Image.new("RGB", (420, 9), BLUE), "")])
    contact_sheet(tmp_path / "b.png", [(Image.new("RGB", (420, 9), BLUE), "f" * 99 + ": Dice 1"),
                                       (Image.new("RGB", (420, 9), BLUE), "")])
    pixels, other = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "ab")
    top = box(pixels, BLUE)[1]
    assert (pixels[top - 33 : top, 440:] == PAPER).all() and np.array_equal(pixels, other)


LEFT, RIGHT, HEIGHT = report.PANEL


def log(dice, loss=None, second=None):
    """Rows of log.csv. `second`: the first epoch of the second stage."""
    return [{"epoch": i, "stage": 2 if second and i >= second else 1, "held_out_dice": a, "loss": b}
            for i, (a, b) in enumerate(zip(dice, loss or [0.5] * len(dice)), 1)]


@contextmanager
def writing(texts, sizes):
    """Collects what is written: (text, x, y), and the font's size of each text. Each must fit."""
    text_of = report.ImageDraw.ImageDraw.text

    def text(draw, xy, words, fill, font, anchor="la"):
        box = draw.textbbox(xy, words, font, anchor)
        assert box[0] >= 0 and box[2] <= draw.im.size[0] and box[3] <= draw.im.size[1], words
        texts.append((words, *xy))
        sizes[words] = font.size
        text_of(draw, xy, words, fill, font, anchor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.ImageDraw.ImageDraw, "text", text)
        yield


def drawn(path, rows, title="title", losses="", texts=None, sizes=None):
    """The picture of curves; `texts` and `sizes` are those of `writing`."""
    with writing([] if texts is None else texts, {} if sizes is None else sizes):
        draw_curves(path, rows, title, losses)
    with Image.open(path) as image:
        assert (image.format, image.mode, image.width) == ("PNG", "RGB", 1200)
        return np.asarray(image)


def panel_tops(texts):
    """Where the Dice of 1 and the top of the panel of the loss lie."""
    return [y + 20 for words, _, y in texts if words in ("held-out Dice", "loss")]


@pytest.mark.parametrize("dice", [0, 0.046, 0.2, 0.5, 0.93, 1])
@pytest.mark.parametrize("epochs", [1, 2, 12, 200])
def test_a_dice_is_drawn_at_its_height_between_0_and_1(tmp_path, dice, epochs):
    texts = []
    pixels = drawn(tmp_path / "a.png", log([dice] * epochs), texts=texts)
    rows = np.nonzero((pixels == BLUE).all(2))[0]
    top, _ = panel_tops(texts)
    assert (rows.min() + rows.max()) / 2 == pytest.approx(top + HEIGHT * (1 - dice), abs=1)
    ticks = {words: y for words, x, y in texts if x < LEFT and y >= top and y <= top + HEIGHT}
    assert ticks == {f"{n / 5:g}": pytest.approx(top + HEIGHT * (1 - n / 5)) for n in range(6)}
    for y in ticks.values():
        assert (pixels[round(y), LEFT + 2 : LEFT + 8] == report.FAINT).all() or y > rows.min() - 2
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def lengths(line):
    """How long the runs of True in a line of pixels are, and where the first begins."""
    edges = np.flatnonzero(np.diff(np.pad(line.astype(int), 1)))
    return (edges[1::2] - edges[::2]).tolist(), int(edges[0])


def test_curves_are_drawn_at_these_places_and_in_these_sizes_and_colours(tmp_path):
    texts, sizes = [], {}
    rows = log([0.2, 0.5, 0.5, 0.5], [1.2, 0.5, 0.5, 0.5], second=4)
    pixels = drawn(tmp_path / "a.png", rows, "a title", "first, then second", texts, sizes)
    assert pixels.shape == (1016, 1200, 3) and (pixels[0, 0] == 255).all()
    assert texts == [
        ("a title", 20, 14), ("first, then second", 900, 106), ("held-out Dice", 130, 176),
        *[(f"{n / 5:g}", 114, 526 - 66 * n) for n in range(6)], ("0.500", 1034, 361),
        ("loss", 130, 596), *[(f"{n / 2:g}", 114, 946 - 110 * n) for n in range(4)],
        ("0.500", 1034, 836), *[(str(n), 130 + 220 * n, 962) for n in range(5)],
        ("epoch", 1180, 962)]
    assert {words for words, size in sizes.items() if size == 36} == {
        "a title", "first, then second", "held-out Dice", "0.500", "loss"}
    assert {size for size in sizes.values() if size != 36} == {34}
    for top, name, colour in ((196, "Dice", (0, 114, 178)), (616, "loss", (230, 159, 0))):
        grid = (pixels[:, 180] == 220).all(1)[top - 9 : top + 339]
        assert lengths(grid) == ([3] * (6 if name == "Dice" else 4), 8)
        assert lengths((pixels[:, 720] == colour).all(1))[0] == [7]  # the curve
        assert lengths((pixels[:, 790] == colour).all(1))[0] == [19]  # a dot
        line, place = pixels[top : top + 350, 899], np.arange(350)
        dashes = (place % 28 < 15) & (place < 330)
        assert (line[dashes].max(1) < 255).all()  # also where the grid or the curve is over them
        assert (line[~dashes].min(1) != 40).all()
        assert lengths((pixels[top + 7, 850:950] == 40).all(1)) == ([4], 49)
    assert len(drawn(tmp_path / "b.png", log([0.5]), "a title\nof two lines")) == 956
    assert len(drawn(tmp_path / "b.png", log([0.5]), "a title of two lines " * 6)) == 1002


@pytest.mark.parametrize("loss, ticks", [
    ([1.02, 0.5], "0 0.5 1 1.5"), ([0.93, 0.95], "0 0.2 0.4 0.6 0.8 1"), ([0.0, 0.0], "0 0.2"),
    ([0.0041, 0.003], "0 0.001 0.002 0.003 0.004 0.005"), ([37, 12], "0 10 20 30 40"),
    ([0.4, -0.7], "-1 -0.5 0 0.5"), ([-3, -2], "-3 -2 -1 0"),
])
def test_the_loss_has_an_axis_of_round_numbers_that_includes_zero(tmp_path, loss, ticks):
    texts = []
    pixels = drawn(tmp_path / "a.png", log([0.25] * 2, loss), texts=texts)
    _, top = panel_tops(texts)
    found = {float(words): y for words, x, y in texts if x < LEFT and top <= y <= top + HEIGHT}
    assert [f"{tick:g}" for tick in found] == ticks.split()
    heights = np.interp(loss, list(found), list(found.values()))
    for x, y in zip(((LEFT + RIGHT) / 2, RIGHT), heights):
        around = np.nonzero((pixels[:, round(x)] == ORANGE).all(1))[0]
        assert (around.min() + around.max()) / 2 == pytest.approx(y, abs=4)
    assert [y for words, x, y in texts if x > RIGHT and words == f"{loss[1]:.3f}"] == [
        pytest.approx(heights[1])]


def test_of_many_epochs_no_dots_merge_and_few_numbers_are_written(tmp_path):
    for epochs, dots, numbers in ((12, True, [0, 2, 4, 6, 8, 10, 12]), (7, True, range(8)),
                                  (9, True, [0, 2, 4, 6, 8]),
                                  (30, True, range(0, 31, 5)), (31, False, range(0, 31, 5)),
                                  (200, False, [0, 50, 100, 150, 200]), (1, True, [0, 1])):
        texts = []
        pixels = drawn(tmp_path / "a.png", log([0.5] * epochs), texts=texts)
        line = (pixels[:, LEFT : RIGHT - 20] == BLUE).all(2).sum(0)
        assert (line.max() > 12) == (dots and epochs > 1)
        foot = max(y for _, _, y in texts)
        assert [words for words, _, y in texts if y == foot] == [*map(str, numbers), "epoch"]


@pytest.mark.parametrize("epochs, second", [(10, 7), (200, 121), (4, 2), (200, 2), (20, 20)])
def test_a_dashed_line_shows_where_the_second_stage_begins(tmp_path, epochs, second):
    texts = []
    rows = log([0.5] * epochs, second=second)
    pixels = drawn(tmp_path / "a.png", rows, losses="bce+dice, then bce+lovasz", texts=texts)
    x = LEFT + (RIGHT - LEFT) * (second - 0.5) / epochs  # between two epochs
    for top in panel_tops(texts):
        column = (pixels[top : top + HEIGHT, round(x)] == report.INK).all(1)
        assert 0.3 < column.mean() < 0.7 and np.diff(column).sum() > 20
    [(_, middle, y)] = [text for text in texts if text[0].startswith("bce+dice")]
    half = report.font(36).getlength("bce+dice, then bce+lovasz") / 2
    assert middle == pytest.approx(np.clip(x, 20 + half, 1180 - half))  # whole, with a margin
    assert y < panel_tops(texts)[0]
    one_stage = drawn(tmp_path / "b.png", log([0.5] * epochs), losses="bce", texts=texts)
    assert len(one_stage) < len(pixels) and "bce" not in [words for words, _, _ in texts]


@pytest.mark.parametrize("title", [
    "short", "efficientnet-lite0, bce, " + "/a/long/path" * 20, "M" * 150, "M" * 151,
    "many words " * 20])
def test_a_long_title_goes_on_in_more_lines_and_none_of_it_is_lost(tmp_path, title):
    texts = []
    drawn(tmp_path / "a.png", log([0.5]), title, texts=texts)  # which checks that each line fits
    lines = [(words, y) for words, _, y in texts if y < panel_tops(texts)[0] - 20]
    assert "".join(words for words, _ in lines).replace(" ", "") == title.replace(" ", "")
    assert all(np.diff([y for _, y in lines]) >= 40)
    if title[0] == "M":  # lines are as long as they may be
        assert report.font(36).getlength(lines[0][0] + "M") > 1160


def test_cuda_without_a_number_is_the_current_device(monkeypatch):
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda size, device: zeros(size))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = []
    # set_device's own check, which refuses "cuda": it is not told which one.
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(
        torch.cuda._utils._get_device_index(device)))
    assert report.Parser().device(None) == "cuda"
    assert chosen == []
    assert report.Parser().device("cuda:1") == "cuda:1"
    assert chosen == [1]


def test_what_a_run_depends_on_is_noted(monkeypatch, tmp_path):
    found, today = report.environment("cpu"), report.date.today()
    assert found["threads"] == torch.get_num_threads() and found["torch"] == torch.__version__
    assert abs(today - report.date.fromisoformat(found["date"])).days <= 1
    assert {"numpy", "pillow", "tifffile", "python", "commit", "device"} <= found.keys()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "model name" in cpuinfo.read_text():
        assert found["device"] and f": {found['device']}\n" in cpuinfo.read_text()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert report.environment("cuda:1")["device"] == "a GPU"


def test_the_commit_is_that_of_the_checkout_and_of_no_other_repository(monkeypatch, tmp_path):
    commands = []

    def run(command, **options):
        commands.append(command)
        if command[0] == "gone":
            raise FileNotFoundError
        assert options["capture_output"] and options["text"]
        return SimpleNamespace(stdout="0123456789ab-dirty\n")

    monkeypatch.setattr(report.subprocess, "run", run)
    monkeypatch.setattr(report, "__file__", str(tmp_path / "minseg" / "run" / "report.py"))
    assert report.environment("cpu")["commit"] == "" and commands == []
    (tmp_path / ".git").touch()
    assert report.environment("cpu")["commit"] == "0123456789ab-dirty"
    assert commands[0][:4] == ["git", "-C", str(tmp_path), "describe"]
    monkeypatch.setattr(report.subprocess, "run", lambda *_, **__: run(["gone"]))
    assert report.environment("cpu")["commit"] == ""


@pytest.mark.parametrize("rank, shown", [(0, True), (1, False), (2, False)])
def test_of_several_processes_only_the_first_shows_its_progress(monkeypatch, capsys, rank, shown):
    monkeypatch.setattr(report, "rank", lambda: rank)
    progress = report.Progress(2, "slides")
    progress.start -= 100
    progress.step(2)
    assert bool(capsys.readouterr().err) == shown
