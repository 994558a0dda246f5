"""The size of a pixel, as `minseg.files.slides` reads it and as slide readers do."""

import numpy as np
import pytest
import tifffile

from minseg import open_slide

INSTALL = "python -m pip install -e '.[interop]'"
IMAGE = np.random.default_rng(0).integers(0, 256, (512, 768, 3), np.uint8)
OPTIONS = {"photometric": "rgb", "tile": (256, 256), "metadata": None}


def aperio(path):
    """Writes a file, and returns the width and height of its pixels in micrometres."""
    tifffile.imwrite(path, IMAGE, **OPTIONS, description=(
        "Aperio Image Library v11.2.1\r\n768x512 [0,0 768x512] (256x256) JPEG/RGB Q=30"
        "|AppMag = 20|MPP = 0.2527"))
    return 0.2527, 0.2527


def philips(path):
    """Rows are 0.5 µm apart, columns 0.25; the second level is twice as coarse."""
    def spacing(scale):
        return ('<Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR='
                f'"IDoubleArray">&quot;{0.0005 * scale}&quot; &quot;{0.00025 * scale}&quot;'
                "</Attribute>")

    def level(number, scale):
        sizes = (("REPRESENTATION_NUMBER", "0x200B", number),
                 ("REPRESENTATION_COLUMNS", "0x200C", 768 // scale),
                 ("REPRESENTATION_ROWS", "0x200D", 512 // scale))
        return '<DataObject ObjectType="PixelDataRepresentation">' + spacing(scale) + "".join(
            f'<Attribute Name="PIIM_PIXEL_DATA_{name}" Group="0x301D" Element="{element}" '
            f'PMSVR="IUInt32">{value}</Attribute>' for name, element, value in sizes
        ) + "</DataObject>"

    xml = ('<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
           '<Attribute Name="DICOM_MANUFACTURER" Group="0x0008" Element="0x0070" PMSVR="IString">'
           'PHILIPS</Attribute><Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element='
           '"0x1003" PMSVR="IDataObjectArray"><Array><DataObject ObjectType="DPScannedImage">'
           f'{spacing(1)}<Attribute Name="PIM_DP_IMAGE_TYPE" Group="0x301D" Element="0x1004" '
           'PMSVR="IString">WSI</Attribute><Attribute Name='
           '"PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001" Element="0x8B01" PMSVR='
           f'"IDataObjectArray"><Array>{level(0, 1)}{level(1, 2)}</Array></Attribute>'
           "</DataObject></Array></Attribute></DataObject>")
    with tifffile.TiffWriter(path) as file:
        file.write(IMAGE, description=xml, software="Philips DP v1.0", **OPTIONS)
        file.write(IMAGE[::2, ::2].copy(), description="level=1 mag=20 quality=80", subfiletype=1,
                   software="Philips DP v1.0", **OPTIONS)
    return 0.25, 0.5


def ome(path):
    tifffile.imwrite(path, IMAGE, ome=True, **{**OPTIONS, "metadata": {
        "axes": "YXS", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.0005,
        "PhysicalSizeYUnit": "mm"}})
    return 0.25, 0.5


def per_centimetre(path):
    tifffile.imwrite(path, IMAGE, **OPTIONS, resolution=(40_000, 20_000), resolutionunit=3)
    return 0.25, 0.5


def per_inch(path):
    tifffile.imwrite(path, IMAGE, **OPTIONS, resolution=(101_600, 50_800), resolutionunit=2)
    return 0.25, 0.5


def openslide(path):
    properties = pytest.importorskip("openslide", reason=f"needs openslide-python: {INSTALL}"
                                     ).OpenSlide(path).properties
    return float(properties["openslide.mpp-x"]), float(properties["openslide.mpp-y"])


def tiffslide(path):
    properties = pytest.importorskip("tiffslide", reason=f"needs tiffslide: {INSTALL}"
                                     ).TiffSlide(path).properties
    return properties["tiffslide.mpp-x"], properties["tiffslide.mpp-y"]


def slideio(path):
    scene = pytest.importorskip("slideio", reason=f"needs slideio: {INSTALL}"
                                ).open_slide(str(path), "AUTO").get_scene(0)
    return tuple(1e6 * metres for metres in scene.resolution)


@pytest.mark.parametrize("write, reader", [
    *((write, reader) for write in (aperio, per_centimetre, per_inch)
      for reader in (openslide, tiffslide, slideio)),
    (philips, openslide), (philips, tiffslide),  # slideio 2.10 does not open this file
    (ome, slideio)])  # the others state no size for it
def test_the_size_is_the_one_that_slide_readers_report(tmp_path, write, reader):
    ending = {aperio: "svs", ome: "ome.tiff"}.get(write, "tiff")
    path = tmp_path / f"a.{ending}"
    size = write(path)
    assert open_slide(path).pixel_size == pytest.approx(size)
    assert reader(path) == pytest.approx(size)
