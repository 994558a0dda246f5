"""Folders that are not read: doing what the message says makes a data set that is read."""

import re
import shutil
from pathlib import Path

import pytest

from minseg.files import layouts, tables
from minseg.files.datasets import GROUPS, PATIENTS, find_slides, unused_files
from minseg.files.layouts import files_of, name_of
from minseg.run import prepare
from minseg.run.describe import report_unused
from minseg.run.prepare import leave_out, read_ids

GEOJSON = '{"type": "FeatureCollection", "features": []}'


def put(folder, *names, text=""):
    """Files in a folder, by their paths in it."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def pairs(folder, *more, text=""):
    """A sound data set of the images a and b, and further files."""
    put(folder, "images/a.png", "images/b.png", "masks/a.png", "masks/b.png")
    return put(folder, *more, text=text)


def hubmap(folder, *more, text="", codes="id,encoding\na,1 1\nb,2 2\n"):
    """The same in HuBMAP's layout."""
    put(folder, "train/a.tiff", "train/b.tiff")
    put(folder, "train.csv", text=codes)
    return put(folder, *more, text=text)


def move(folder, *renamed):
    """Renames files or folders: "old -> new"."""
    for each in renamed:
        old, new = each.split(" -> ")
        (folder / new).parent.mkdir(parents=True, exist_ok=True)
        (folder / old).rename(folder / new)


def remove(folder, *names):
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def each_its_own(folder):
    """The layout of DSB 2018."""
    for x in "ab":
        put(folder, f"{x}/images/{x}.png", *(f"{x}/masks/{i}{i}.png" for i in range(3)))
    return folder


def collected(folder):
    """What docs/masks.md does with such a folder."""
    return str(pairs(folder))


def holder(message):
    """The folder that a message says to hold a folder for each image."""
    return Path(message.partition(": holds")[0])


def given(message, folder):
    """The folder that a message says to give as --data."""
    return re.search(r"give --data (\S+)$", message)[1]


