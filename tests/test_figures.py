import numpy as np
import pytest
from PIL import Image

from minseg.lab.figures import FIGURES, main
from minseg.run.report import PAPER


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_fits_its_sheet_and_is_the_same_every_time(name, tmp_path, capsys):
    for folder in ("a", "b"):
        main([name, "--out", str(tmp_path / folder)])
    picture = np.asarray(Image.open(tmp_path / "a" / f"{name}.png"))
    assert picture.shape[1] == 1600
    for edge in (picture[:8], picture[-8:], picture[:, :8], picture[:, -8:]):
        assert (edge == PAPER).all()  # nothing is cut off
    assert ((tmp_path / "a" / f"{name}.png").read_bytes()
            == (tmp_path / "b" / f"{name}.png").read_bytes())


def test_an_unknown_figure_is_one_line(capsys):
    with pytest.raises(SystemExit) as error:
        main(["mona"])
    assert error.value.code == 2 and "windows" in capsys.readouterr().err
