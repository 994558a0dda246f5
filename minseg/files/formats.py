"""# Slides in other formats: what they are, and the command that makes a TIFF of one

`minseg.files.slides` reads TIFF, PNG and JPEG. Everything else is told by its name or its first
bytes, and refused with a command of a free program, ready to be copied. docs/formats.md says how to
install these programs, and what each command was tried on.

>>> conversion(Path("my slides/a.mrxs"))  # doctest: +NORMALIZE_WHITESPACE
"3DHISTECH MIRAX is not supported: save it as TIFF (docs/formats.md): large_image_converter
'my slides/a.mrxs' 'my slides/a.tiff' --compression deflate"
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

FORMATS_PAGE = "docs/formats.md"
EXPORT = ("save it as TIFF or PNG, with the program that made it, or in QuPath, if that opens it: "
          "File > Export images > OME TIFF")
ARCHIVES = (".zip", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tar", ".tgz")
# {file} is the path as it was given, {stem} the same without the suffix.
LARGE_IMAGE = "large_image_converter {file} {stem}.tiff --compression deflate"
BIO_FORMATS = ("bfconvert -series 0 -tilex 512 -tiley 512 -compression zlib -bigtiff {file} "
               "{stem}.ome.tiff")
VIPS = "vips tiffsave {file} {stem}.tiff --tile --compression deflate --bigtiff"


@dataclass(frozen=True)
class Format:
    """How to tell a format, and what to do about it: `start` matches the first bytes of its files,
    whatever they are called."""

    name: str
    suffixes: tuple[str, ...]
    command: str
    start: bytes = b"(?!)"  # which matches nothing


OME_ZARR = Format("OME-Zarr", (".zarr",), "ngff-zarr -i {file} -o {stem}.tiff")
FORMATS = (
    Format("DICOM", (".dcm", ".dicom"), LARGE_IMAGE, rb".{128}DICM"),
    Format("3DHISTECH MIRAX", (".mrxs",), LARGE_IMAGE),
    Format("Hamamatsu VMS", (".vms",), LARGE_IMAGE, rb"\[Virtual Microscope Specimen\]"),
    Format("Hamamatsu VMU", (".vmu",), LARGE_IMAGE, rb"\[Uncompressed Virtual Microscope"),
    Format("Sakura svslide", (".svslide",), LARGE_IMAGE),
    Format("Deep Zoom", (".dzi",), LARGE_IMAGE,
           rb"(\xef\xbb\xbf)?\s*<.{,300}schemas\.microsoft\.com/deepzoom"),
    OME_ZARR,
    Format("Zeiss CZI", (".czi",), BIO_FORMATS, rb"ZISRAWFILE"),
    Format("Zeiss ZVI", (".zvi",), BIO_FORMATS),
    Format("Olympus VSI", (".vsi", ".ets"), BIO_FORMATS),
    Format("Olympus OIR", (".oir",), BIO_FORMATS, rb"OLYMPUSRAWFORMAT"),
    Format("Leica LIF", (".lif",), BIO_FORMATS),
    Format("Nikon ND2", (".nd2",), BIO_FORMATS, rb"\xda\xce\xbe\x0a"),
    Format("Imaris IMS", (".ims",), BIO_FORMATS),
    Format("HDF5", (".h5", ".hdf5"), EXPORT, rb"\x89HDF\r\n"),
    Format("Philips iSyntax", (".isyntax",), "export it as TIFF with Philips' software "
           f"({FORMATS_PAGE})"),
)
# Pictures, of which Pillow may read some: infer.py tries, a data set must not contain them.
PICTURES = (".jp2", ".j2k", ".jxl", ".jfif", ".heic", ".avif", ".bmp", ".gif", ".webp")
OTHER_SLIDES = (*(suffix for each in FORMATS for suffix in each.suffixes), *PICTURES)
ZARR_FILES = ("zarr.json", ".zgroup", ".zattrs", ".zarray")


def format_of(path: Path) -> Format | None:
    """The format of a file, or of an OME-Zarr's folder, by its suffix, else by its content."""
    suffix = path.suffix.lower()
    if path.is_dir():
        is_zarr = suffix == ".zarr" or any((path / name).is_file() for name in ZARR_FILES)
        return OME_ZARR if is_zarr else None
    for each in FORMATS:
        if suffix in each.suffixes:
            return each
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        start = file.read(512)
    return next((each for each in FORMATS if re.match(each.start, start, re.S)), None)


def conversion(path: Path, then: str = "") -> str:
    """What to do about a file that is not read; `then` is what to do after that."""
    suffix, known = path.suffix.lower(), format_of(path)
    name = known.name if known else suffix or "its format"
    command = (known.command if known else VIPS if suffix in PICTURES else
               "unpack it" if suffix in ARCHIVES else EXPORT)
    if "{file}" not in command:
        return f"{name} is not supported: {command}{then}"
    stem = str(path.with_suffix("") if suffix in OTHER_SLIDES else path).removesuffix(".ome")
    line = shlex.join(word.format(file=path, stem=stem) for word in command.split())
    return f"{name} is not supported: save it as TIFF ({FORMATS_PAGE}){then}: {line}"


def index_of(folder: Path) -> Path | None:
    """The file to name in place of a folder that holds the pixels of a MIRAX, a VSI or a Deep Zoom
    slide."""
    name = folder.name
    names = [f"{name}.mrxs", re.sub(r"^_(.+)_$", r"\1.vsi", name), re.sub("_files$", ".dzi", name)]
    return next((folder.parent / each for each in names if each != name
                 and (folder.parent / each).is_file()), None)