# Each row: a name; how the folder is made; words of the message; what it says to do. The last may
# return the folder that is then read. Afterwards the data set has the images a and b.
ROWS = [
    ("an empty folder", lambda d: d.mkdir(), "add the images, and a mask for each image", pairs),
    ("no masks", lambda d: remove(pairs(d), "masks"),
     "DIR/masks: no such folder: --data must contain images/ and masks/, or train/ and train.csv: "
     "add it, with a mask for each image, of the same name", pairs),
    ("a file", lambda d: put(d.parent, d.name), "is a file: --data takes the folder",
     lambda d, _: (d.unlink(), pairs(d))[1]),
    ("a split in subfolders", lambda d: put(pairs(d / "train").parent, "val/images/c.png",
                                            "val/masks/c.png"),
     "holds a data set in a subfolder: give --data DIR/train", lambda d, m: given(m, d)),
    ("a split in subfolders with a list", lambda d: put(
        pairs(d / "train").parent, "train.csv", text="id,fold\na,0\n"),
     "give --data DIR/train", lambda d, m: given(m, d)),
    ("a folder for each image", lambda d: each_its_own(d),
     "DIR: holds a folder for each image, as DSB 2018 has it: collect them in images/ and masks/ "
     "(docs/masks.md)", lambda d, _: collected(d)),
    ("a folder for each image, in a subfolder", lambda d: each_its_own(d / "stage1_train"),
     "DIR/stage1_train: holds a folder for each image", lambda d, m: collected(holder(m))),
    ("the folder of one image", lambda d: each_its_own(d) and move(
        d, "a/images -> images", "a/masks -> masks", f"images/a.png -> images/{d.name}.png"),
     "DIR: is the folder of one image, as DSB 2018 has it", lambda d, m: pairs(remove(
         d, "images", "masks") or d) and None),
    ("a folder too many", lambda d: hubmap(d / "unpacked"),
     "give --data DIR/unpacked", lambda d, m: given(m, d)),
    ("folders by the split", lambda d: put(d, "images/train/a.png", "images/val/b.png",
                                           "masks/train/a.png", "masks/val/b.png"),
     "DIR/images/train: is a subfolder: move its files into DIR/images",
     lambda d, _: move(d, *(f"{part}/{file} -> {part}/{file[-5:]}" for part in ("images", "masks")
                            for file in ("train/a.png", "val/b.png")))),
    ("images far down", lambda d: put(pairs(d), "images/more/deep/c.png"),
     "DIR/images/more: is a subfolder", lambda d, _: remove(d, "images/more")),
    ("masks beside the images", lambda d: put(d, "a.png", "a_mask.png", "b.png", "b_mask.png"),
     "move the images into DIR/images, and the masks",
     lambda d, _: move(d, *(f"{x}.png -> images/{x}.png" for x in "ab"),
                       *(f"{x}_mask.png -> masks/{x}_mask.png" for x in "ab"))),
    ("img and label", lambda d: move(pairs(d), "images -> img", "masks -> label"),
     "rename that of the images to images and that of the masks to masks, or add it (there is img, "
     "label)", lambda d, _: move(d, "img -> images", "label -> masks")),
    ("imgs", lambda d: move(pairs(d), "images -> imgs"),
     "rename that of the images to images, or add it (there is imgs)",
     lambda d, _: move(d, "imgs -> images")),
    ("annotations", lambda d: move(pairs(d), "masks -> annotations"),
     "rename that of the masks to masks", lambda d, _: move(d, "annotations -> masks")),
    ("capitals", lambda d: move(pairs(d), "images -> Images", "masks -> Masks"),
     "(there is Images, Masks)", lambda d, _: move(d, "Images -> images", "Masks -> masks")),
    ("many folders", lambda d: move(
        pairs(d, *(f"{k}/note.txt" for k in range(9))), "masks -> masken"),
     "or add it (there is 0, 1, 2, 3, 4, 5, 6, 7)", lambda d, _: move(d, "masken -> masks")),
    ("Carvana's", lambda d: put(d, "train/a.jpg", "train/b.jpg", "train_masks/a_mask.png",
                                "train_masks/b_mask.png"),
     "(there is train, train_masks)",
     lambda d, _: move(d, "train -> images", "train_masks -> masks")),
    ("two data sets", lambda d: hubmap(pairs(d)),
     "DIR: holds two data sets: move train and train.csv to another folder, or images and masks",
     lambda d, _: remove(d, "train", "train.csv")),
    ("two data sets, the other left", lambda d: hubmap(pairs(d)), "holds two data sets",
     lambda d, _: remove(d, "images", "masks")),
    ("two data sets, one of polygons", lambda d: put(pairs(d), "train/c.tif", "train/c.json"),
     "move train to another folder", lambda d, _: remove(d, "train")),
    ("code beside masks", lambda d: put(pairs(d), "train.csv", text="ID;Encoding\na;1 1\n"),
     "move train.csv to another folder", lambda d, _: remove(d, "train.csv")),
    ("code without its images", lambda d: move(hubmap(d), "train -> images"),
     "DIR/train: no such folder: put the images of DIR/train.csv there",
     lambda d, _: move(d, "images -> train")),
    ("other headings", lambda d: hubmap(d, codes="id,rle\na,1 1\nb,2 2\n"),
     "columns id,encoding once each, but names id, rle: rename them",
     lambda d, _: put(d, "train.csv", text="id,encoding\na,1 1\nb,2 2\n")),
    ("ASAP's annotations", lambda d: move(pairs(d), *(f"masks/{x}.png -> masks/{x}.xml"
                                                     for x in "ab")),
     "DIR/masks/a.xml: .xml is ASAP's or Aperio's: convert it (docs/masks.md)",
     lambda d, _: put(d, "masks/a.geojson", "masks/b.geojson", text=GEOJSON)),
    ("Hamamatsu's annotations", lambda d: move(pairs(d), "masks/a.png -> masks/a.ndpa"),
     "DIR/masks/a.ndpa: .ndpa is Hamamatsu's: convert it (docs/masks.md)",
     lambda d, _: put(d, "masks/a.json", text=GEOJSON)),
    ("ImageJ's annotations", lambda d: move(pairs(d), "masks/a.png -> masks/a.roi"),
     "DIR/masks/a.roi: .roi is ImageJ's: convert it (docs/masks.md)",
     lambda d, _: put(d, "masks/a.geojson", text=GEOJSON)),
    ("COCO's annotations", lambda d: put(remove(pairs(d), "masks") or d, "masks/instances.json"),
     "DIR/masks/instances.json has no image: if it holds the objects of all images, as COCO's "
     "does, convert it (docs/masks.md)",
     lambda d, _: put(d, "masks/a.geojson", "masks/b.geojson", text=GEOJSON)),
    ("JPEG masks", lambda d: move(pairs(d), *(f"masks/{x}.png -> masks/{x}.jpg" for x in "ab")),
     "DIR/masks/a.jpg: JPEG has changed its values: save the original as PNG",
     lambda d, _: put(d, "masks/a.png", "masks/b.png")),
    ("GIF masks", lambda d: move(pairs(d), "masks/a.png -> masks/a_mask.gif"),
     "DIR/masks/a_mask.gif: is not read as a mask: save it as PNG",
     lambda d, _: put(d, "masks/a_mask.png")),
    ("NumPy masks", lambda d: move(pairs(d), "masks/a.png -> masks/a.npy"),
     "DIR/masks/a.npy: is not read as a mask: save it as PNG", lambda d, _: put(d, "masks/a.png")),
    ("masks with another ending", lambda d: move(pairs(d), "masks/a.png -> masks/a_seg.png"),
     "DIR/images/a.png: has no mask: if DIR/masks/a_seg.png is it, rename it to a.png",
     lambda d, _: move(d, "masks/a_seg.png -> masks/a.png")),
    ("masks with another beginning", lambda d: move(pairs(d), "masks/b.png -> masks/label-B.tif"),
     "if DIR/masks/label-B.tif is it, rename it to b.tif",
     lambda d, _: move(d, "masks/label-B.tif -> masks/b.tif")),
    ("masks with other names", lambda d: move(pairs(d), "masks/a.png -> masks/mask_1.png"),
     "has no mask: add DIR/masks/a.png, or rename the right one of mask_1.png",
     lambda d, _: move(d, "masks/mask_1.png -> masks/a.png")),
    ("a mask for each object", lambda d: put(
        move(pairs(d), "masks/a.png -> masks/a/1.png") or d, "masks/a/2.png"),
     "DIR/masks/a: is a folder: make one mask of those in it, DIR/masks/a.png, and move the folder",
     lambda d, _: move(d, "masks/a -> objects/a", "objects/a/1.png -> masks/a.png")),
    ("several masks of an image", lambda d: put(
        move(pairs(d), "masks/a.png -> masks/a_1.png") or d, "masks/a_2.png"),
     "has no mask: make DIR/masks/a.png, of a_1.png, a_2.png or the right one of them",
     lambda d, _: put(d, "masks/a.png")),
    ("several masks with other names", lambda d: put(
        move(pairs(d), "masks/a.png -> masks/x.png") or d, "masks/y.png"),
     "DIR/images/a.png: has no mask: add DIR/masks/a.png", lambda d, _: put(d, "masks/a.png")),
    ("two masks", lambda d: pairs(d, "masks/a_mask.png"),
     "DIR/masks/a_mask.png: a.png is a mask of the same image: keep only one",
     lambda d, _: remove(d, "masks/a_mask.png")),
    ("two forms of one mask", lambda d: pairs(d, "masks/a.json"),
     "DIR/masks/a.png: a.json has the same name: keep only one",
     lambda d, _: remove(d, "masks/a.json")),
    ("names alike but for case", lambda d: pairs(d, "images/A.png", "masks/A.png"),
     "DIR/images/a.png: A.png has nearly the same name: rename one of them, or keep only one",
     lambda d, _: remove(d, "images/A.png", "masks/A.png")),
    ("names alike but for spaces", lambda d: pairs(d, "images/a\u00a0.png"),
     "has nearly the same name: rename one of them", lambda d, _: remove(d, "images/a\u00a0.png")),
    ("a name that is another's file name", lambda d: pairs(d, "images/a.png.png"),
     "DIR/images/a.png.png: a.png has nearly the same name", lambda d, _: remove(
         d, "images/a.png.png")),
    ("names alike but for a suffix", lambda d: pairs(d, "images/b.svs.tif"),
     "DIR/images/b.svs.tif: b.png has nearly the same name",
     lambda d, _: remove(d, "images/b.svs.tif")),
    ("slides in another format", lambda d: pairs(d, "images/c.czi"),
     "DIR/images/c.czi: Zeiss CZI is not supported: save it as TIFF (docs/formats.md), and move",
     lambda d, _: move(d, "images/c.czi -> other/c.czi")),
    ("images in no known format", lambda d: move(pairs(d), "images/a.png -> images/a.npy",
                                                 "images/b.png -> images/b.npy"),
     "DIR/images: contains no image (.png, .jpg",
     lambda d, _: put(d, "images/a.png", "images/b.png")),
    ("an Excel file of groups", lambda d: pairs(d, "groups.xlsx"),
     "DIR/groups.xlsx: has the wrong name or format: save it as groups.csv",
     lambda d, _: put(d, GROUPS, text="id,group\na,p1\nb,p2\n")),
    ("an Excel file by the right name", lambda d: pairs(d, GROUPS, text=b"PK\3\4\0\0\x9f\xff\0"),
     "open it in a spreadsheet program and save it as CSV UTF-8",
     lambda d, _: put(d, GROUPS, text="id;group\na;p1\nb;p2\n")),
    ("groups by other names", lambda d: pairs(d, GROUPS, text="image_id,patient\na,1\nb,2\n"),
     "columns id,group once each, but names image_id, patient: rename them",
     lambda d, _: put(d, GROUPS, text="id,group\na,1\nb,2\n")),
    ("groups by other names beside the code", lambda d: hubmap(d, "group.csv"),
     "DIR/group.csv: has the wrong name or format: save it as groups.csv",
     lambda d, _: put(d, GROUPS, text="id,group\na,p1\nb,p2\n")),
    ("one image in two lines", lambda d: pairs(
        d, GROUPS, text="id,group\nimages/a.png,1\nA.tif,2\nb,2\n"),
     "DIR/groups.csv: has two lines for A.tif: keep only one",
     lambda d, _: put(d, GROUPS, text="id,group\nimages/a.png,1\nb,2\n")),
    ("groups that divide a patient", lambda d: put(
        pairs(d, PATIENTS, text="image_file,patient_number\na.tiff,7\nb.tiff,7\n"), GROUPS,
        text="id,group\na,1\nb,2\n"),
     f"DIR/groups.csv: a and b are in two groups, but of one patient in DIR/{PATIENTS}: correct "
     "one of the tables, or move it away", lambda d, _: remove(d, PATIENTS)),
]


