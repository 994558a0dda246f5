import numpy as np
from PIL import Image

from lab.sheet import Sheet, heat
from minseg.run.report import BLUE, PAPER


def test_heat_rises_in_brightness_from_dark_to_light():
    grey = np.asarray(heat(np.linspace(0, 1, 50)[None]).convert("L"), int)[0]
    assert (np.diff(grey) >= 0).all() and grey[0] < 50 and grey[-1] > 200


def test_an_arrow_ends_where_it_should_and_has_a_head_there():
    sheet = Sheet(300)
    sheet.arrow((100, 150), (300, 150), BLUE)
    drawn = (np.asarray(sheet.image) == BLUE).all(-1)
    rows, columns = drawn.nonzero()
    assert columns.min() >= 97 and columns.max() == 300
    assert drawn[:, 281].sum() > 3 * drawn[:, 200].sum()


def test_a_picture_keeps_its_shape_and_its_pixels():
    sheet = Sheet(300)
    picture = Image.fromarray(np.uint8([[[255, 0, 0], [0, 0, 255]]]))  # 1 x 2
    assert sheet.paste(picture, 10, 100, 40) == 20
    pixels = np.asarray(sheet.image)
    assert (pixels[100:120, 10:30] == (255, 0, 0)).all()
    assert (pixels[100:120, 30:50] == (0, 0, 255)).all()
    assert (pixels[121:] == PAPER).all()
