"""tutorial.py: the whole system in forty lines."""

import ast
from pathlib import Path

import numpy as np
from PIL import Image

import tutorial
from minseg.synthetic import synthetic_slide


def test_it_trains_predicts_and_draws(monkeypatch, tmp_path, capsys):
    def small(seed):  # drawn in a sixteenth of the time
        image, mask = synthetic_slide(seed, 256, 256)
        return np.tile(image, (4, 4, 1)), np.tile(mask, (4, 4))

    monkeypatch.setattr(tutorial, "synthetic_slide", small)
    monkeypatch.chdir(tmp_path)
    tutorial.main(steps=3)
    said = capsys.readouterr().out
    assert "Dice on the slide that it has not seen: 0." in said
    with Image.open(tmp_path / "tutorial.png") as picture:
        sheet = np.asarray(picture)
    panels = sheet[28:, : 4 * 388].reshape(384, 4, 388, 3)[:, :, :384]
    assert all(panels[:, k].std() > 1 for k in range(4))  # none is blank
    assert {0, 255} <= set(np.unique(panels[:, 1]))  # the mask


def test_it_has_about_forty_lines_of_code_and_no_options():
    tree = ast.parse(Path(tutorial.__file__).read_text(encoding="utf-8"))
    lines = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)
             and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))}
    assert len(lines) <= 50
    assert "argparse" not in {name.name for node in ast.walk(tree) if isinstance(node, ast.Import)
                              for name in node.names}
