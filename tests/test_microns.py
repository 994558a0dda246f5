"""--microns from the first slide to the last mask: both programs on mixed magnifications."""

import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import infer
import train
from minseg import predict_image
from minseg.files.datasets import find_slides, stated_sizes, unused_files
from minseg.files.slides import open_slide
from minseg.predictor import predictor
from minseg.run.checkpoint import load_ensemble, load_model
from minseg.run.options import train_options
from minseg.synthetic import synthetic_slide

pytestmark = pytest.mark.usefixtures("small_networks")
QUICK = ("--encoder efficientnet-lite0 --tile 64 --epochs 1 --batch 4 --device cpu").split()
DRAWN = 0.4  # µm, the pixels of the synthetic slides here


def write_tiff(path, image, microns):
    tifffile.imwrite(path, image, resolution=(1e4 / microns,) * 2, resolutionunit=3)


def write_slides(folder, sizes):
    """Synthetic slides with masks, resampled to pixels of `sizes` micrometres; None: not stated."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i, microns in enumerate(sizes):
        image, mask = synthetic_slide(i, 240, 200)
        shape = tuple(round(n * DRAWN / (microns or DRAWN)) for n in (200, 240))  # width, height
        image = Image.fromarray(image).resize(shape, Image.Resampling.BOX)
        mask = Image.fromarray(mask * 255).resize(shape, Image.Resampling.NEAREST)
        write_tiff(folder / f"images/s{i}.tif", np.asarray(image), microns or DRAWN)
        if microns is None:
            image.save(folder / f"images/s{i}.png")
            (folder / f"images/s{i}.tif").unlink()
        mask.save(folder / f"masks/s{i}.png")
    return folder


def fails(capsys, program, *arguments):
    """The one line with which a program ends that finds something wrong."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        program.main(list(map(str, arguments)))
    line, = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    return line


