import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from lab import gpu, parts
from lab.checks import float32
from minseg import UNet
from minseg.unet import convolve_enlarged

TINY = Namespace(device="cpu", images=2, size=32, side=256, rounds=1, steps=(1, 1), amp=True)


@pytest.mark.slow
def test_the_decoder_is_timed_on_the_maps_of_a_step_and_literally_computes_the_same(tmp_path):
    rows = list(gpu.decoder(TINY, tmp_path))
    assert [row["way"] for row in rows[::6]] == ["[[2, 320, 1, 1], [2, 112, 2, 2]] to 256"] * 2
    assert rows[4]["way"] == "[[2, 32, 16, 16]] to 16"
    assert all(row["transposed_ms"] > 0 for row in rows if "asked" not in row)
    conv = UNet("efficientnet-lite0").block3.conv1[0]
    maps = torch.rand(1, 256, 4, 4), torch.rand(1, conv.in_channels - 256, 8, 8)
    torch.testing.assert_close(gpu.literally(conv, *maps), convolve_enlarged(conv, *maps))


def test_numbers_are_compared_with_exact_ones(tmp_path):
    cpu, again = float32(Namespace(device="cpu", size=64), tmp_path)
    assert 0 < cpu["logits"] < 1e-3 and 0 < cpu["loss"] < 1e-4 and 0 < cpu["gradients"] < 0.1
    assert not cpu["asked"]
    assert again["asked"] == {name: f"about {again[name]}, as on a CPU" for name in again["asked"]}


@pytest.mark.slow
def test_a_missing_peer_is_a_row_and_minseg_is_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    missing, ours = gpu.step(TINY, tmp_path)
    assert missing["skipped"].startswith("needs segmentation_models_pytorch: pip install")
    assert ours["images_a_second"] > 0 and "times_as_fast" not in ours


def test_the_table_shows_what_was_asked_and_what_is_missing():
    rows = [{"way": "loop", "images_a_second": 412.3, "asked": {"images_a_second": "at least 500"}},
            {"way": "smp", "skipped": "needs it"}, {"way": "other", "images_a_second": 1.0}]
    lines = parts.table({"a": {"state": "done", "rows": rows},
                         "b": {"state": "cut off after 3 s", "rows": []}}).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "measured asked", "a: loop, images_a_second 412.3 at least 500", "a: smp: skipped needs it",
        "b: cut off after 3 s"]


def found_then_sleep(args, folder):
    """Starts a process, says which, and takes too long."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield {"way": "row", "process": other.pid, "folder": str(folder)}
    time.sleep(600)


def found_then_fail(args, folder):
    """Fails."""
    yield {"way": "row"}
    raise ValueError("out\nof luck")


def found_then_die(args, folder):
    """Dies."""
    yield {"way": "row"}
    os._exit(7)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="looks into /proc")
def test_parts_that_take_too_long_fail_or_die_keep_their_rows_and_stop_no_other(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    kinds = {"late": found_then_sleep, "failed": found_then_fail, "dead": found_then_die}
    assert parts.run_all({name: (part, 0.5) for name, part in kinds.items()}, TINY, 1.0, path,
                         {"device": "none"})
    result = json.loads(path.read_text())
    assert result["device"] == "none" and result["minutes"] == 1.0
    assert [part["state"] for part in result["parts"].values()] == [
        "cut off after 30 s", "failed: ValueError: out of luck", "failed: its process ended with 7"]
    assert all(len(part["rows"]) == 1 for part in result["parts"].values())
    row = result["parts"]["late"]["rows"][0]
    stat = Path(f"/proc/{row['process']}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"  # nobody has asked for its end
    assert not Path(row["folder"]).exists()
    assert "late: Starts a process" in capsys.readouterr().out


@pytest.mark.slow
def test_without_a_gpu_everything_runs_small_on_the_cpu(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--minutes", "5", "--device", "cpu", "--out", str(tmp_path / "gpu.json")])
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert {"device", "commit", "torch", "date", "minutes", "images"} < set(result)
    assert list(result["parts"]) == list(gpu.PARTS)
    for name, part in result["parts"].items():
        if name != "compiled":  # a CPU may need more time than there is
            assert part["state"] == "done" and part["rows"] and part["seconds"] > 0, (name, part)
    rows = {row["way"]: row for part in result["parts"].values() for row in part["rows"]}
    assert rows["tests"]["failed"] == 0 < rows["tests"]["passed"]
    assert rows["train.py's loop"]["images_a_second"] > 0
    assert rows["killed and resumed"]["difference"] == 0  # a CPU repeats itself to the bit
    assert "asked" in capsys.readouterr().out
