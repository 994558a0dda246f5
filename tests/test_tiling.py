import gc
import itertools
import threading
import time

import numpy as np
import pytest
import torch

from minseg import blend_window, predict_bands, predict_image, tile_starts
from minseg.tiling import read_strips

WINDOWS = ("linear", "gaussian", "hann", "uniform")


def window_reader(image):
    return lambda y, x, h, w: image[y : y + h, x : x + w]


@pytest.mark.parametrize("tile", [1, 4, 7])
@pytest.mark.parametrize("stride", [1, 3, 4, 7])
def test_tiles_cover_every_pixel_and_none_leaves_the_axis(tile, stride):
    for length in range(1, 30):
        if stride > tile:
            continue
        starts = tile_starts(length, tile, stride)
        assert starts == sorted(set(starts))
        covered = {x for start in starts for x in range(start, start + tile)}
        assert covered >= set(range(length))
        if length <= tile:
            assert starts == [0]
        else:
            assert starts[-1] == length - tile
            assert all(b - a == stride for a, b in itertools.pairwise(starts[:-1]))


@pytest.mark.parametrize("arguments", [(10, 4, 5), (10, 4, 0), (0, 4, 2), (10, 0, 0)])
def test_grids_with_gaps_or_without_pixels_are_refused(arguments):
    with pytest.raises(ValueError, match=f"stride {arguments[2]}"):
        tile_starts(*arguments)


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("tile", [1, 2, 5, 8, 64, 640])
def test_windows_are_positive_symmetric_and_at_most_one(kind, tile):
    window = blend_window(tile, kind)
    assert window.shape == (tile, tile) and window.dtype == torch.float32
    assert window.max() == 1 and window.min() > 0
    torch.testing.assert_close(window, window.flip(0))
    torch.testing.assert_close(window, window.T)
    middle = window[tile // 2]
    assert (middle[: (tile + 1) // 2].diff() >= 0).all()  # falls towards the border


def test_windows_are_their_equations():
    for kind, axis in {
        "linear": lambda x: min(x, 8 - x),
        "hann": lambda x: np.sin(np.pi * x / 8) ** 2,
        "gaussian": lambda x: np.exp(-((x - 4) ** 2) / 2),
        "uniform": lambda x: 1.0,
    }.items():
        naive = np.array([[axis(y + 0.5) * axis(x + 0.5) for x in range(8)] for y in range(8)])
        naive /= naive.max()
        if kind == "gaussian":
            naive = np.maximum(naive, 1e-3)
        np.testing.assert_allclose(blend_window(8, kind).numpy(), naive, rtol=1e-6)


def test_hann_windows_half_a_tile_apart_add_up_to_a_constant():
    row = blend_window(16, "hann")[8]
    torch.testing.assert_close(row[:8] + row[8:], torch.full((8,), (row[:8] + row[8:])[0].item()))


def test_unknown_windows_are_refused():
    with pytest.raises(ValueError, match="bartlett"):
        blend_window(8, "bartlett")


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("size", [(1, 1), (5, 40), (16, 16), (37, 23), (50, 64)])
def test_a_predictor_that_ignores_position_gives_its_own_map_back(kind, size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)

    def predict(tiles):
        return torch.stack([tiles[:, 0] / 255, 1 - tiles[:, 2] / 255], 1)

    result = predict_image(predict, image, tile=16, stride=6, window=kind, batch=3)
    wanted = predict(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    torch.testing.assert_close(result, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", WINDOWS)
def test_normalised_weights_sum_to_one_everywhere(kind):
    ones = predict_image(lambda tiles: torch.ones(len(tiles), 1, 16, 16),
                         np.zeros((45, 61, 3), np.uint8), tile=16, stride=9, window=kind)
    torch.testing.assert_close(ones, torch.ones(1, 45, 61))


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("size, tile, stride", [
    ((70, 50), 16, 11), ((33, 90), 32, 8), ((9, 40), 16, 8), ((64, 64), 16, 16)])
def test_bands_equal_the_weighted_mean_of_the_whole_image(kind, size, tile, stride, turn):
    height, width = size
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise = torch.rand(2, tile, tile)  # the prediction depends on where in the tile a pixel lies

    def predict(tiles):
        return (tiles[:, :2].float() / 255 + noise) / 2

    total = np.zeros((2, max(height, tile), max(width, tile)))
    weights = np.zeros(total.shape[1:])
    padded = np.pad(image, [(0, max(0, tile - height)), (0, max(0, tile - width)), (0, 0)], "edge")
    window = blend_window(tile, kind).double().numpy()
    for row, y in enumerate(tile_starts(height, tile, stride)):
        for column, x in enumerate(tile_starts(width, tile, stride)):
            part = torch.from_numpy(padded[y : y + tile, x : x + tile]).permute(2, 0, 1)[None]
            quarter = ((0, 1), (2, 3))[row % 2][column % 2] if turn else 0
            answer = predict(part.rot90(quarter, (2, 3))).rot90(-quarter, (2, 3))
            total[:, y : y + tile, x : x + tile] += window * answer[0].double().numpy()
            weights[y : y + tile, x : x + tile] += window
    naive = (total / weights)[:, :height, :width]

    bands = list(predict_bands(predict, window_reader(image), height, width, tile=tile,
                               stride=stride, window=kind, batch=4, turn=turn))
    assert [y for y, _ in bands] == list(np.cumsum([0] + [b.shape[1] for _, b in bands])[:-1])
    assert all(band.dtype == torch.float32 for _, band in bands)
    result = torch.cat([band for _, band in bands], 1).numpy()
    assert result.shape == (2, height, width)
    np.testing.assert_allclose(result, naive, atol=1e-5)


def test_with_turned_tiles_that_overlap_by_half_each_pixel_is_seen_in_all_four_positions():
    image = np.broadcast_to(np.arange(80, dtype=np.uint8)[:, None], (64, 80, 3))  # rises rightwards

    def predict(tiles):
        """In which direction the tile rises, as 0 and 1: (N, 4, 16, 16)."""
        up = tiles[:, 0, 0, 8].int() - tiles[:, 0, -1, 8].int()
        right = tiles[:, 0, 8, -1].int() - tiles[:, 0, 8, 0].int()
        found = torch.stack([right > 0, up > 0, right < 0, up < 0], 1)
        return found[:, :, None, None].expand(-1, -1, 16, 16).float()

    def inside(turn):
        return predict_image(predict, image, tile=16, stride=8, window="uniform", turn=turn)[
            :, 8:-8, 8:-8]

    assert (inside(True) == 0.25).all()
    assert (inside(False)[0] == 1).all()


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("stride", [20, 23, 37, 64])
def test_the_mean_of_probabilities_is_a_probability(kind, stride):
    image = np.zeros((150, 211, 3), np.uint8)
    for highest in (1.0, 1 - 2**-24, 2**-3):  # just below 1, too: that is what a sigmoid gives
        torch.manual_seed(0)

        def predict(tiles, highest=highest):
            p = torch.full((len(tiles), 3, 64, 64), highest)
            p[:, 1] *= torch.rand(64, 64)
            p[:, 2] = 0
            return p

        sure, random, never = predict_image(predict, image, tile=64, stride=stride, window=kind)
        assert sure.max() <= 1 and random.max() <= 1 and random.min() >= 0 and not never.any()
        if highest == 1:
            assert (sure == 1).all()


def test_a_probability_that_is_not_a_number_stays_none():
    tiles = torch.full((8, 1, 16, 16), torch.nan)
    mean = predict_image(lambda x: tiles[: len(x)], np.zeros((20, 40, 3), np.uint8), tile=16,
                         stride=8)
    assert mean.isnan().all()


def test_the_network_sees_no_more_than_a_batch_of_uint8_tiles():
    seen = []

    def predict(tiles):
        seen.append((tiles.dtype, tuple(tiles.shape)))
        return tiles[:, :1].float()

    predict_image(predict, np.zeros((30, 100, 3), np.uint8), tile=20, stride=10, batch=4)
    assert {dtype for dtype, _ in seen} == {torch.uint8}
    assert [shape[0] for _, shape in seen] == [4, 4, 1] * 2
    assert {shape[1:] for _, shape in seen} == {(3, 20, 20)}


def test_border_pixels_are_repeated_where_the_image_is_smaller_than_the_tile():
    seen = []
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    predict_image(lambda t: seen.append(t) or t[:, :1].float(), image, tile=5, stride=5)
    wanted = np.pad(image, [(0, 3), (0, 2), (0, 0)], mode="edge")
    np.testing.assert_array_equal(seen[0][0].permute(1, 2, 0).numpy(), wanted)


def test_memory_does_not_grow_with_the_height_nor_keep_graphs():
    def held():  # bytes of all tensors alive
        tensors = [x for x in gc.get_objects() if type(x) is torch.Tensor]
        return sum(x.untyped_storage().nbytes() for x in tensors)

    def read(y, x, h, w):
        assert h <= 64  # never more than a row of tiles
        return np.zeros((h, w, 3), np.uint8)

    scale = torch.ones(1, requires_grad=True)
    sizes = []
    gc.freeze()  # so that what other tests left is not searched for tensors
    for _, band in predict_bands(lambda t: t[:, :1] * scale, read, 2000, 300, tile=64, stride=32):
        assert not band.requires_grad
        sizes.append(held())
    assert len(sizes) > 50 and sizes[-2] <= 1.01 * sizes[2]


def test_half_precision_is_blended_in_float32_and_views_of_any_order_are_read():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)[::-1, :, ::-1]
    image.setflags(write=False)
    result = predict_image(lambda t: (t[:, :1] / 255).half(), image, tile=16, stride=8)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result[0].numpy(), image[:, :, 0] / 255, atol=1e-3)


def test_a_prediction_of_another_size_is_refused():
    with pytest.raises(ValueError, match="predict gave"):
        predict_image(lambda t: t[:, :1, :1, :1].float(), np.zeros((9, 9, 3), np.uint8),
                      tile=4, stride=4)


# Reading


def ones(tiles):
    return torch.ones(len(tiles), 1, *tiles.shape[2:])


def within(seconds, work):
    """What `work()` returns or raises; fails where it hangs."""
    result = []

    def run():
        try:
            result.append((work(), None))
        except BaseException as error:
            result.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert result, "it hangs"
    value, error = result[0]
    if error:
        raise error
    return value


@pytest.mark.parametrize("height, tile, stride", [
    (100, 16, 16), (100, 16, 5), (103, 16, 8), (16, 16, 4), (17, 16, 8), (5, 16, 8), (64, 16, 1)])
def test_rows_are_read_from_top_to_bottom_and_none_twice(height, tile, stride):
    rows = []

    def read(y, x, h, w):
        assert (x, w) == (0, 23) and h > 0
        rows.extend(range(y, y + h))
        return np.zeros((h, w, 3), np.uint8)

    list(predict_bands(ones, read, height, 23, tile=tile, stride=stride))
    assert rows == list(range(height))


@pytest.mark.parametrize("spans", [
    [(0, 5), (3, 9), (4, 9), (6, 12)],  # a strip that brings no new row
    [(0, 3), (0, 3)], [(0, 10)], [(0, 2), (2, 4), (4, 5)], [(0, 8), (1, 8), (2, 9)]])
def test_strips_are_the_rows_of_their_spans_whatever_of_them_is_new(spans):
    image, reads = np.arange(12 * 4 * 2).reshape(12, 4, 2), []

    def read(y, x, h, w):
        reads.extend(range(y, y + h))
        return image[y : y + h, x : x + w]

    strips = list(read_strips(read, 4, spans))
    assert len(strips) == len(spans)
    for strip, (top, bottom) in zip(strips, spans):
        np.testing.assert_array_equal(strip, image[top:bottom])
    assert reads == list(range(spans[-1][1]))


def test_a_strip_is_its_readers_to_keep():
    image = np.random.default_rng(0).integers(0, 256, (40, 7, 3), np.uint8)
    spans = [(y, y + 16) for y in range(0, 25, 4)]
    for strip, (top, bottom) in zip(list(read_strips(window_reader(image), 7, spans)), spans):
        np.testing.assert_array_equal(strip, image[top:bottom])


def test_the_next_rows_are_read_in_one_other_thread_while_these_are_predicted():
    threads, asked = set(), [threading.Event() for _ in range(4)]
    reads, rows = [], []

    def read(y, x, h, w):
        threads.add(threading.get_ident())
        asked[len(reads)].set()
        reads.append(y)
        time.sleep(0.05)  # a second thread would have time to begin
        return np.zeros((h, w, 3), np.uint8)

    def predict(tiles):  # one row of tiles has one batch here
        rows.append(len(rows))
        if len(rows) < 4:
            assert asked[len(rows)].wait(20), f"while row {rows[-1]} is predicted nothing is read"
        return ones(tiles)

    assert len(list(predict_bands(predict, read, 64, 30, tile=16, stride=16))) == 4
    assert reads == [0, 16, 32, 48]
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_reading_keeps_one_strip_ahead_and_no_more():
    reads = []

    def read(y, x, h, w):
        reads.append(y)
        return np.zeros((h, w, 3), np.uint8)

    bands = predict_bands(ones, read, 160, 30, tile=16, stride=16)
    for row, _ in zip(range(8), bands):
        time.sleep(0.02)
        assert len(reads) <= row + 2


@pytest.mark.parametrize("row", [0, 16, 48])
def test_an_error_in_reading_comes_out(row):
    def read(y, x, h, w):
        if y == row:
            raise OSError(5, "the disk is gone")
        return np.zeros((h, w, 3), np.uint8)

    found = []
    with pytest.raises(OSError, match="the disk is gone"):
        within(20, lambda: found.extend(predict_bands(ones, read, 64, 30, tile=16, stride=16)))
    assert [y for y, _ in found] == list(range(0, row, 16))  # what came before is handed out


@pytest.mark.parametrize("row", [0, 2, 3])
def test_an_error_in_predicting_comes_out(row):
    calls = []

    def predict(tiles):
        calls.append(1)
        if len(calls) == row + 1:
            raise RuntimeError("out of memory")
        return ones(tiles)

    read, found = window_reader(np.zeros((64, 30, 3), np.uint8)), []
    with pytest.raises(RuntimeError, match="out of memory"):
        within(20, lambda: found.extend(predict_bands(predict, read, 64, 30, tile=16, stride=16)))
    assert len(found) == row


@pytest.mark.parametrize("bands", [0, 1, 3])
def test_stopping_early_does_not_hang_and_leaves_no_thread(bands):
    before = set(threading.enumerate())

    def read(y, x, h, w):
        time.sleep(0.01)
        return np.zeros((h, w, 3), np.uint8)

    def some():
        generator = predict_bands(ones, read, 400, 30, tile=16, stride=8)
        for _ in range(bands):
            next(generator)
        generator.close()

    within(20, some)
    gc.collect()
    end = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < end:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def test_the_result_does_not_depend_on_the_batch():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    noise = torch.rand(1, 16, 16)

    def predict(tiles):
        return (tiles[:, :1] / 255 + noise) / 2

    results = [predict_image(predict, image, tile=16, stride=7, batch=n) for n in (1, 4, 99)]
    assert all(torch.equal(result, results[0]) for result in results)


def test_no_thread_is_left_where_the_network_fails():
    def predict(tiles):
        raise RuntimeError("no memory")

    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="no memory"):
        list(predict_bands(predict, window_reader(np.zeros((64, 30, 3), np.uint8)), 64, 30,
                           tile=16, stride=16))
    assert set(threading.enumerate()) == before