@pytest.mark.parametrize("make, words, remedy", [row[1:] for row in ROWS],
                         ids=[row[0] for row in ROWS])
def test_what_the_message_says_makes_the_folder_a_data_set(tmp_path, make, words, remedy):
    folder = tmp_path / "data"
    make(folder)
    with pytest.raises(ValueError) as error:
        find_slides(folder)
    message = str(error.value)
    assert words.replace("DIR", str(folder)) in message and "\n" not in message
    changed = remedy(folder, message) if remedy is not pairs else pairs(folder)
    items = find_slides(changed if isinstance(changed, str) else folder)
    assert [item.id for item in items] == ["a", "b"]
    assert [item.image.stem for item in items] == ["a", "b"]
    if items[0].runs is not None:
        assert [item.runs for item in items] == ["1 1", "2 2"]
    else:
        assert [item.mask.stem.removesuffix("_mask") for item in items] == ["a", "b"]


@pytest.mark.parametrize("part", ["images", "masks", "train"])
def test_a_part_of_a_data_set_is_refused_with_the_whole(tmp_path, part, monkeypatch):
    make = hubmap if part == "train" else pairs
    whole = make(tmp_path / "whole")
    with pytest.raises(ValueError, match=f"{part}: is a part of a data set: give --data ") as error:
        find_slides(whole / part)
    assert given(str(error.value), whole) == str(whole)
    monkeypatch.chdir(whole / part)
    with pytest.raises(ValueError, match="is a part of a data set"):
        find_slides(".")


