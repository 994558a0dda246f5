"""Run-length coding: encoded and decoded again, and compared with counting pixel by pixel."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from minseg.files.rle import Encoder, Runs, rle_decode, rle_encode


def naive_encode(mask):
    """Walks down each column and counts, as the definition says."""
    runs, start, number = [], None, 0
    height, width = mask.shape
    for x in range(width):
        for y in range(height):
            number += 1
            if mask[y, x] and start is None:
                start = number
            if not mask[y, x] and start is not None:
                runs += [start, number - start]
                start = None
    if start is not None:
        runs += [start, number + 1 - start]
    return " ".join(str(n) for n in runs)


def one_pixel(height, width, y, x):
    mask = np.zeros((height, width), np.uint8)
    mask[y, x] = 1
    return mask


def random_mask(seed, height, width):
    rng = np.random.default_rng(seed)
    return (rng.random((height, width)) < rng.random()).astype(np.uint8)


MASKS = {
    "empty": np.zeros((4, 6), np.uint8),
    "full": np.ones((4, 6), np.uint8),
    "first pixel": one_pixel(4, 6, 0, 0),
    "last pixel": one_pixel(4, 6, 3, 5),
    "a pixel inside": one_pixel(7, 3, 5, 1),
    "one by one": np.ones((1, 1), np.uint8),
    "one row": np.array([[1, 0, 1, 1]], np.uint8),
    "one column": np.array([[1], [0], [1]], np.uint8),
    "random square": random_mask(0, 9, 9),
    "random wide": random_mask(1, 5, 13),
    "random high": random_mask(2, 13, 5),
    "random large": random_mask(3, 40, 31),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_decoding_gives_back_what_was_encoded(mask):
    decoded = rle_decode(rle_encode(mask), *mask.shape)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    assert np.array_equal(decoded, mask)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_encoding_equals_counting_pixel_by_pixel(mask):
    assert rle_encode(mask) == naive_encode(mask)


def test_pixels_count_from_one_down_the_columns():
    mask = np.array([[1, 0, 0, 1],
                     [1, 0, 1, 1],
                     [0, 0, 1, 0]])
    assert rle_encode(mask) == "1 2 8 4"  # column by column: 110 000 011 110
    assert np.array_equal(rle_decode("1 2 8 4", 3, 4), mask)


def test_pixel_y_x_has_the_number_x_times_height_plus_y_plus_one():
    for y in range(3):
        for x in range(5):
            assert rle_encode(one_pixel(3, 5, y, x)) == f"{x * 3 + y + 1} 1"


def test_a_run_continues_from_one_column_to_the_next():
    assert rle_encode(np.ones((3, 4))) == "1 12"


def test_an_empty_mask_is_an_empty_string():
    assert rle_encode(np.zeros((3, 4), bool)) == ""
    assert not rle_decode("", 3, 4).any()
    assert rle_decode("  \n", 3, 4).shape == (3, 4)


@pytest.mark.parametrize("convert", [
    lambda mask: mask.astype(bool), lambda mask: mask * 255, lambda mask: mask.astype(np.float32),
    lambda mask: mask.astype(np.int64) * -1, lambda mask: np.asfortranarray(mask),
    lambda mask: mask.tolist(),
], ids=["bool", "0 and 255", "float", "negative", "by columns", "lists"])
def test_whatever_is_not_zero_is_positive(convert):
    mask = random_mask(3, 6, 11)
    assert rle_encode(convert(mask)) == naive_encode(mask)


def test_encoding_does_not_change_the_mask():
    mask = random_mask(4, 8, 5)
    before = mask.copy()
    rle_encode(mask)
    assert np.array_equal(mask, before)


def test_runs_may_come_in_any_order():
    assert np.array_equal(rle_decode("5 2 1 1 2 1", 2, 3), [[1, 0, 1], [1, 0, 1]])


@pytest.mark.parametrize("seed", range(30))
def test_windows_of_any_runs_are_those_of_the_pixels_they_name(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 25, 2)
    pixels, runs = np.zeros(height * width, np.uint8), []
    for start in rng.integers(0, len(pixels), rng.integers(0, 40)):  # in any order
        length = rng.integers(1, min(len(pixels) - start, rng.choice([2, 9, 99])) + 1)
        if not pixels[start : start + length].any():
            pixels[start : start + length] = 1
            runs += [start + 1, length]
    whole = pixels.reshape(width, height).T
    drawn = Runs(" ".join(map(str, runs)), height, width)
    for _ in range(8):
        y, x = rng.integers(0, height), rng.integers(0, width)
        h, w = rng.integers(0, height - y + 1), rng.integers(0, width - x + 1)
        window = drawn.window(y, x, h, w)
        assert window.dtype == np.uint8 and np.array_equal(window, whole[y : y + h, x : x + w])


@pytest.mark.parametrize("rle, words", [
    ("1", "1 numbers, but must be pairs"),
    ("1 2 3", "3 numbers, but must be pairs"),
    ("1 b", "must be whole numbers, not '1 b'"),
    ("1.5 2", "must be whole numbers"),
    ("1,2", "must be whole numbers"),
    ("0 1", "run 0 1 begins at pixel 0, but the first pixel is 1: add 1 to every start"),
    ("-1 2", "run -1 2 leaves the image"),
    ("7 1", "run 7 1 leaves the image"),
    ("6 2", "run 6 2 leaves the image"),
    ("1 2 5 3", "run 5 3 leaves the image"), ("1 2 7 1 3 1", "run 7 1 leaves the image"),
    ("1 2 0 5", "run 0 5 begins at pixel 0"), ("1 2 3 1 5 0", "run 5 0 has no pixel: delete it"),
    ("2 0", "run 2 0 has no pixel: delete it"),
    ("3 -2", "run 3 -2 leaves the image"),
])
def test_the_error_for_a_bad_string_says_what_is_wrong(rle, words):
    with pytest.raises(ValueError) as error:
        rle_decode(rle, 2, 3)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_last_pixel_is_still_inside():
    assert rle_decode("6 1", 2, 3).tolist() == [[0, 0, 0], [0, 0, 1]]


def test_the_error_for_a_long_bad_string_is_short():
    with pytest.raises(ValueError) as error:
        rle_decode("x" * 10_000, 2, 3)
    assert len(str(error.value)) < 150
    with pytest.raises(ValueError, match=f"^run 1 {'9' * 78} leaves the image of 2 x 3 pixels"):
        rle_decode("1 " + "9" * 10_000, 2, 3)


@pytest.mark.parametrize("rle", ["", " ", "-1", "1 0", "nan", "NaN", "none"])
def test_an_empty_mask_has_many_names(rle):
    assert not rle_decode(rle, 2, 3).any()


def test_only_the_whole_code_is_such_a_name():
    assert rle_decode(f"1{' ' * 8}02 5 2", 2, 3).tolist() == [[1, 0, 1], [1, 0, 1]]


@pytest.mark.parametrize("length, cut", [(32_765, False), (32_766, True), (32_767, True),
                                         (32_768, False)])
def test_code_that_ends_where_a_spreadsheet_cuts_cells_is_refused(length, cut):
    runs = " ".join(f"{start} 1" for start in range(1001, 10_000, 2))[:32_758].rstrip()
    rle = runs + " " + ("1" if runs.count(" ") % 2 == 0 else "2 1")
    rle = rle[: rle.rindex(" ") + 1] + rle[rle.rindex(" ") + 1 :].zfill(
        length - rle.rindex(" ") - 1)  # as long as it has to be
    assert len(rle) == length
    if cut:
        with pytest.raises(ValueError, match="ends after 32,767 characters, where spreadsheets"):
            rle_decode(rle, 100, 100)
    else:
        assert rle_decode(rle, 100, 100).any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rle, words", [
    ("1 9223372036854775807", "run 1 9223372036854775807 leaves"),
    ("6 9223372036854775807", "run 6 9223372036854775807 leaves"),
    ("9223372036854775807 1", "run 9223372036854775807 1 leaves"),
    ("9223372036854775807 9223372036854775807", "leaves the image"),
    ("-9223372036854775808 1", "run -9223372036854775808 1 leaves"),
    ("1 9223372036854775808", "run 1 9223372036854775808 leaves"),
    ("18446744073709551617 1", "run 18446744073709551617 1 leaves"),  # 1, in 64 bits
])
def test_numbers_of_more_than_64_bits_do_not_wrap_around(rle, words):
    with pytest.raises(ValueError, match=words):
        rle_decode(rle, 2, 3)


# In bands


def in_bands(mask, cuts):
    coder = Encoder(*mask.shape)
    for top, bottom in zip([0, *cuts], [*cuts, len(mask)]):
        coder.add(mask[top:bottom])
        assert (coder.y, coder.positive) == (bottom, np.count_nonzero(mask[:bottom]))
    return coder.encode()


def streaks(seed, height, width):
    """Runs that cross several columns, and thin ones along rows."""
    rng = np.random.default_rng(seed)
    order = np.zeros(height * width, bool)
    for start in rng.integers(0, height * width, 4):
        order[start : start + rng.integers(1, 3 * height + 2)] ^= True
    mask = order.reshape(width, height).T.copy()
    mask[rng.integers(height), :] ^= rng.random() < 0.5
    return mask.astype(np.uint8)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_bands_of_any_height_encode_the_whole(mask):
    for rows in range(1, len(mask) + 1):
        assert in_bands(mask, range(rows, len(mask), rows)) == naive_encode(mask)


@pytest.mark.parametrize("seed", range(60))
def test_any_bands_of_any_mask_encode_the_whole(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 14, 2)
    for make in (random_mask, streaks):
        mask = make(seed, height, width)
        wanted = naive_encode(mask)
        assert rle_encode(mask) == wanted
        assert in_bands(mask, sorted(rng.integers(0, height + 1, 5))) == wanted  # some are empty
        assert np.array_equal(rle_decode(wanted, height, width), mask)


@pytest.mark.parametrize("part", [
    np.s_[-1:], np.s_[:1], np.s_[:, -1:], np.s_[:, :1], np.s_[:, 2:4], np.s_[-1:, -1:], np.s_[:]])
def test_runs_at_the_ends_of_rows_and_columns_are_encoded(part):
    mask = np.zeros((5, 6), np.uint8)
    mask[part] = 1
    for cuts in ([], [1], [4], [1, 2, 3, 4], [2, 2]):
        assert in_bands(mask, cuts) == naive_encode(mask)


def test_bands_may_contain_any_numbers_and_are_not_changed():
    mask, coder = streaks(1, 6, 7), Encoder(6, 7)
    bands = mask[:2] > 0, mask[2:4].astype(np.float32) * -0.25, mask[4:] * np.uint8(255)
    copies = [band.copy() for band in bands]
    for band in bands:
        coder.add(band)
        band[:] = 1  # it is the caller's
    assert coder.encode() == naive_encode(mask)
    for band in copies:
        copy = band.copy()
        Encoder(6, 7).add(band)
        assert np.array_equal(band, copy)


def test_encoding_twice_gives_the_same():
    coder = Encoder(3, 4)
    coder.add(np.ones((3, 4)))
    assert coder.encode() == coder.encode() == "1 12"


def test_too_many_rows_are_refused_and_not_counted():
    coder = Encoder(3, 4)
    coder.add(np.ones((2, 4)))
    with pytest.raises(ValueError, match="4 rows for a mask of height 3"):
        coder.add(np.ones((2, 4)))
    coder.add(np.ones((1, 4)))
    assert (coder.encode(), coder.positive) == ("1 12", 12)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_missing_rows_are_refused(rows):
    coder = Encoder(3, 4)
    coder.add(np.ones((rows, 4)))
    with pytest.raises(ValueError, match=f"{rows} rows of a mask of height 3"):
        coder.encode()


def peak(work):
    """What `work()` returns, and its peak memory in bytes."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_encoding_in_bands_needs_memory_only_for_a_band_and_the_runs():
    def encode():
        coder = Encoder(40_000, 1000)
        for _ in range(0, 40_000, 100):
            band = np.zeros((100, 1000), bool)
            band[:, 300:302] = True
            coder.add(band)
        return coder.encode()

    code, most = peak(encode)
    assert code == f"{300 * 40_000 + 1} 80000" and most < 2_000_000


