import json
from pathlib import Path

import pytest
import torch

from lab.bench import Concatenation, in_turn, main
from minseg import Hypercolumn, UNet, hypercolumn
from minseg.run.checkpoint import save_model


def test_functions_are_timed_in_turn_after_a_warm_up():
    calls = []
    medians = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3 and set(medians) == {"a", "b"}


def test_the_lovasz_bench_writes_its_figures_with_device_and_commit(tmp_path, capsys):
    torch.manual_seed(0)
    save_model(tmp_path / "model.pt", {"encoder": "efficientnet-lite0"},
               UNet("efficientnet-lite0").state_dict(), scale=2, tile=64, threshold=0.5)
    main(["lovasz", "--images", "2", "--size", "64", "--rounds", "1", "--out", str(tmp_path),
          "--model", str(tmp_path / "model.pt")])
    result = json.loads((tmp_path / "bench-lovasz.json").read_text())
    assert {"device", "commit", "torch", "threads"} <= set(result)
    assert [row["logits"] for row in result["rows"]] == ["random", "trained"]
    assert all(row["seconds"]["minseg"] > 0 for row in result["rows"])
    assert result["rows"][0]["positive_hinges"] == pytest.approx(0.84, abs=0.02)
    assert "random logits" in capsys.readouterr().out


@pytest.mark.slow
def test_the_hypercolumn_bench_finds_the_concatenation_larger(tmp_path, capsys):
    main(["hypercolumn", "--images", "1", "--size", "256", "--rounds", "1", "--out", str(tmp_path)])
    row = json.loads((tmp_path / "bench-hypercolumn.json").read_text())["rows"][0]
    assert row["shape"] == [1, 496, 256, 256]
    assert 0 <= row["peak_gib"]["minseg"] < row["peak_gib"]["concatenation"]
    assert "beyond its maps" in capsys.readouterr().out


def test_the_concatenation_that_is_measured_is_the_hypercolumn():
    torch.manual_seed(0)
    ours, literal = Hypercolumn((4, 8), 3), Concatenation((4, 8), 3)
    literal.project.weight.data = torch.cat([part.weight for part in ours.project], 1).data
    maps = [torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)]
    torch.testing.assert_close(ours(maps), literal(maps), atol=1e-5, rtol=1e-5)


def test_a_missing_peer_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "segmentation_models_pytorch", None)
    monkeypatch.setitem(__import__("sys").modules, "segmentation_models_pytorch.losses", None)
    with pytest.raises(SystemExit) as error:
        main(["lovasz", "--against", "smp", "--images", "1", "--size", "8", "--out", str(tmp_path)])
    assert error.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_page_of_measurements_quotes_what_the_bench_wrote():
    root = Path(__file__).parent.parent
    page = (root / "docs/measured.md").read_text()
    rows = json.loads((root / "docs/results/bench-lovasz.json").read_text())["rows"]
    for row in rows:
        ours, theirs = row["seconds"]["minseg"], row["seconds"]["smp"]
        assert f"| {row['positive_hinges']:.1%} |".replace("%", " %") in page
        assert f"| {ours:.3f} s | {theirs:.3f} s | {row['ratio']:.3f} |" in page
    row = json.loads((root / "docs/results/bench-hypercolumn.json").read_text())["rows"][0]
    for name in ("minseg", "concatenation"):
        gib, seconds = row["peak_gib"][name], row["seconds"][name]
        assert f"| {gib:.3f} GiB | {seconds:.3f} s |" in page
        assert f"{gib:.2f} GiB" in hypercolumn.__doc__ and f"{seconds:.1f} s" in hypercolumn.__doc__
    for row in json.loads((root / "docs/results/bench-tiling.json").read_text())["rows"]:
        if row["bench"] == "tiling":
            size = " × ".join(f"{n:,}" for n in row["size"])
            wanted = [f"| {size} |", f"| {row['seconds']} s | {row['megapixels_a_second']} Mpx/s | "
                                     f"{row['peak_gib_above_idle']} GiB |"]
        else:
            wanted = [f"| {row['seconds']} s | {row['times_as_fast']} × |",
                      f"| {row['dice_of_masks']:.5f} |"]
        assert any(all(part in line for part in wanted) for line in page.splitlines())
    row = json.loads((root / "docs/results/bench-rle.json").read_text())["rows"][0]
    assert f"{row['seconds']} s and {row['peak_mib_beyond_the_mask']} MiB beyond" in page
