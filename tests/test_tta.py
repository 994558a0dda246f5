import numpy as np
import pytest
import torch

from minseg import flips_and_turns

VIEWS = [(turn, flip) for turn in range(4) for flip in (False, True)]


def view(x, turn, flip):
    x = torch.rot90(x, turn, (2, 3))
    return x.flip(3) if flip else x


def lopsided(tiles):
    """(N, 3, T, T) -> (N, 2, T, T) in (0, 1): what is above and to the left counts, by place."""
    x = tiles.double() / 255
    place = torch.arange(x.shape[2] * x.shape[3]).view(x.shape[2:]).double().sin()
    seen = (x * place).cumsum(2).cumsum(3)
    return torch.stack([seen[:, 0] - seen[:, 1], seen[:, 2] * seen[:, 1]], 1).sigmoid()


def pixelwise(tiles):
    return (tiles[:, :2].double() / 100 - tiles[:, 2:].double() / 50).sigmoid()


@pytest.fixture
def tiles():
    torch.manual_seed(0)
    return torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8)


def test_it_is_the_mean_over_eight_views_each_turned_back(tiles):
    total = 0
    for turn, flip in VIEWS:
        x = np.rot90(tiles.numpy(), turn, (2, 3))
        x = np.flip(x, 3) if flip else x
        p = lopsided(torch.from_numpy(x.copy())).numpy()
        p = np.flip(p, 3) if flip else p
        total = total + np.rot90(p, -turn, (2, 3))
    torch.testing.assert_close(flips_and_turns(lopsided)(tiles).numpy(), total / 8)


@pytest.mark.parametrize("turn, flip", VIEWS)
def test_the_mean_turns_and_flips_with_the_tile(tiles, turn, flip):
    mean = flips_and_turns(lopsided)
    turned = mean(view(tiles, turn, flip))
    torch.testing.assert_close(turned, view(mean(tiles), turn, flip), atol=1e-12, rtol=0)
    if (turn, flip) != (0, False):  # which alone it does not
        assert not torch.allclose(lopsided(view(tiles, turn, flip)),
                                  view(lopsided(tiles), turn, flip), atol=0.1)


def test_a_predictor_that_turns_with_the_tile_by_itself_is_unchanged(tiles):
    torch.testing.assert_close(flips_and_turns(pixelwise)(tiles), pixelwise(tiles),
                               atol=1e-12, rtol=0)


def test_the_predictor_is_called_once_and_sees_all_views_of_all_tiles_as_uint8(tiles):
    calls = []

    def predict(x):
        assert x.dtype == torch.uint8
        calls.append(x)
        return pixelwise(x)

    flips_and_turns(predict)(tiles)
    assert len(calls) == 1 and calls[0].shape == (16, 3, 6, 6)
    wanted = [view(tile[None], turn, flip)[0] for tile in tiles for turn, flip in VIEWS]
    assert all(sum(torch.equal(x, y) for y in calls[0]) == 1 for x in wanted)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_tiles_of_a_batch_do_not_mix(count):
    tiles = torch.randint(0, 256, (count, 3, 6, 6), dtype=torch.uint8,
                          generator=torch.Generator().manual_seed(1))
    mean = flips_and_turns(lopsided)
    torch.testing.assert_close(mean(tiles), torch.cat([mean(tile[None]) for tile in tiles]),
                               atol=1e-12, rtol=0)


def test_probabilities_stay_probabilities_of_their_type(tiles):
    mean = flips_and_turns(lambda x: lopsided(x).float())(tiles)
    assert mean.dtype == torch.float32 and mean.shape == (2, 2, 6, 6)
    assert (mean >= 0).all() and (mean <= 1).all()
    ones = flips_and_turns(lambda x: torch.ones(len(x), 1, 6, 6))(tiles)
    assert torch.equal(ones, torch.ones(2, 1, 6, 6))


def test_it_averages_probabilities_and_not_logits(tiles):
    logits = flips_and_turns(lambda x: lopsided(x).logit())(tiles)
    assert not torch.allclose(flips_and_turns(lopsided)(tiles), logits.sigmoid(), atol=1e-3)


def test_each_of_many_tiles_is_answered_as_if_it_were_alone():
    torch.manual_seed(1)
    tiles = torch.randint(0, 256, (9, 3, 6, 6), dtype=torch.uint8)
    predict = flips_and_turns(lopsided)
    torch.testing.assert_close(predict(tiles), torch.cat([predict(tile[None]) for tile in tiles]))
