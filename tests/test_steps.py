import argparse
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lab.bench import main
from lab.steps import Alive, Traffic, alive_after, kept_bytes, minseg_step, multiply_adds

SMALL = argparse.Namespace(images=2, size=64, device="cpu", amp=False, loss="dice+lovasz")


def test_traffic_counts_what_goes_in_and_out_and_views_for_nothing():
    x = torch.ones(100)
    with Traffic() as moved:
        x.view(10, 10)[2:]
        assert moved.bytes == 0
        x + 1
    assert moved.bytes == 800  # 100 floats read, 100 written


def test_alive_counts_what_is_kept_once_and_forgets_what_is_freed():
    x = torch.ones(100, requires_grad=True)
    assert alive_after(lambda: x.exp()) == 400  # exp keeps its result, which is here anyway
    assert alive_after(lambda: x * 2 + 1) == 400  # the product is needed by nobody
    weight = torch.ones(100, requires_grad=True)
    assert alive_after(lambda: x.exp() * weight) == 800  # its factors are, and one is new
    with Alive() as alive:
        y = x.exp()
    assert alive.bytes() == 400
    del y
    assert alive.bytes() == 0


def test_kept_bytes_are_those_of_the_larger_image_and_fewer_recomputed():
    small, large = ({**vars(SMALL), "size": size} for size in (128, 256))
    small, large = (kept_bytes(argparse.Namespace(**args), "efficientnet-lite0", "all")
                    for args in (small, large))
    assert large == pytest.approx(4 * small, rel=0.1)
    args = argparse.Namespace(**{**vars(SMALL), "size": 256})
    assert kept_bytes(args, "efficientnet-lite0", "all", recompute=True) < 0.6 * large
    args.amp = True
    assert kept_bytes(args, "efficientnet-lite0", "all") < 0.8 * large


def test_multiply_adds_are_those_of_one_image():
    class One(nn.Module):
        def __init__(self, *arguments, **options):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 1)

        def forward(self, x):
            return self.conv(x)

    import lab.steps as steps
    unet, steps.UNet = steps.UNet, One
    try:
        assert multiply_adds(SMALL, "any", "plain") == 3 * 5 * 64 * 64
    finally:
        steps.UNet = unet


def test_the_step_that_is_measured_learns():
    args = argparse.Namespace(**{**vars(SMALL), "loss": "bce+dice"})
    torch.manual_seed(0)
    step = minseg_step(args, "efficientnet-lite0", "plain")
    losses = [step().item() for _ in range(12)]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "memory", "loader"])
def test_the_benches_write_rows_with_what_they_measured(what, tmp_path, monkeypatch):
    size = 640 if what == "loader" else 32
    main([what, "--images", "2", "--size", str(size), "--rounds", "1", "--encoders",
          "efficientnet-lite0", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / f"bench-{what}.json").read_text())["rows"]
    figure = {"train": "images_a_second", "memory": "kept_mib_an_image",
              "loader": "images_a_second"}[what]
    assert len(rows) >= 2 and all(row[figure] > 0 and row["size"] == size for row in rows)
    if what == "train":
        times = rows[0]["milliseconds"]
        assert len(times) == 12 and times["operators"] > 0 and times["step"] > 0
        assert [row["way"] for row in rows] == ["minseg", "minseg, recomputed"]
        assert all(row["share_of_bandwidth"] > 0 and row["peak_gib"] > 0 for row in rows)


@pytest.mark.slow
def test_three_runs_of_one_seed_are_the_same_on_a_cpu(tmp_path):
    main(["spread", "--images", "2", "--size", "32", "--encoders", "efficientnet-lite0", "--out",
          str(tmp_path)])
    row = json.loads((tmp_path / "bench-spread.json").read_text())["rows"][0]
    assert row["spread"] == 0 and len(set(row["losses"])) == 1


def test_the_page_of_measurements_quotes_what_the_benches_wrote():
    root = Path(__file__).parent.parent
    page = (root / "docs/measured.md").read_text()

    def read(name):
        return json.loads((root / f"docs/results/bench-{name}.json").read_text())["rows"]

    rows = [row for row in read("train") if row["tricks"] == "plain"]
    theirs = next(row["images_a_second"] for row in rows if row["way"] == "smp")
    for row in rows:
        rate = row["images_a_second"]
        assert f"| {rate:.2f} | {rate / theirs:.2f} × | {row['peak_gib']:.2f} GiB |" in page
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
            "{deep:.1f} MiB".format(kept["plain"], **dict(more.items()))) in text
    two = next(row for row in read("loader") if row["workers"] == 2)
    assert f"feeds {two['images_a_second']:,.0f} images of 640 × 640" in text
