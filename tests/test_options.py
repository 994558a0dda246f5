"""The command lines: defaults, and the first and last value that each option takes."""

import sys
from pathlib import Path

import pytest

from minseg.run import options
from minseg.run.options import RECIPES, infer_options, train_options

SLIDE = "a.tif --model m.pt --out o --device cpu".split()


def train(*words):
    return train_options([*words, "--device", "cpu"])


def infer(*words):
    return infer_options([*SLIDE, *words])


def refused(capsys, read, *words):
    """The line on stderr after the program's name."""
    with pytest.raises(SystemExit) as end:
        read(*words)
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line.split(": ", 1)[1].rstrip()


def test_train_py_has_these_defaults(capsys):
    given = vars(train())
    assert given == {
        "data": None, "scale": 4, "microns": None, "tile": 128, "stride": 48, "folds": None,
        "fold": None,
        "negatives": 1.0, "exclude": None, "label": None, "ignore": None, "white": None,
        "encoder": "efficientnet-b0", "weights": None, "gates": False, "attention": "none",
        "hypercolumn": False, "deep_supervision": False, "loss": "bce+batch_dice", "then": None,
        "switch": 0.6, "recipe": None, "epochs": 5, "batch": 4, "accumulate": 1, "lr": 6e-3,
        "augment": 0, "amp": False, "compile": False, "checkpoint_activations": False,
        "workers": 2, "seed": 0, "device": "cpu", "resume": False,
        "out": Path("runs/synthetic"), "command": ["--device", "cpu"], "close": False}
    given = train("--data", "some/slides")
    assert (given.scale, given.tile, given.stride, given.epochs, given.batch, given.lr,
            given.augment, given.out) == (1, 256, 128, 20, 8, 5e-3, 1, Path("runs/slides"))
    assert train("--tile", "1").stride == 1 and train("--stride", "9").tile == 128
    assert train("--tile", "96").stride == 48 and train("--amp", "on").amp
    assert not train("--amp", "off").amp
    assert capsys.readouterr().out == ""


def test_infer_py_has_these_defaults():
    assert vars(infer()) == {
        "slides": [Path("a.tif")], "model": [Path("m.pt")], "out": Path("o"), "device": "cpu",
        "tta": False, "threshold": None, "white": None, "tile": None, "overlap": 0.5,
        "window": "linear", "skip_flat": False, "batch": 8, "amp": False, "compile": False,
        "probabilities": False, "geojson": False, "min_area": 0, "rle": None}


def test_recipes_are_those_of_the_page_on_training(capsys):
    assert set(RECIPES) == {"post", "winner-like"}
    given = train("--recipe", "post")
    assert (given.encoder, given.tile, given.stride, given.batch, given.loss, given.then,
            given.switch, given.negatives, given.lr) == (
        "efficientnet-b0", 640, 320, 16, "dice", "lovasz", 0.6, 1, 6e-3)
    assert "--batch 16" in capsys.readouterr().out
    given = train("--recipe", "winner-like", "--batch", "9")
    assert (given.attention, given.hypercolumn, given.deep_supervision, given.loss, given.batch,
            given.negatives) == ("cbam3", True, True, "bce+lovasz", 9, "balanced")
    assert "--batch" not in capsys.readouterr().out
    assert train("--recipe", "winner-like").batch == 16


def test_none_takes_back_what_a_recipe_sets():
    given = train("--recipe", "post", "--then", "none", "--weights", "none")
    assert given.then is given.weights is None


@pytest.mark.parametrize("amp, device, used", [
    ("auto", "cuda:1", True), ("auto", "cpu", False), ("on", "cpu", True), ("off", "cuda", False)])
def test_training_computes_in_16_bits_on_cuda_unless_told_otherwise(
        monkeypatch, amp, device, used):
    monkeypatch.setattr(options.Parser, "device", lambda self, name: name)
    assert train_options(["--amp", amp, "--device", device]).amp == used


@pytest.mark.parametrize("words, value", [
    ("--scale 1", 1), ("--workers 1", 1), ("--workers 2147483647", 2**31 - 1),
    ("--epochs 0.01", 0.01), ("--lr 1e-9", 1e-9), ("--lr 1e30", 1e30),
    ("--augment 0", 0), ("--augment 5", 5), ("--white 1", 1), ("--white 65535", 65535),
    ("--seed 0", 0), (f"--seed {2**63 - 1}", 2**63 - 1), ("--stride 128", 128),
    ("--negatives 0", 0), ("--negatives all", "all"), ("--negatives 2.5", 2.5)])
def test_the_first_and_the_last_value_of_a_range_are_taken(words, value):
    assert getattr(train(*words.split()), words.split()[0][2:]) == value