@pytest.fixture(scope="module")
def run(small_networks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    write_slides(folder / "data", (0.4, 0.55, 0.8, None))
    (folder / "data/slides.csv").write_text("id;microns\nS3.png;0,4\n")
    train.main(["--data", str(folder / "data"), "--microns", "1", "--out", str(folder / "runs/x"),
                *QUICK])
    return folder / "runs/x"


def test_slides_of_all_sizes_are_trained_on_and_scored_at_their_own_size(run):
    _, facts = load_model(run / "fold0/model.pt")
    assert (facts["microns"], facts["resample"], facts["scale"]) == (1, True, 1)
    config = json.loads((run / "config.json").read_text())
    assert (config["microns"], config["scale"]) == (1, 1)
    for item in find_slides(run.parent.parent / "data"):
        slide = item.open(microns=1)
        assert abs(slide.height - 96) <= 1 and abs(slide.width - 80) <= 1  # 240 x 200 of 0.4 µm
        if (run / f"fold0/probabilities/{item.id}.tiff").exists():
            written = open_slide(run / f"fold0/probabilities/{item.id}.tiff")
            assert (written.height, written.width) == (slide.full_height, slide.full_width)
            assert written.microns == pytest.approx(slide.microns, rel=1e-4)


def test_a_new_slide_of_any_size_is_brought_to_the_models(run, tmp_path):
    image, _ = synthetic_slide(9, 240, 200)
    small = Image.fromarray(image).resize((150, 180), Image.Resampling.BOX)
    write_tiff(tmp_path / "a.tif", image, 0.4)
    write_tiff(tmp_path / "b.tif", np.asarray(small), 0.4 / 0.75)
    model = run / "fold0/model.pt"
    infer.main([str(tmp_path / "a.tif"), str(tmp_path / "b.tif"), "--model", str(model), "--out",
                str(tmp_path / "o"), "--probabilities", "--device", "cpu"])
    for name, shape in (("a", (240, 200)), ("b", (180, 150))):
        written = tifffile.imread(tmp_path / f"o/{name}.probabilities.tiff")
        mask = tifffile.imread(tmp_path / f"o/{name}.tiff")
        assert written.shape == mask.shape == shape
        slide = load_ensemble([model]).open(tmp_path / f"{name}.tif")
        expected = predict_image(predictor([load_model(model)[0]], device="cpu"), slide.read_all(),
                                 tile=64, stride=32, turn=True)
        rows, columns = (torch.linspace(0, 1, 9)[1:-1] * n for n in shape)
        for y in rows.long():  # a grid of pixels, bilinear by hand
            for x in columns.long():
                places = [(int(n) + 0.5) / f - 0.5 for n, f in zip((y, x), slide.scaling.factors)]
                (top, left), (down, right) = zip(*((int(p), p - int(p)) for p in places))
                four = expected[0, top : top + 2, left : left + 2]
                value = (four * torch.outer(torch.tensor([1 - down, down]),
                                            torch.tensor([1 - right, right]))).sum()
                assert abs(written[y, x] / 255 - value) < 0.6 / 255
    one, other = (Image.open(tmp_path / f"o/{name}.probabilities.tiff") for name in "ab")
    difference = np.asarray(one.resize(other.size)).astype(int) - np.asarray(other)
    assert abs(difference).mean() < 8  # of 255: one field, two magnifications


def test_without_a_size_of_its_pixels_a_slide_is_refused_and_a_table_gives_it(
        run, tmp_path, capsys):
    data = shutil.copytree(run.parent.parent / "data", tmp_path / "data")
    (data / "slides.csv").unlink()
    line = fails(capsys, train, "--data", data, "--microns", "1", "--out", tmp_path / "r/x", *QUICK)
    remedy = f"add a line for it to {data / 'slides.csv'}, under the headings id,microns"
    assert f"{data / 'images/s3.png'}: states no usable size" in line and line.endswith(remedy)
    assert not (tmp_path / "r/x").exists()
    slide, start = tmp_path / "new.png", ["--model", run / "fold0/model.pt", "--device", "cpu",
                                          "--out", tmp_path / "o"]
    shutil.copy(data / "images/s3.png", slide)
    line = fails(capsys, infer, slide, *start)
    assert "states no usable size" in line and str(tmp_path / "slides.csv") in line
    assert not list((tmp_path / "o").iterdir())
    (tmp_path / "slides.csv").write_text("id,microns,stain\nnew,0.4,PAS\n")
    infer.main([str(slide), *map(str, start)])
    mask = open_slide(tmp_path / "o/new.tiff")
    assert (mask.height, mask.width) == (240, 200)
    assert mask.microns == pytest.approx(0.4, rel=1e-4)
    (tmp_path / "slides.csv").write_text("id,microns\nnew,0.5\n")
    assert "made in another way" in fails(capsys, infer, slide, *start)
    for size in ("0", "-1", "x", "300", "0.4 µm"):
        (tmp_path / "slides.csv").write_text(f"id,microns\nnew,{size}\n", encoding="utf-8")
        assert f"slides.csv: states {size} for new" in fails(capsys, infer, slide, *start)
    (tmp_path / "slides.csv").unlink()
    for path in (tmp_path / "nowhere", tmp_path):  # a link to nothing, and to a folder
        (tmp_path / "slides.csv").symlink_to(path)
        assert str(tmp_path / "slides.csv") in fails(capsys, infer, slide, *start)
        (tmp_path / "slides.csv").unlink()


def test_images_that_are_links_have_their_sizes_in_the_table_of_their_own_folder(tmp_path):
    write_slides(tmp_path / "archive", (0.4, None))
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/masks").symlink_to(tmp_path / "archive/masks")
    for path in (tmp_path / "archive/images").iterdir():
        (tmp_path / "data/images" / path.name).symlink_to(path)
    for folder, size in (("archive", 0.1), ("data", 0.5)):
        (tmp_path / folder / "slides.csv").write_text(f"id,microns\ns0,{size}\ns1,{size}\n")
    items = find_slides(tmp_path / "data")
    assert [item.pixel_size for item in items] == [0.5, 0.5]
    (tmp_path / "images").symlink_to(tmp_path / "archive/images")  # a link to the whole folder
    (tmp_path / "slides.csv").write_text("id,microns\ns1,0.6\n")
    path = tmp_path / "images/s1.png"
    assert stated_sizes([path]) == {path: 0.6}


def test_all_folds_of_a_run_have_slides_of_the_same_sizes(run, tmp_path, capsys):
    data = shutil.copytree(run.parent.parent / "data", tmp_path / "data")
    shutil.copytree(run, tmp_path / "r/x")
    shutil.rmtree(tmp_path / "r/x/fold0")
    (tmp_path / "r/x/fold1").mkdir()
    options = ["--data", data, "--microns", "1", "--out", tmp_path / "r/x", "--fold", "0", *QUICK]
    (data / "slides.csv").write_text("id,microns\ns3,0.2\n")
    assert "changed since: s3 (slides.csv): put back" in fails(capsys, train, *options)
    (data / "slides.csv").write_text("microns,id\n0.40,S3\n")
    train.main(list(map(str, options)))


def test_a_table_of_sizes_counts_without_microns_too_and_others_are_not_used(tmp_path):
    data = write_slides(tmp_path / "data", (0.4, None))
    assert [item.pixel_size for item in find_slides(data)] == [None, None]
    (data / "slides.csv").write_text("id,stain\ns0,PAS\n")
    items = find_slides(data)
    assert [item.pixel_size for item in items] == [None, None]
    assert data / "slides.csv" in unused_files(data, items)
    (data / "slides.csv").write_text("id,microns\nimages/s1.png,0.5\ns0,\n")
    items = find_slides(data)
    assert [item.open().microns for item in items] == [pytest.approx(0.4, rel=1e-4), 0.5]
    assert data / "slides.csv" not in unused_files(data, items)
    (data / "slides.csv").write_text("id,microns\ns1,0.5\nS1.png,0.25\n")
    with pytest.raises(ValueError, match="two lines for"):
        find_slides(data)
    (data / "slides.csv").write_text("id,microns\ns1,0.5\ns11,0.25\n")
    with pytest.raises(ValueError, match="slides.csv: names s11, but there is no such image"):
        find_slides(data)
    for other in (b"id,microns\ns1,0.5 \xb5m\n", b"section,microns\n1,4\n"):
        (data / "slides.csv").write_bytes(other)  # not text; the thickness of sections
        items = find_slides(data)
        assert not any(item.pixel_size for item in items)
        assert data / "slides.csv" in unused_files(data, items)


def test_another_size_is_another_run_and_networks_of_two_sizes_are_not_mixed_up(
        run, tmp_path, capsys):
    data = run.parent.parent / "data"
    options = ["--data", data, "--out", run, "--resume", *QUICK]
    assert "--microns" in fails(capsys, train, *options, "--microns", "2")
    assert "--microns" in fails(capsys, train, *options)
    assert "give one" in fails(capsys, train, *options, "--microns", "2", "--scale", "2")
    for wrong in ("0", "-1", "nan", "1e9"):
        assert "needs micrometres" in fails(capsys, train, *options, "--microns", wrong)
    checkpoint = torch.load(run / "fold0/model.pt", weights_only=True)
    for change, words in (({"microns": 2}, "--microns 2"), ({"resample": False}, "--scale 1")):
        torch.save({**checkpoint, **change}, tmp_path / "b.pt")
        with pytest.raises(ValueError) as error:
            load_ensemble([run / "fold0/model.pt", tmp_path / "b.pt"])
        assert words in str(error.value) and "--microns 1:" in str(error.value)
    torch.save({**checkpoint, "microns": None}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="it holds"):
        load_model(tmp_path / "b.pt")


def test_what_is_told_of_the_data_is_in_micrometres(tmp_path, capsys):
    data = write_slides(tmp_path / "data", (0.4, 0.8, 0.5, 0.4))
    args = train_options(["--data", str(data), "--microns", "1.6", "--out", str(tmp_path / "r/x"),
                          *QUICK])
    assert train.prepare(args).microns == 1.6
    told = capsys.readouterr().out
    assert "pixels at --microns 1.6)" in told and "different pixel size" not in told
    assert "4 of 4 images are smaller than a tile of 64 x 64 pixels at --microns 1.6" in told
