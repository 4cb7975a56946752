import numpy as np
import pytest
import torch
from ocl import preprocessing
from torch.nn import functional as F


def test_per_object_masks_become_binary_or_exclusive_tensors():
    masks = np.random.default_rng(0).integers(0, 3, (2, 4, 5, 6, 1), dtype=np.uint8)  # (T, K, H, W, 1)
    binary = preprocessing.MaskToTensor()(masks)
    assert binary.dtype == torch.float32 and np.array_equal(binary, masks[..., 0] > 0)
    exclusive = preprocessing.MultiMaskToTensor()(masks)
    winners = torch.from_numpy(masks[..., 0].argmax(axis=1))
    assert torch.equal(exclusive, F.one_hot(winners, 4).permute(0, 3, 1, 2).float())
    dense = preprocessing.DenseMaskToTensor()(masks)
    assert dense.dtype == torch.uint8 and np.array_equal(dense, masks[..., 0])
    for convert in (preprocessing.MaskToTensor(), preprocessing.DenseMaskToTensor()):
        with pytest.raises(ValueError, match="size 1"):
            convert(masks[..., 0])
    assert preprocessing.ResizeNearestExact(size=2)(input=binary).shape == (2, 4, 2, 2)


@pytest.mark.parametrize("ignore, n_ids", [(True, 3), (True, 6), (False, 3), (False, 6)])
def test_one_hot_masks_name_every_id_once(ignore, n_ids):
    ids = np.random.default_rng(1).integers(0, 4, (2, 5, 6, 1), dtype=np.uint8)  # (T, H, W, 1)
    ids[0, 0, 0] = 255
    before = ids.copy()
    one_hot = preprocessing.IntegerToOneHotMask(ignore_typical_background=ignore, max_instances=n_ids)(ids)
    first = 1 if ignore else 0
    assert one_hot.shape == (2, n_ids + 1 - first, 5, 6, 1) and one_hot.dtype == np.uint8
    numbers = np.arange(first, n_ids + 1).reshape(1, -1, 1, 1, 1)
    assert np.array_equal((one_hot * numbers).sum(axis=1), np.where(ids == 255, 0, ids))
    assert np.array_equal(ids, before)


def test_coco_instances_become_class_masks():
    instances = np.zeros((2, 3, 3, 1), np.uint8)
    instances[0, :2], instances[1, 1:] = 1, 1  # the middle row belongs to both
    data = {"instance_mask": instances, "instance_category": np.array([7, 4])}
    data = preprocessing.InstanceMasksToDenseMasks()(data)
    data = preprocessing.AddSegmentationMaskFromInstanceMask()(data)
    four, seven = data["segmentation_mask"][..., 0]
    assert four[:, 0].tolist() == [0, 0, 4] and seven[:, 0].tolist() == [7, 7, 0]
    empty = {"instance_mask": instances[:0], "instance_category": np.zeros(0, np.uint8)}
    data = preprocessing.InstanceMasksToDenseMasks()(empty)
    data = preprocessing.AddSegmentationMaskFromInstanceMask()(data)
    assert data["segmentation_mask"].shape == (1, 3, 3, 1) and not data["segmentation_mask"].any()
    with pytest.raises(ValueError, match="1 ... 255"):
        preprocessing.InstanceMasksToDenseMasks()({"instance_mask": instances, "instance_category": [1, 256]})


def test_voc_instances_get_their_classes():
    instance_ids = np.array([[[1], [2], [255]]], np.uint8)
    data = {
        "segmentation-class": np.array([[[9], [3], [255]]], np.uint8),
        "segmentation-instance": preprocessing.IntegerToOneHotMask()(instance_ids),
    }
    out = preprocessing.VOCInstanceMasksToDenseMasks()(data)
    assert out["instance_category"].tolist() == [9, 3]
    assert out["segmentation-instance"][:, 0, :, 0].tolist() == [[9, 0, 0], [0, 3, 0]]
    assert out["ignore_mask"][0, 0, :, 0].tolist() == [False, False, True]
    data["segmentation-class"][0, 0] = 0
    with pytest.raises(ValueError, match="of one class"):
        preprocessing.VOCInstanceMasksToDenseMasks()(data)


def test_samples_are_completed_without_changing_them():
    data = {"image": np.zeros((4, 6, 3), np.uint8), "mask": 1}
    out = preprocessing.AddEmptyMasks(["mask", "ignore"])(data)
    out = preprocessing.AddEmptyBboxes("boxes")(preprocessing.AddImageSize()(out))
    assert out["mask"] == 1 and out["ignore"].shape == (1, 4, 6, 1) and out["image_size"].tolist() == [4, 6]
    assert out["boxes"].tolist() == [[-1] * 4] and set(data) == {"image", "mask"}
    out = preprocessing.DropEntries(["boxes"])(preprocessing.RenameFields({"mask": "target"})(out))
    assert set(out) == {"image", "target", "ignore", "image_size"}
    with pytest.raises(KeyError, match="video"):
        preprocessing.RenameFields({"video": "image"})(data)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float32])
def test_resizing_keeps_type_and_picks_existing_values(dtype):
    mask = torch.tensor([[[0, 1], [1, 0], [1, 1]]]).to(dtype)
    doubled = mask.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    assert torch.equal(preprocessing.ResizeNearestExact(4)(mask), doubled)
    assert torch.equal(preprocessing.ResizeNearestExact([3, 2])(doubled[None]), mask[None])
    assert preprocessing.ResizeNearestExact(4, max_size=5)(mask).shape == (1, 5, 3)
    with pytest.raises(ValueError, match="max_size"):
        preprocessing.ResizeNearestExact(4, max_size=4)(mask)


def test_center_crop_and_format_check():
    image = torch.arange(30).view(1, 3, 10)
    assert preprocessing.OrigCenterCrop()(image)[0, 0].tolist() == [4, 5, 6]
    one_hot = torch.eye(3)
    assert preprocessing.CheckFormat([3, 3], one_hot=True)(one_hot) is one_hot
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        preprocessing.CheckFormat([3, 2])(one_hot)
    with pytest.raises(ValueError, match="one-hot"):
        preprocessing.CheckFormat([3, 3], one_hot=True)(one_hot / 2 + one_hot.roll(1, 0) / 2)
