import io
import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ocl_msf.cli import main
from ocl_msf.data.inspect import read_samples
from ocl_msf.data.pictures import is_turned, to_rgb

RAW = {name: runpy.run_path(str(Path(__file__).with_name(f"raw_{name}.py"))) for name in ("coco", "voc", "openimages")}
IMAGES = {"clevrtex": "**/*.png", "coco": "val2017/*.jpg", "voc": "**/JPEGImages/*.jpg", "openimages": "**/*.jpg"}


def encode(image, format, **options):
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def tag(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("format", ["PNG", "PPM", "TIFF"])
def test_grey_values_of_16_bits_keep_their_upper_8(format):
    """A ramp of them is one, not black and then white; those of a picture of 8 bits in 16 are the picture."""
    ramp = np.arange(65536).astype(np.uint16).reshape(256, 256)
    header = b"P5 256 256 65535\n"
    content = header + ramp.astype(">u2").tobytes() if format == "PPM" else encode(Image.fromarray(ramp), format)
    rgb = np.asarray(to_rgb(Image.open(io.BytesIO(content))))
    np.testing.assert_array_equal(rgb, np.repeat(ramp[..., None] // 256, 3, -1))
    grey = np.arange(256, dtype=np.uint16)[None]
    for deep in (grey * 256, grey * 257):
        assert np.asarray(to_rgb(Image.fromarray(deep)))[0, :, 0].tolist() == list(range(256))


def test_pixels_of_32_bits_are_refused():
    for dtype in (np.int32, np.float32):
        content = encode(Image.fromarray(np.ones((2, 2), dtype)), "TIFF")
        with pytest.raises(ValueError, match="32 bits"):
            to_rgb(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pictures_of_8_bits_are_converted_as_by_pillow(mode):
    image = Image.effect_noise((9, 7), 90).convert("RGB").convert(mode)
    np.testing.assert_array_equal(to_rgb(image), image.convert("RGB"))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_turned_pictures_are_those_that_pillow_would_turn(format):
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    for orientation in range(10):
        image = Image.open(io.BytesIO(encode(Image.fromarray(pixels), format, exif=tag(orientation))))
        assert is_turned(image) == (not np.array_equal(ImageOps.exif_transpose(image), image))
    assert not is_turned(Image.open(io.BytesIO(encode(Image.fromarray(pixels), format))))


@pytest.fixture(scope="module", params=list(IMAGES))
def raw(tmp_path_factory, request):
    """A data set's name and its raw folder."""
    folder = tmp_path_factory.mktemp("raw") / "raw"
    if request.param == "clevrtex":
        main(["scenes", str(folder), "--count", "4", "--size", "80x60"])
    else:
        RAW[request.param]["write_folder"](folder)
    return request.param, folder


def convert(name, folder, out, format):
    """The samples by key, and those left out."""
    options = ["--splits", "test=:"] if name == "clevrtex" else ["--no-filter"]
    main(["convert", name, str(folder), str(out), "--workers", "1", "--format", format, *options])
    (summary,) = (json.loads(path.read_text()) for path in out.glob("*/summary.json"))
    splits = (read_samples(out / summary["dataset"], split) for split in summary["splits"].values())
    return {sample["__key__"]: sample for split in splits for sample in split}, summary["rejected"]


@pytest.mark.parametrize("format", ["webdataset", "lmdb"])
def test_every_converter_scales_depth_and_names_what_is_turned(raw, format, tmp_path):
    name, whole = raw
    folder = tmp_path / "raw"
    shutil.copytree(whole, folder)
    deep, turned = [path for path in sorted(folder.glob(IMAGES[name])) if "_flat" not in path.name][:2]
    grey = np.asarray(Image.open(deep).convert("L")).astype(np.uint16)
    deep.write_bytes(encode(Image.fromarray(grey.astype(np.uint8)), "PNG"))
    shallow, _ = convert(name, folder, tmp_path / "shallow", format)
    deep.write_bytes(encode(Image.fromarray(grey * 257), "PNG"))
    image = Image.open(turned)
    turned.write_bytes(encode(image, image.format, exif=tag(6)))
    samples, rejected = convert(name, folder, tmp_path / "deep", format)
    assert [(reason, left["count"]) for reason, left in rejected.items()] == [("image turned by EXIF data", 1)]
    assert len(samples) == len(shallow) - 1 and set(samples) < set(shallow)
    for key, sample in samples.items():
        np.testing.assert_equal(sample, shallow[key])
    grey_ones = [sample["image"] for sample in samples.values() if not np.ptp(sample["image"], 2).any()]
    assert grey_ones and min(map(np.ptp, grey_ones)) > 20  # neither black nor white
