"""Preprocessing of COCO-Stuff, instances, crops and windows; numpy is the judge."""

import numpy as np
import pytest
import torch
from ocl import preprocessing, transforms
from ocl._loader.pipe import Pipe
from ocl.utils.windows import JoinWindows
from torchvision.ops import box_convert

RNG = np.random.default_rng(0)


def dense(masks):
    """Flatten masks of class ids (k, h, w, 1)."""
    return masks.max(axis=0)[..., 0]


@pytest.mark.parametrize("count", [1, 8, 11, 20, 40, 64])
def test_masks_as_bits(count):
    masks = RNG.random((3, count + 2, 6, 5)) < 0.4
    masks[:, count:] = False
    bits = preprocessing.CompressMask()(masks)
    assert bits.shape == (3, 6, 5) and bits.dtype.itemsize == max(1, 2 ** int(np.ceil(np.log2(count / 8))))
    values = (masks.astype(object) * 2 ** np.arange(count + 2, dtype=object).reshape(-1, 1, 1)).sum(1)
    assert (bits == values.astype(bits.dtype)).all()
    restored = preprocessing.CompressedMaskToTensor()(bits)
    assert restored.dtype == torch.float32 and np.array_equal(restored.numpy(), masks[:, :count])
    assert torch.equal(preprocessing.CompressedMaskToTensor()(bits[0])[:1], restored[0][:1])


def test_more_masks_than_bits():
    with pytest.raises(ValueError, match="64 masks at most"):
        preprocessing.CompressMask()(np.ones((1, 65, 2, 2)))
    assert preprocessing.CompressedMaskToTensor()(np.zeros((2, 3), np.uint8)).shape == (1, 2, 3)


def test_boxes_of_instances():
    masks = np.zeros((2, 3, 20, 10, 1), np.uint8)
    masks[:, 0] = 1
    masks[0, 1, 2:7, 3:9] = 4
    sample = {"mask": masks, "__key__": "1"}
    result = preprocessing.AddBBoxFromInstanceMasks()(sample)
    expected = box_convert(torch.tensor([3, 2, 8, 6.0]), "xyxy", "cxcywh") / torch.tensor([10, 20, 10, 20])
    assert torch.allclose(result["instance_bbox"][0, 0], expected) and result["instance_bbox"].shape == (2, 2, 4)
    assert result["instance_bbox"].count_nonzero() == 4
    assert result["instance_cls"].tolist() == [[0, -1], [-1, -1]] == result["instance_id"].tolist()
    assert preprocessing.AddBBoxFromInstanceMasks()({}) == {} and set(sample) == {"mask", "__key__"}


@pytest.mark.parametrize("include_crowd", [False, True])
def test_things_and_stuff(include_crowd):
    stuff = RNG.choice([0, 100, 120, 183], (1, 6, 6, 1)).astype(np.uint8)
    things = np.stack([np.full((6, 6, 1), 3), RNG.integers(0, 5, (6, 6, 1))]).astype(np.uint8)
    merge = preprocessing.MergeCocoThingsAndStuff("merged", include_crowd=include_crowd)
    expected, top = dense(stuff).copy(), dense(things)
    expected[dense(stuff) == 183] = top[dense(stuff) == 183]
    if include_crowd:
        expected[dense(stuff) == 0] = top[dense(stuff) == 0]
    before = stuff.copy()
    merged = merge({"stuff_mask": stuff, "instance_mask": things})["merged"]
    assert np.array_equal(dense(merged), expected) and np.array_equal(stuff, before)
    assert all(len(np.unique(mask[mask > 0])) <= 1 for mask in merged)
    without = merge({"stuff_mask": stuff})["merged"]
    assert np.array_equal(dense(without), np.where(dense(stuff) == 183, 0, dense(stuff)))


def test_pictures_of_coco_stuff():
    values = RNG.choice([0, 5, 90, 91, 181, 255], (8, 8, 1)).astype(np.uint8)
    picture = {"stuffthings_mask": values.repeat(3, axis=2)}
    result = preprocessing.ConvertCocoStuff164kMasks("mask")(picture)
    expected = np.where(values == 255, 0, values.astype(int) + 1)[..., 0]
    assert np.array_equal(dense(result["mask"]), expected) and result["mask"].dtype == np.uint8
    assert np.array_equal(result["ignore_mask"], (values == 255)[None])
    things = preprocessing.ConvertCocoStuff164kMasks("mask", drop_stuff=True)(picture)["mask"]
    assert np.array_equal(dense(things), np.where(expected >= 92, 0, expected))
    with pytest.raises(ValueError, match="picture"):
        preprocessing.ConvertCocoStuff164kMasks("mask")({"stuffthings_mask": values})


