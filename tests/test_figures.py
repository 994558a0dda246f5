from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab.figures import FIGURES, TELLING, main
from lab.maps import NETWORK_FIGURES
from minseg.run.report import PAPER


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_fits_its_sheet(name, tmp_path):
    main([name, "--out", str(tmp_path)])
    picture = np.asarray(Image.open(tmp_path / f"{name}.png"))
    assert picture.shape[1] == 1600
    for edge in (picture[:8], picture[-8:], picture[:, :8], picture[:, -8:]):
        assert (edge == PAPER).all()  # nothing is cut off


def test_a_figure_is_the_same_every_time_and_has_a_small_copy(tmp_path):
    for folder in ("a", "b"):
        main(["sampling", "folds", "--out", str(tmp_path / folder)])
    for name in ("sampling.png", "folds.png", "small/sampling.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert Image.open(tmp_path / "a/small/folds.png").size == (240, 160)


def test_every_figure_has_its_place_in_a_docstring_and_in_the_readme():
    root = Path(__file__).parent.parent
    shown = " ".join(path.read_text("utf-8") for path in (root / "minseg").glob("*.py"))
    for name in (*FIGURES, *NETWORK_FIGURES):
        assert f"](../docs/figures/{name}.png)\n\n*" in shown, name  # a caption follows
        assert (root / f"docs/figures/{name}.png").exists()
    readme = (root / "README.md").read_text("utf-8")
    assert all(f"docs/figures/small/{name}.png" in readme for name in TELLING)


def test_an_unknown_figure_is_one_line(capsys):
    with pytest.raises(SystemExit) as error:
        main(["mona"])
    assert error.value.code == 2 and "windows" in capsys.readouterr().err


def test_a_damaged_network_is_one_line_that_names_it(tmp_path, capsys):
    model = tmp_path / "figures-cbam" / "fold0" / "model.pt"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"no network")
    with pytest.raises(SystemExit) as error:
        main(["cbam", "--runs", str(tmp_path), "--out", str(tmp_path / "out")])
    line = capsys.readouterr().err
    assert error.value.code == 2 and str(model) in line and line.count("\n") == 1