@pytest.mark.parametrize("names, part", [
    (("images/a.png",), "images"), (("train/a.tiff",), "train"),
    (("images/a.png", "masks/a.png", "old/note.txt"), "old")])
def test_what_is_no_part_of_a_data_set_is_not_called_one(tmp_path, names, part):
    with pytest.raises(ValueError, match="no such folder: --data must contain images/ and masks/"):
        find_slides(put(tmp_path, *names) / part)


# Names


@pytest.mark.parametrize("text, name", [
    ("a", "a"), ("a.png", "a"), ("images/A.PNG", "a"), ("/some/where/train/a.tiff", "a"),
    (r"images\a.png", "a"), (r"C:\scans\a.ome.tif", "a"), ("a.svs ", "a"), ("a.czi", "a"),
    ("a\u200b.geojson", "a"), ("Ju\u0308rgen", "j\u00fcrgen"), ("a.b", "a.b"), ("a.1.tif", "a.1"),
    (".png", ".png"), ("tif", "tif"), ("a_mask", "a_mask"), ("a.json.tif", "a"), ("a .png", "a")])
def test_a_file_a_path_and_an_id_have_one_name(text, name):
    assert name_of(text) == name


NAMES = ["a", "a.png", "A.TIFF", "images/a.png", "/some/where/train/a.tiff", r"images\a.png",
         r"C:\my scans\a.svs", " a.png ", "a\u00a0", "./a"]


