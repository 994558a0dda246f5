from pathlib import Path

import pytest

from lab import figures, style

ROOT = Path(__file__).parent.parent


def test_only_the_style_imports_matplotlib():
    folders = [*ROOT.glob("*.py"), *(ROOT / "minseg").rglob("*.py"), *(ROOT / "lab").glob("*.py")]
    importing = [path.name for path in folders
                 if "import matplotlib" in (text := path.read_text("utf-8"))
                 or "from matplotlib" in text]
    assert importing == ["style.py"]


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(style, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        figures.main(["losses"])
    line = capsys.readouterr().err
    assert error.value.code == 2 and "pip install -e '.[lab]'" in line and line.count("\n") == 1
    assert not list(tmp_path.rglob("*.png"))


def test_accents_are_in_the_font():
    pytest.importorskip("matplotlib", reason="python -m pip install -e '.[lab]'")
    from matplotlib.font_manager import findfont, get_font

    letters = get_font(findfont(style.STYLE["font.family"])).get_charmap()
    assert all(ord(letter) in letters for letter in "Lovász × µ ±")


def test_axes_are_cut_out_for_the_small_copy(tmp_path):
    pytest.importorskip("matplotlib", reason="python -m pip install -e '.[lab]'")
    from PIL import Image

    figure, axes = style.sheet("title", 1, 2, height=3)
    figure.set_dpi(50)
    for plot, value in zip(axes, (0.0, 1.0)):
        style.show(plot, [[value]], "words", vmin=0, vmax=1)
    style.save(figure, tmp_path / "a.png", axes[1:])
    with Image.open(tmp_path / "small" / "a.png") as small:
        colours = small.convert("RGB").getcolors(240 * 160)
    red, green, blue = max(colours)[1]
    assert red > 240 and green > 220 and blue < 70  # the brightest of cividis, not the darkest
