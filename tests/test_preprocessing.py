import pickle

import numpy as np
import pytest
import torch

from ocl_msf.preprocessing import (
    FramesToBatch,
    ObjectMasks,
    OneHotMasks,
    RandomCropAndFlip,
    SampleFrames,
    SegmentAreas,
    VoidMask,
)

IDS = np.array([[0, 1, 2], [5, 255, 1]], dtype=np.uint8)[None, ..., None]  # a frame of 2 x 3 pixels


def apply(transform, value):
    """What a worker process makes of a value."""
    return pickle.loads(pickle.dumps(transform))(value)


def test_ids_become_masks_and_larger_ids_are_in_none():
    masks = apply(OneHotMasks(3), IDS)
    assert masks.shape == (1, 3, 2, 3, 1) and masks.dtype == np.uint8
    for number in range(3):
        np.testing.assert_array_equal(masks[:, number], IDS == number)


def test_objects_without_a_mask_belong_to_the_background():
    masks = apply(ObjectMasks(3), IDS)
    np.testing.assert_array_equal(masks[:, 0], (IDS == 0) | (IDS > 2))
    assert (masks.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(masks[:, 1:], OneHotMasks(3)(IDS)[:, 1:])


def test_more_masks_than_a_byte_counts_are_told_apart():
    assert apply(OneHotMasks(300), IDS).sum() == IDS.size


def test_void_is_one_mask():
    void = apply(VoidMask(), IDS[0])
    assert void.shape == (1, 2, 3, 1) and np.argwhere(void).tolist() == [[0, 1, 1, 0]]


@pytest.mark.parametrize("num_masks, areas", [(5, [-1, 30, -1, 7, -1]), (3, [-1, 30, -1])])
def test_areas_are_those_of_things(num_masks, areas):
    sample = {"segment_area": [30.0, 90.0, 7.0], "segment_isthing": [1, 0, 1], "image": "kept"}
    assert apply(SegmentAreas(num_masks), sample) == {"image": "kept", "area": areas}


def test_frames_are_left_out_and_join_the_batch():
    assert apply(SampleFrames(4), np.arange(24)).tolist() == [0, 4, 8, 12, 16, 20]
    videos = torch.arange(2 * 3 * 4).view(2, 3, 1, 2, 2)
    assert torch.equal(apply(FramesToBatch(), videos), torch.cat([*videos]))


def test_crops_and_flips_take_frames_and_boxes_with_them():
    """Every frame shows one rectangle; behind the transform its box still surrounds it."""
    torch.manual_seed(0)
    video = np.zeros((2, 60, 80, 3), np.uint8)
    video[:, 12:36, 20:30] = 255
    boxes = np.array([[20 / 80, 12 / 60, 30 / 80, 36 / 60], [0, 0, 0, 0]])[None].repeat(2, 0)
    lefts = set()
    for _ in range(20):
        made = apply(RandomCropAndFlip(96), {"image": video, "boxes": boxes, "label": 3})
        assert made["image"].shape == (2, 96, 96, 3) and made["image"].dtype == np.uint8 and made["label"] == 3
        assert (made["image"][0] == made["image"][1]).all() and (made["boxes"][0] == made["boxes"][1]).all()
        rows, columns = np.nonzero(made["image"][0, ..., 0] > 127)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0] * 4
        np.testing.assert_allclose(made["boxes"][0, 0] * 96, found, atol=1)
        assert (made["boxes"][:, 1] == 0).all(), "no box stays none"
        lefts.add(found[0])
    assert len(lefts) > 5


def test_a_crop_of_everything_is_the_image_or_its_mirror_image():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    torch.manual_seed(0)
    made = [RandomCropAndFlip(16, (1, 1), (1, 1))({"image": image})["image"] for _ in range(8)]
    flipped = [bool((x == image[:, ::-1]).all()) for x in made]
    assert all((x == (image[:, ::-1] if mirrored else image)).all() for x, mirrored in zip(made, flipped))
    assert 0 < sum(flipped) < 8