@pytest.mark.parametrize("name", NAMES)
def test_tables_may_name_an_image_by_its_id_file_or_path(tmp_path, name):
    groups = put(pairs(tmp_path / "1"), GROUPS, text=f"id,group\n{name},p1\nb,p2\n")
    patients = put(hubmap(tmp_path / "2", codes=f"id,encoding\n{name},1 1\nb,2 2\n"), PATIENTS,
                   text=f"image_file,patient_number\n{name},p1\nb.tiff,p2\n")
    for folder in (groups, patients):
        assert [(item.id, item.group) for item in find_slides(folder)] == [("a", "p1"), ("b", "p2")]
    assert [item.runs for item in find_slides(patients)] == ["1 1", "2 2"]


@pytest.mark.parametrize("name", NAMES)
def test_images_may_be_left_out_by_id_file_or_path(tmp_path, name):
    items = find_slides(pairs(tmp_path))
    (tmp_path / "list.txt").write_text(f"id\n{name}\n", encoding="utf-8")
    assert read_ids(tmp_path / "list.txt", items) == ["a"]
    assert [item.id for item in leave_out(items, ["a"])] == ["b"]


def test_a_list_of_all_images_in_two_spellings_leaves_none(tmp_path):
    items = find_slides(pairs(tmp_path))
    (tmp_path / "list.txt").write_text("a.png\nimages/b.png\nA\n")
    with pytest.raises(ValueError, match="leaves no image"):
        read_ids(tmp_path / "list.txt", items)


def test_a_folder_is_no_list_of_images(tmp_path):
    with pytest.raises(ValueError, match="no such file: --exclude takes a list of IDs"):
        read_ids(tmp_path, [])


def test_masks_may_end_in_mask_unless_an_image_has_that_name(tmp_path):
    put(tmp_path, "images/a.png", "images/b.ome.tif", "images/c.png", "images/c_mask.png",
        "masks/a_mask.png", "masks/b_mask.tif", "masks/c.png", "masks/c_mask.png")
    assert [(item.id, item.mask.name) for item in find_slides(tmp_path)] == [
        ("a", "a_mask.png"), ("b.ome", "b_mask.tif"), ("c", "c.png"), ("c_mask", "c_mask.png")]


def test_a_slide_that_was_exported_again_keeps_its_mask_and_its_group(tmp_path):
    put(tmp_path, "images/a.ome.tif", "images/b.png", "masks/a.geojson", "masks/b.tif.png")
    put(tmp_path, GROUPS, text="id,group\na.czi,p1\nb,p2\n")
    assert [(item.id, item.mask.name, item.group) for item in find_slides(tmp_path)] == [
        ("a.ome", "a.geojson", "p1"), ("b", "b.tif.png", "p2")]


