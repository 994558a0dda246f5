import argparse
import json
from functools import partial
from pathlib import Path

import pytest
import torch

from lab.bench import Concatenation, kept_bytes, main, minseg_step
from minseg import Hypercolumn, UNet, hypercolumn, predictor
from minseg.run import memory
from minseg.run.checkpoint import save_model

ROOT = Path(__file__).parent.parent


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
    assert "logits random" in capsys.readouterr().out


@pytest.mark.slow
def test_the_hypercolumn_bench_finds_the_concatenation_larger(tmp_path, capsys):
    main(["hypercolumn", "--images", "1", "--size", "256", "--rounds", "1", "--out", str(tmp_path)])
    row = json.loads((tmp_path / "bench-hypercolumn.json").read_text())["rows"][0]
    assert row["shape"] == [1, 496, 256, 256]
    assert 0 <= row["peak_gib"]["minseg"] < row["peak_gib"]["concatenation"]
    assert "peak_gib" in capsys.readouterr().out


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


def test_kept_bytes_are_those_of_the_larger_image_and_fewer_when_recomputed():
    kept = partial(kept_bytes, "efficientnet-lite0", "all")
    small = kept(128)
    assert kept(256) == pytest.approx(4 * small, rel=0.1)
    assert kept(128, recompute=True) < 0.6 * small


def test_the_step_that_is_measured_learns():
    torch.manual_seed(0)
    args = argparse.Namespace(images=2, size=32, device="cpu", amp=False)
    step = minseg_step(args)
    losses = [step().item() for _ in range(8)]
    assert min(losses[-2:]) < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("what, size, measure", [
    ("train", 32, "images_a_second"), ("memory", 32, "kept_mib_an_image"),
    ("tiling", 600, "megapixels_a_second"), ("spread", 32, "gib"), ("limit", 32, "gflop")])
def test_the_benches_write_rows_with_what_they_measured(what, size, measure, tmp_path):
    main([what, "--images", "2", "--size", str(size), "--rounds", "1", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / f"bench-{what}.json").read_text())["rows"]
    assert len(rows) >= 2 and all(row["bench"] == what and row[measure] >= 0 for row in rows)
    if what == "spread":
        *groups, whole = rows
        assert {"convolution, backward", "loss", "optimiser", "EMA"} < {
            row["operators"] for row in groups}
        assert sum(row["gib"] for row in groups) == pytest.approx(whole["gib"], abs=0.02)
        assert whole["share_of_bound"] > 0 and whole["milliseconds"] > 0
    if what == "train":
        assert [row["way"] for row in rows] == ["minseg", "minseg, memory not kept",
                                                "minseg, recomputed"]
        assert all(row["peak_gib"] > 0 for row in rows)


@pytest.mark.slow
def test_the_bench_of_slides_counts_what_they_leave_behind(tmp_path):
    main(["slides", "--images", "3", "--size", "512", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "bench-slides.json").read_text())["rows"]
    assert [(row["work"], row["slides"], row["more_open_files"]) for row in rows] == [
        ("cut", 3, 0), ("segment", 3, 0)]
    assert all(row["mib_above_the_first"] < 100 for row in rows)


def test_the_page_of_measurements_quotes_what_the_bench_wrote():
    page = (ROOT / "docs/measured.md").read_text()
    rows = json.loads((ROOT / "docs/results/bench-lovasz.json").read_text())["rows"]
    for row in rows:
        ours, theirs = row["seconds"]["minseg"], row["seconds"]["smp"]
        assert f"| {row['positive_hinges']:.1%} |".replace("%", " %") in page
        assert f"| {ours:.3f} s | {theirs:.3f} s | {row['ratio']:.3f} |" in page
    row = json.loads((ROOT / "docs/results/bench-hypercolumn.json").read_text())["rows"][0]
    for name in ("minseg", "concatenation"):
        gib, seconds = row["peak_gib"][name], row["seconds"][name]
        assert f"| {gib:.3f} GiB | {seconds:.3f} s |" in page
        chapter = " ".join(hypercolumn.__doc__.split())
        assert f"{gib:.2f} GiB" in chapter and f"{seconds:.1f} s" in chapter
    for row in json.loads((ROOT / "docs/results/bench-tiling.json").read_text())["rows"]:
        if row["bench"] == "tiling":
            size = " × ".join(f"{n:,}" for n in row["size"])
            wanted = [f"| {size} |", f"| {row['seconds']} s | {row['megapixels_a_second']} Mpx/s | "
                                     f"{row['peak_gib_above_idle']} GiB |"]
        else:
            wanted = [f"| {row['seconds']} s | {row['times_as_fast']} × |",
                      f"| {row['dice_of_masks']:.5f} |"]
        assert any(all(part in line for part in wanted) for line in page.splitlines())
    for row in json.loads((ROOT / "docs/results/bench-slides.json").read_text())["rows"]:
        assert (f"| {row['slides']} | {row['work']} | {row['mib_above_the_first']} MiB | "
                f"{row['more_open_files']} |") in page