# Windows


def naive_decode(rle, height, width):
    mask = np.zeros(height * width, np.uint8)
    numbers = list(map(int, rle.split()))
    for start, length in zip(numbers[::2], numbers[1::2]):
        mask[start - 1 : start - 1 + length] = 1
    return mask.reshape(width, height).T


def check_windows(rle, height, width, seed=0):
    whole, runs = naive_decode(rle, height, width), Runs(rle, height, width)
    assert np.array_equal(rle_decode(rle, height, width), whole)
    rng = np.random.default_rng(seed)
    for _ in range(12):
        y, x = rng.integers(0, height), rng.integers(0, width)
        h, w = rng.integers(0, height - y + 1), rng.integers(0, width - x + 1)
        window = runs.window(y, x, h, w)
        assert window.dtype == np.uint8 and window.flags.c_contiguous
        assert np.array_equal(window, whole[y : y + h, x : x + w])


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_windows_of_runs_are_those_of_the_decoded_mask(mask):
    check_windows(rle_encode(mask), *mask.shape)


@pytest.mark.parametrize("seed", range(60))
def test_runs_in_any_order_may_touch(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 20, 2)
    cuts = [1, *np.unique(rng.integers(1, height * width + 1, 9)).tolist(), height * width + 1]
    runs = [(a, b - a) for a, b in pairwise(cuts) if b > a and rng.random() < 0.7]
    rng.shuffle(runs)
    check_windows(" ".join(f"{a} {n}" for a, n in runs), height, width, seed)


