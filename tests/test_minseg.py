import doctest
import importlib
import os
import subprocess
import sys

import pytest

import minseg

DATA_PACKAGES = ("tifffile", "PIL")
TRICKS = ("unet efficientnet pretrained attention_gate scse cbam hypercolumn dice lovasz losses "
          "deep_supervision sampling tiling tta crossval").split()
NAMES = ("EfficientNet load_weights UNet AttentionGate SCSE CBAM Hypercolumn dice_loss dice_score "
         "lovasz_hinge deep_supervision_loss make_loss tile_starts blend_window predict_bands "
         "predict_image flips_and_turns epoch_indices group_folds best_threshold rle_encode "
         "rle_decode open_slide")


def test_every_public_name_is_there():
    for name in NAMES.split():
        assert getattr(minseg, name).__doc__, name
    with pytest.raises(AttributeError, match="no_such_trick"):
        _ = minseg.no_such_trick


def test_importing_minseg_does_not_import_what_only_slides_need():
    before = dict(sys.modules)
    try:
        for name in before:
            if name.split(".")[0] in ("minseg", *DATA_PACKAGES):
                del sys.modules[name]
        fresh = importlib.import_module("minseg")
        assert fresh is not minseg and fresh.UNet is not minseg.UNet
        assert not set(DATA_PACKAGES) & set(sys.modules)
    finally:
        sys.modules.clear()
        sys.modules.update(before)


@pytest.mark.parametrize("trick", TRICKS)
def test_the_example_of_a_trick_can_be_pasted(trick):
    page = importlib.import_module(f"minseg.{trick}").__doc__
    example = doctest.DocTestParser().get_doctest(page, {}, trick, None, 0)  # no names are there
    assert len(example.examples) > 2
    assert not doctest.DocTestRunner().run(example).failed


def test_it_is_found_beside_a_folder_of_its_name(tmp_path):
    """As in the folder that holds the clone, where `minseg` is first of all the clone itself."""
    (tmp_path / "parent" / "minseg" / "minseg").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(folder):
        command = [sys.executable, "-c", "from minseg import UNet; print(UNet.__name__)"]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    if run(tmp_path).returncode:
        pytest.skip("minseg is not installed: python -m pip install -e .")
    found = run(tmp_path / "parent")
    assert found.stdout == "UNet\n", found.stderr