@pytest.mark.parametrize("words, line", [
    *[(f"--{name} 0", f"--{name} 0: needs a number above 0")
      for name in ("scale", "tile", "stride", "batch", "accumulate", "workers")],
    ("--epochs 0", "--epochs 0.0: needs a number above 0"), ("--lr inf", "--lr inf: needs a"),
    ("--epochs nan", "--epochs nan: needs a"), ("--accumulate 2147483648", "needs a number"),
    ("--stride 129", "--stride 129 leaves gaps: it is longer than --tile 128"),
    ("--deep-supervision --tile 100", "is a multiple of 8, such as 96 or 104, or smaller"),
    ("--deep-supervision --tile 7", "is a multiple of 8, such as 8 or 16, or smaller"),
    ("--augment -0.1", "--augment -0.1: needs a number from 0 to 5"),
    ("--augment 5.1", "--augment 5.1: needs a number from 0 to 5"),
    ("--white 0", "--white 0: needs a 16-bit value, 1 to 65535"),
    ("--white 65536", "--white 65536: needs a 16-bit value, 1 to 65535"),
    ("--seed -1", "--seed -1: needs a whole number from 0 to 2^63 - 1"),
    (f"--seed {2**63}", "needs a whole number from 0 to 2^63 - 1"),
    ("--label a b --ignore b c", "--label and --ignore both name b"),
    ("--negatives -1", "argument --negatives: invalid"), ("--negatives inf", "invalid"),
    ("--negatives some", "argument --negatives: invalid"), ("--switch 1", "--loss, --then, --sw"),
    ("--loss bce+dise", "--loss, --then, --switch: unknown loss 'dise'")])
def test_values_beyond_a_range_are_refused(capsys, words, line):
    assert line in refused(capsys, train, *words.split())


def test_tiles_of_whole_eighths_suit_deep_supervision():
    assert train("--deep-supervision", "--tile", "104").tile == 104


@pytest.mark.parametrize("words", [
    "--overlap 0", "--overlap 0.9", "--tile 1", "--batch 1", "--white 1", "--white 65535",
    "--min-area 1 --geojson", "--threshold 0", "--threshold 1"])
def test_infer_py_takes_the_first_and_the_last_value_of_a_range(words):
    name, value = words.split()[:2]
    assert getattr(infer(*words.split()), name[2:].replace("-", "_")) == float(value)


@pytest.mark.parametrize("words, line", [
    ("--overlap -0.1", "--overlap -0.1: needs a share from 0 to 0.9"),
    ("--overlap 0.91", "--overlap 0.91: needs a share from 0 to 0.9"),
    ("--tile 0", "--tile 0: needs a number from 1 up"),
    ("--batch 0", "--batch 0: needs a number from 1 up"),
    ("--white 65536", "--white 65536: needs a 16-bit value, 1 to 65535"),
    ("--min-area -1 --geojson", "--min-area -1: needs pixels from 0 up, and --geojson"),
    ("--min-area 1", "--min-area 1: needs pixels from 0 up, and --geojson"),
    ("--threshold -0.1", "--threshold -0.1: is a probability, 0 to 1"),
    ("--threshold 1.1", "--threshold 1.1: is a probability, 0 to 1")])
def test_infer_py_refuses_values_beyond_a_range(capsys, words, line):
    assert refused(capsys, infer, *words.split()) == line


def test_infer_py_needs_slides_models_and_a_folder(capsys):
    assert refused(capsys, infer_options, []).endswith("are required: SLIDE, --model, --out")


def test_compilation_needs_any_compiler_and_16_bits_on_a_cpu_its_instructions(
        capsys, monkeypatch):
    monkeypatch.setenv("CXX", "")
    monkeypatch.setattr(options.shutil, "which", lambda name: None)
    for read in (train, infer):
        assert refused(capsys, read, "--compile").startswith("--compile: there is no C++ compiler")
    monkeypatch.setattr(options.shutil, "which", lambda name: name == "cc")
    assert train("--compile").compile and infer("--compile").compile
    for has, warned in ((False, True), (True, False)):
        monkeypatch.setattr(options, "has_bfloat16", lambda has=has: has)
        for read, words in ((train, ["--amp", "on"]), (infer, ["--amp"])):
            assert read(*words).amp
            assert ("no bfloat16 instructions" in capsys.readouterr().err) == warned
            read()
            out, err = capsys.readouterr()
            assert err == "" and ("--amp would be" in out) == (has and read is infer)
    assert infer("--compile", "--device", "cpu") and capsys.readouterr().out == ""


def test_the_words_of_the_command_are_kept(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "3", "--device", "cpu"])
    given = train_options()
    assert given.command == sys.argv[1:] and given.seed == 3