@pytest.mark.parametrize("rle", ["3 4 1 2", "1 2 3 4", "6 1 5 1 4 1", "5 2", "30 1 1 1", "1 30"])
def test_windows_of_touching_runs(rle):
    check_windows(rle, 5, 6)


@pytest.mark.parametrize("rle, words", [
    ("1 6 2 3", "1 6 and 2 3"), ("2 3 1 6", "1 6 and 2 3"), ("9 1 4 2 4 2", "4 2 and 4 2"),
    ("7 1 1 30", "1 30 and 7 1"), ("1 2 2 1", "1 2 and 2 1"), ("10 3 8 3 8 3", "8 3 and 8 3")])
def test_runs_that_overlap_are_refused(rle, words):
    with pytest.raises(ValueError) as error:
        rle_decode(rle, 5, 6)
    assert str(error.value) == (
        f"runs {words} overlap: if the numbers are lengths alone, as COCO's counts, convert them "
        "(docs/masks.md); if objects overlap, encode all of them as one mask")


def test_a_window_of_a_large_slide_needs_memory_only_for_itself():
    height, width = 49_548, 34_940
    rng = np.random.default_rng(0)
    columns = np.repeat(rng.permutation(20_000)[:300], 2)
    columns[::2] = 20_000 + np.arange(300)  # half of the runs lie in the window
    starts = columns * height + rng.integers(30_000, 30_600, 600) + 1
    pairs = [*zip(starts.tolist(), rng.integers(1, 200, 600).tolist()),
             ((width - 1) * height + 1, height), (20_400 * height + 1, 2 * height + 30_100)]
    rng.shuffle(pairs)
    runs = Runs(" ".join(f"{start} {length}" for start, length in pairs), height, width)
    window, most = peak(lambda: runs.window(30_000, 20_000, 512, 512))
    wanted = np.zeros((512, 512), np.uint8)
    for start, length in pairs:
        column, top = divmod(start - 1, height)
        while length > 0 and column < width:
            if 20_000 <= column < 20_512:
                wanted[max(0, top - 30_000) : max(0, top + length - 30_000), column - 20_000] = 1
            length, column, top = length - (height - top), column + 1, 0
    assert np.array_equal(window, wanted) and 200 < wanted.any(0).sum() < 512
    assert most < 20 * window.nbytes
    corner = runs.window(height - 512, width - 512, 512, 512)
    assert corner[:, -1].all() and corner.sum() == 512
