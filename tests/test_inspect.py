import re

import numpy as np
import pytest
from PIL import Image

from ocl_msf.data.convert import main as convert
from ocl_msf.data.inspect import main, object_masks, outlined
from ocl_msf.data.scenes import make_scenes


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefix")
    make_scenes(folder / "raw", 6, size=(32, 24), workers=1)
    options = ["--splits", "train=:4", "val=4:", "--size", "16", "--workers", "1"]
    for form in ("lmdb", "webdataset"):
        convert(["clevrtex", str(folder / "raw"), str(folder), *options, "--format", form])
    return folder


@pytest.mark.parametrize("name", ["clevrtex", "clevrtex_lmdb"])
def test_the_card_counts_samples_and_objects(prefix, tmp_path, capsys, name):
    main([str(prefix / name), "--sheet", str(tmp_path / "sheet.png"), "--samples", "3"])
    printed = capsys.readouterr().out
    assert "train, 4 samples" in printed and "val, 2 samples" in printed
    counts = [int(n) for n in re.findall(r"^ +\d+ #* +(\d+)$", printed, flags=re.MULTILINE)]
    assert sum(counts) == 6
    objects = sum(int(k) * int(n) for k, n in re.findall(r"^ +(\d+) #* +(\d+)$", printed, flags=re.MULTILINE))
    areas = [int(n) for n in re.findall(r"to +[\d.]+% #* +(\d+)$", printed, flags=re.MULTILINE)]
    assert sum(areas) == objects > 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * (2 * 16 + 4), 2 * (16 + 4))  # 3 + 2 samples in rows of four


def test_both_formats_have_one_card(prefix, tmp_path, capsys):
    cards = []
    for name in ("clevrtex", "clevrtex_lmdb"):
        main([str(prefix / name), "--sheet", str(tmp_path / "sheet.png")])
        cards.append(capsys.readouterr().out.splitlines()[1:])
    assert cards[0] == cards[1] and len(cards[0]) > 20


def test_objects_are_found_in_every_kind_of_mask():
    numbers = np.array([[0, 1, 1], [3, 255, 1]], np.uint8)
    image = np.full((2, 3, 3), 100, np.uint8)
    one_hot = np.stack([numbers == i for i in range(4)])[..., None].astype(np.uint8)
    expected = np.stack([numbers == 1, numbers == 3])
    for sample in (
        {"image": image, "mask": one_hot},
        {"image": image, "instance_mask": one_hot[1:]},
        {"image": image, "segmentation": numbers[..., None]},
        {"video": np.stack([image, image]), "segmentations": np.stack([numbers, 0 * numbers])[..., None]},
    ):
        np.testing.assert_array_equal(object_masks(sample), expected)
        changed = (outlined(sample) != image).any(axis=-1)
        np.testing.assert_array_equal(changed, expected.any(axis=0))
    assert object_masks({"image": image}).shape == (0, 2, 3)
    assert object_masks({"image": image, "segmentation": 0 * numbers[..., None]}).shape == (0, 2, 3)


def test_a_folder_without_data_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"summary\.json is missing"):
        main([str(tmp_path)])