def test_masks_may_be_geojson_that_is_called_json(tmp_path):
    put(tmp_path, "images/a.png", "masks/a.json", text=GEOJSON)
    assert find_slides(tmp_path)[0].mask == tmp_path / "masks/a.json"


@pytest.mark.parametrize("names", [
    ("a.geojson", "a.png"), ("a.json", "a.png"), ("a.json", "a.tif.json")])
def test_two_masks_of_one_name_are_refused(tmp_path, names):
    put(tmp_path, "images/a.png", *(f"masks/{name}" for name in names), text=GEOJSON)
    with pytest.raises(ValueError, match=rf"{names[1]}: {names[0]} has (nearly )?the same name"):
        find_slides(tmp_path)


@pytest.mark.parametrize("images, masks, words", [
    ("ab", ["x", "y"], "rename the right one of x.png, y.png$"),
    ("abcdef", "uvwxyz", "rename the right one of u.png, v.png, w.png, x.png$"),
    ("ab", ["a-1", "a-2", "a-3", "a-4", "a-5"], "of a-1.png, a-2.png, a-3.png, a-4.png or the ")])
def test_of_the_masks_that_may_be_meant_four_are_named(tmp_path, images, masks, words):
    put(tmp_path, *(f"images/{name}.png" for name in images),
        *(f"masks/{name}.png" for name in masks))
    with pytest.raises(ValueError, match=words):
        find_slides(tmp_path)


def test_the_competitions_images_may_be_in_any_format_that_is_read(tmp_path):
    put(tmp_path, "train/a.svs", "train/b.png", "train/a.geojson")
    put(tmp_path, "train.csv", text="id,encoding\na,1 1\nb,2 2\n")
    a, b = find_slides(tmp_path)
    assert (a.image.name, a.polygons.name, b.image.name) == ("a.svs", "a.geojson", "b.png")


@pytest.mark.parametrize("names", [("A.png", "a.png"), ("a.png", "a.png.png"), ("a.tif", "a.png"),
                                   ("a.tif.png", "a.png"), ("a\u200b.png", "a.png"),
                                   ("\u00fc.png", "u\u0308.png"), ("a  b.png", "a b.png")],
                         ids=ascii)
def test_two_images_never_share_a_line_of_a_table(tmp_path, names):
    if len({path.name for path in map(Path, put(tmp_path, *names).iterdir())}) < 2:
        pytest.skip("this disk does not tell these names apart")
    with pytest.raises(ValueError, match="same name") as error:
        files_of(tmp_path, [".png", ".tif"])
    assert all(name in str(error.value) for name in names)


# Tables of groups, and files without effect


def test_groups_are_read_beside_the_code_and_patients_beside_masks(tmp_path):
    groups = put(hubmap(tmp_path / "1"), GROUPS, text="id,group\na,p\nb,p\n")
    patients = put(pairs(tmp_path / "2"), PATIENTS,
                   text="image_file,patient_number\na.tiff,p\nb.tiff,p\n")
    drawn = put(tmp_path / "3", "train/a.tif", "train/a.json", "train/b.tif", "train/b.json")
    put(drawn, GROUPS, text="id,group\na,p\nb,p\n")
    for folder in (groups, patients, drawn):
        assert [item.group for item in find_slides(folder)] == ["p", "p"]


@pytest.mark.parametrize("table", ["a.tiff,1\nb.tiff,2\n", "a.tiff,1\n", "a.tiff,7\nb.tiff,7\n"])
def test_groups_may_hold_more_than_a_patient_each(tmp_path, table):
    put(pairs(tmp_path), GROUPS, text="id,group\na,hospital\nb,hospital\n")
    put(tmp_path, PATIENTS, text=f"image_file,patient_number\n{table}")
    assert [item.group for item in find_slides(tmp_path)] == ["hospital", "hospital"]


@pytest.mark.parametrize("text", ["id,fold\na,0\nb,1\n", "a\nb\n", "a.png\n", "",
                                  "id;patient\na;1\n"])
def test_a_list_of_a_split_beside_images_and_masks_is_not_used_and_named(tmp_path, text):
    items = find_slides(put(pairs(tmp_path), "train.csv", text=text))
    assert [item.mask.name for item in items] == ["a.png", "b.png"]
    assert unused_files(tmp_path, items) == [tmp_path / "train.csv"]