def test_superclasses_of_coco():
    convert = preprocessing.ConvertToCocoSuperclasses()
    # person, car, cat, banana, couch, tv, cloth, grass, bridge, sky, sea, brick wall, mountain, other; 12 is none
    pairs = {
        1: 1,
        3: 2,
        17: 4,
        52: 8,
        63: 9,
        72: 10,
        104: 13,
        124: 14,
        95: 15,
        157: 21,
        155: 23,
        171: 25,
        135: 27,
        183: 28,
    }
    ids = np.array([*pairs, 12, 0], np.uint8).reshape(1, 4, 4, 1)
    assert dense(convert(ids)).ravel().tolist() == [*pairs.values(), 0, 0]
    counts = np.bincount(convert.superclass_of[1:184], minlength=29)
    assert counts.sum() - counts[0] == 171 + 1 and (counts[1:] > 0).all()  # 80 things, 91 of stuff, and other


def test_labels_of_a_few_samples():
    values = np.ones((4, 2), np.float32)
    keep = preprocessing.MaskInstances(["labels"], ["0007_1", "0007_3"])
    assert np.array_equal(keep({"__key__": "0007_1", "labels": values})["labels"], values)
    assert np.isnan(keep({"__key__": "0007_2", "labels": values})["labels"]).all()
    video = preprocessing.MaskInstances(["labels"], ["0007_1", "0007_3"], mask_video=True)
    kept = ~np.isnan(video({"__key__": "0007", "labels": values})["labels"])
    assert kept.all(1).tolist() == [False, True, False, True] == kept.any(1).tolist()
    window = {"__key__": "0007_2", "labels": torch.ones(3, 2), "decoded_indices": torch.tensor([3, 4, 5])}
    assert (~video(window)["labels"].isnan()).all(1).tolist() == [True, False, False]
    assert np.isnan(video({"__key__": "8", "labels": values})["labels"]).all() and values.all()


def test_crops_of_crops_cut_masks_alike():
    torch.manual_seed(0)
    rows, columns = np.mgrid[:40, :50]
    image = np.stack([rows * 5, columns * 5, rows * 0], -1).astype(np.uint8)
    masks = (rows > columns).astype(np.uint8)[None, ..., None]
    crop = preprocessing.MultiCrop(32, mask_keys=["mask"], global_scale=(0.5, 0.6))
    result = crop({"image": image, "mask": masks})
    for view in ("teacher", "student"):
        assert result[view].shape == (3, 32, 32) and result[f"{view}_mask"].shape == (1, 32, 32)
        row, column = result[view][:2] * 255 / 5  # the pixels tell where they come from
        clear = (row - column).abs() > 2
        assert torch.equal((row > column)[clear], result[f"{view}_mask"][0].bool()[clear]) and clear.any()
    top, left, height, width = (int(number) for number in result["params"])
    part = result["teacher"][:2, top : top + height, left : left + width]
    assert torch.allclose(part.mean((1, 2)), result["student"][:2].mean((1, 2)), atol=0.02)


def test_small_ones():
    assert preprocessing.IsElementOfList(["a", "b"])("a") and not preprocessing.IsElementOfList(["a"])("b")
    assert {preprocessing.RandomSample()(np.arange(3)) for _ in range(60)} == {0, 1, 2}
    sample = {"video": np.arange(6), "frames": [4, 1], "other": 1}
    result = preprocessing.SampleFramesUsingIndices(["video"], "frames")(sample)
    assert result["video"].tolist() == [4, 1] and result["other"] == 1 and len(sample["video"]) == 6


def test_windows_cover_the_image():
    image, masks = RNG.random((7, 10, 3)), RNG.random((2, 7, 10, 1))
    cut = transforms.SpatialSlidingWindow([6, 4], [6, 4], [1, 0, 1, 1], ["image", "mask"], expected_n_windows=4)
    windows = list(cut(Pipe([{"__key__": "a_7", "image": image, "mask": masks, "other": 1}])))
    assert [window["__key__"] for window in windows] == ["a_7_-1_0", "a_7_5_0", "a_7_-1_4", "a_7_5_4"]
    assert all(window["image"].shape == (4, 6, 3) and window["other"] == 1 for window in windows)
    parts = torch.stack([torch.from_numpy(window["mask"][..., 0]) for window in windows])
    joined = JoinWindows(4, [7, 10])(parts, [window["__key__"] for window in windows])
    assert np.array_equal(joined.view(4, 2, 7, 10).sum(0), masks[..., 0])
    for wrong, message in (({"stride": [5, 4]}, "do not cover"), ({"expected_n_windows": 3}, "Expected 3 windows")):
        options = {"window_size": [6, 4], "stride": [6, 4], "padding": [1, 0, 1, 1], "fields": ["image"], **wrong}
        with pytest.raises(ValueError, match=message):
            list(transforms.SpatialSlidingWindow(**options)(Pipe([{"__key__": "0", "image": image}])))
