import subprocess
import sys

import pytest

import minseg

DATA_PACKAGES = ("tifffile", "PIL")


NAMES = ("EfficientNet load_weights UNet AttentionGate SCSE CBAM Hypercolumn dice_loss dice_score "
         "lovasz_hinge deep_supervision_loss make_loss tile_starts blend_window predict_bands "
         "predict_image flips_and_turns epoch_indices group_folds best_threshold rle_encode "
         "rle_decode open_slide")


def test_every_public_name_is_there():
    for name in NAMES.split():
        assert getattr(minseg, name).__doc__, name
    with pytest.raises(AttributeError, match="no_such_trick"):
        minseg.no_such_trick


def test_importing_minseg_does_not_import_what_only_slides_need():
    code = f"import sys, minseg; print(sorted(set({DATA_PACKAGES}) & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
