"""What a run shows: one-line errors, quiet progress, outlines on the border, whole pictures."""

import io
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


def test_lines_grow_with_the_image():
    mask = np.zeros((1200, 1300), bool)
    mask[100:1000, 100:1000] = True
    picture = np.asarray(draw_outlines(np.zeros((1200, 1300, 3), np.uint8), mask))
    assert (picture[500] == ORANGE).all(1).sum() == 2 * 3


# Pictures


def box(pixels, colour):
    """Left, top, width and height of a colour's pixels, and how many there are."""
    y, x = np.nonzero((pixels == colour).all(2))
    return x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1, len(x)


@pytest.mark.parametrize("count, columns, rows", [(1, 1, 1), (2, 2, 1), (5, 2, 3), (9, 4, 3)])
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
    assert rows * 94 < pixels.shape[0] < (rows + 1) * 94 + 30
    corners = []
    for i, colour in enumerate(colours):
        left, top, width, height, number = box(pixels, colour)
        assert max(width, height) == 70 and number == width * height
        assert width / height == pytest.approx(sizes[i % 4][0] / sizes[i % 4][1], rel=0.03)
        above = pixels[top - 24 : top - 1, left : left + 70]
        assert (above != PAPER).any()  # the caption
        corners.append((top, left))
    assert corners == sorted(corners)
    assert len({top for top, _ in corners}) == rows
    assert len({left for _, left in corners}) == columns


def test_pictures_of_a_contact_sheet_are_420_pixels_unless_told(tmp_path):
    contact_sheet(tmp_path / "a.png", [(Image.new("RGB", (900, 600), (1, 2, 3)), "a")])
    with Image.open(tmp_path / "a.png") as sheet:
        assert box(np.asarray(sheet), (1, 2, 3))[2:4] == (420, 280)


def drawn(path, curves):
    draw_curves(path, curves, "title")
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (800, 400))
        return np.asarray(image)


@pytest.mark.parametrize("epochs", [1, 2, 50])
def test_curves_fill_the_picture_and_stay_inside(tmp_path, epochs):
    falling = [1 / (i + 1) for i in range(epochs)]
    rising = [0.8 * (i + 1) / epochs for i in range(epochs)]
    pixels = drawn(tmp_path / "a.png", {"loss": falling, "held-out Dice": rising})
    plot = pixels[:, :616]  # without the labels
    for colour in (ORANGE, BLUE) if epochs > 1 else (BLUE,):  # of two single dots one is hidden
        left, top, width, height, number = box(plot, colour)
        assert abs(top - 46) <= 2  # the largest value, a dot of 4
        assert 590 < left + width <= 616
        assert top + height <= 366
        assert number >= 40
    if epochs == 50:
        assert width > 560
    assert (pixels[:30] != PAPER).any() and (pixels[365:] != PAPER).any()  # title and epochs
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_curve_of_zeros_is_a_line_at_the_bottom(tmp_path):
    pixels = drawn(tmp_path / "a.png", {"Dice": [0.0] * 5})
    _, top, _, height, _ = box(pixels[:, :616], ORANGE)
    assert top > 350 and top + height <= 366


def test_each_curve_ends_in_its_value(tmp_path):
    first = drawn(tmp_path / "a.png", {"loss": [1.0, 0.5]})
    same = drawn(tmp_path / "a.png", {"loss": [2.0, 1.0]})
    assert np.array_equal(first[:, :610], same[:, :610])
    assert not np.array_equal(first[:, 620:], same[:, 620:])


@pytest.mark.parametrize("first", [0, 0.05, 0.097, 0.13, 0.5, 1])
@pytest.mark.parametrize("apart", [-0.05, -0.02, 0, 0.02, 0.048, 0.2])
def test_labels_do_not_cover_each_other_wherever_the_curves_end(tmp_path, first, apart):
    second = min(max(first + apart, 0), 1)
    pixels = drawn(tmp_path / "a.png", {"loss": [1, first], "dice": [1, second]})
    _, top, _, height, _ = box(pixels[:, 620:], ORANGE)
    _, other_top, _, other_height, _ = box(pixels[:, 620:], BLUE)
    assert top + height <= other_top or other_top + other_height <= top
    assert min(top, other_top) > 20 and max(top + height, other_top + other_height) < 380


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