def test_the_page_of_measurements_quotes_the_limit_and_what_must_stay_in_float32():
    page = (ROOT / "docs/measured.md").read_text()
    rows = json.loads((ROOT / "docs/results/bench-limit.json").read_text())["rows"]
    for row in rows:
        line = (f"{row['milliseconds']:.0f} ms | {row['gflop']:.1f} GFLOP | {row['gib']:.2f} GiB | "
                f"{row['share_of_product']:.0%} | {row['share_of_copy']:.0%} |")
        assert line.replace("%", " %") in page
    products = [1e3 * row["product_tflop_a_second"] for row in rows]
    assert (f"reaches {products[0]:.0f} GFLOP/s in float32 and {products[2]:.0f} in bfloat16, the "
            f"copy {rows[0]['copy_gb_a_second']:.0f} GB/s") in page
    rows = json.loads((ROOT / "docs/results/bench-precision.json").read_text())["rows"]
    for row in rows:
        assert (f"| {row['in_float32']} | {row['milliseconds']:.0f} ms | "
                f"{row['largest_difference']:.2f} | {row['dice_of_masks']:.5f} |") in page
    part = {row["in_float32"]: row for row in rows}
    chapter = " ".join(predictor.__doc__.split())
    for name in ("nothing", "the first convolution", "the decoder"):
        assert f"{part[name]['dice_of_masks']:.4f}" in chapter


def test_the_page_of_measurements_quotes_the_gpu():
    page = " ".join((ROOT / "docs/measured.md").read_text().split())
    rows = json.loads((ROOT / "docs/results/h200/bench-spread.json").read_text())["rows"]
    for row in rows:
        if row["milliseconds"] >= 0.5:
            assert (f"| {row['operators']} | {row['gib']:.1f} | {row['milliseconds']:.1f} ms |"
                    in page)
    rate = rows[-1]["images_a_second"]
    assert f"({rate:.0f} images per second)" in page
    assert f"is {18_000 / rate:.0f} seconds of such steps" in page
    assert f"{rows[-1]['share_of_bound']:.0%} of that".replace("%", " %") in page
    row = json.loads((ROOT / "docs/results/h200/bench-lovasz.json").read_text())["rows"][0]
    ours, theirs = (1e3 * row["seconds"][name] for name in ("minseg", "smp"))
    assert f"backward: {ours:.1f} ms, and {theirs:.1f} ms in" in page


def test_the_page_of_measurements_quotes_the_training_steps():
    page = (ROOT / "docs/measured.md").read_text()

    def read(name):
        return json.loads((ROOT / f"docs/results/bench-{name}.json").read_text())["rows"]

    rows = [row for row in read("train") if row.get("tricks", "plain") == "plain"]
    theirs = next(row["images_a_second"] for row in rows if row["way"] == "smp")
    for row in rows:
        rate = row["images_a_second"]
        peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:.2f} GiB"
        assert f"| {rate:.2f} | {rate / theirs:.2f} × | {peak} |" in page
    rate = {row["way"]: row["images_a_second"] for row in rows}
    faster = rate["minseg"] / rate["minseg, memory not kept"]
    assert f"is {faster:.1f} times as fast" in " ".join(memory.__doc__.split())
    faster = rate["smp, everything added"] / rate["smp, memory kept"]
    race = " ".join((ROOT / "docs/race.md").read_text().split())
    assert f"would make its step {faster:.2f} times as fast" in race
    for recomputed in (False, True):
        batches = [row["gib"] for row in read("memory")
                   if row["tricks"] == "all" and row["recomputed"] == recomputed]
        assert "| " + " | ".join(f"{gib:.1f}" for gib in batches) + " |" in page
    kept = {row["tricks"]: row["kept_mib_an_image"] for row in read("memory")
            if row["encoder"] == "efficientnet-b0" and not row["recomputed"]}
    more = {tricks: mib - kept["plain"] for tricks, mib in kept.items()}
    text = " ".join(page.split())
    assert ("Beyond the {:.0f} MiB per image that the plain B0 keeps: gates {gates:.0f}, SCSE "
            "{scse:.0f}, CBAM {cbam:.0f}, hypercolumn {hypercolumn:.0f}, deep supervision "
            "{deep:.1f} MiB".format(kept["plain"], **more)) in text