def test_files_without_effect_are_listed(tmp_path):
    sound = put(pairs(tmp_path / "1"), GROUPS, text="id,group\na,p1\nb,p2\n")
    put(sound, "README.txt", "images/.hidden", "images/Thumbs.db", "masks/.DS_Store")
    assert unused_files(sound, find_slides(sound)) == []
    left = pairs(tmp_path / "2", "patients.csv", "metadata.xlsx", "images/a.xml", "images/b.npy",
                 "masks/c.png", "masks/a.txt", "train/images/c.png")
    assert [str(path.relative_to(left)) for path in unused_files(left, find_slides(left))] == [
        "metadata.xlsx", "patients.csv", "train", "images/a.xml", "images/b.npy", "masks/a.txt",
        "masks/c.png"]


def test_the_competitions_files_without_effect_are_listed(tmp_path):
    folder = hubmap(tmp_path, "train/a.json", "train/a-anatomical-structure.json",
                    "sample_submission.csv", "test/c.tiff", "masks/a.png", text=GEOJSON)
    assert [path.name for path in unused_files(folder, find_slides(folder))] == [
        "masks", "sample_submission.csv", "test", "a-anatomical-structure.json"]


def test_folders_of_images_without_effect_are_listed_with_no_hint_about_groups(tmp_path, capsys):
    pairs(tmp_path, "1st_manual/a_manual1.png", "mask/b.tif", "notes/a.txt", "runs/r/config.json")
    unused = unused_files(tmp_path, find_slides(tmp_path))
    assert [path.name for path in unused] == ["1st_manual", "mask"]
    report_unused(tmp_path, unused)
    assert capsys.readouterr().out == f"{tmp_path}: not used (2): 1st_manual, mask\n"


def test_files_without_effect_are_printed_in_one_line_for_each_folder(tmp_path, capsys):
    pairs(tmp_path, "patients.csv", *(f"images/{i}.xml" for i in range(20)))
    report_unused(tmp_path, unused_files(tmp_path, find_slides(tmp_path)))
    first, second = capsys.readouterr().out.splitlines()
    assert first == (f"{tmp_path}: not used (1): patients.csv; groups.csv (id,group) would keep "
                     "images of one patient together")
    assert second.startswith(f"{tmp_path / 'images'}: not used (20): 0.xml, 1.xml, ")
    assert second.endswith(", ...") and len(second) < len(str(tmp_path)) + 100


# Speed


@pytest.mark.parametrize("kind", ["pairs", "hubmap"])
def test_the_work_grows_with_the_number_of_images_not_with_its_square(tmp_path, kind, monkeypatch):
    ids, calls = [f"s{i}" for i in range(300)], 0

    def counted(text, clean=tables.clean):
        nonlocal calls
        calls += 1
        return clean(text)

    if kind == "pairs":
        put(tmp_path, *(f"{part}/{id}.png" for id in ids for part in ("images", "masks")))
        put(tmp_path, GROUPS, text="id,group\n" + "".join(f"{id},{id}\n" for id in ids))
    else:
        put(tmp_path, *(f"train/{id}.tif" for id in ids))
        put(tmp_path, "train.csv", text="id,encoding\n" + "".join(f"{id},1 2\n" for id in ids))
    put(tmp_path, "list.txt", text="\n".join(ids[1:]))
    for module in (tables, layouts, prepare):
        monkeypatch.setattr(module, "clean", counted)
    items = find_slides(tmp_path)
    assert len(leave_out(items, read_ids(tmp_path / "list.txt", items))) == 1
    assert calls < 20 * len(ids)


def test_slides_in_folders_of_their_own_are_named_with_their_command(tmp_path):
    for folder in ("images/a", "masks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "images/a/1").write_bytes(bytes(128) + b"DICM" + bytes(400))
    with pytest.raises(ValueError) as error:
        find_slides(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/images: contains no image, only others, such as {tmp_path}/images/a/1: DICOM "
        f"is not supported: save it as TIFF (docs/formats.md), in {tmp_path}/images: "
        f"large_image_converter {tmp_path}/images/a/1 {tmp_path}/images/a/1.tiff "
        "--compression deflate")
