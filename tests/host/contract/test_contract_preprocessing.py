"""Contract of `ocl.preprocessing`: numpy samples in, model ready tensors out."""

import numpy as np
import pytest
import torch
from ocl import preprocessing as P
from torch.nn import functional as F

BAD = (AssertionError, ValueError)


def one_hot_masks(rng, classes, shape):
    ids = rng.randint(0, classes, shape)
    return ids, np.stack([ids == c for c in range(classes)], axis=-3)[..., None].astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.core
def test_mask_to_tensor():
    rng = np.random.RandomState(0)
    for lead in [(), (2,), (2, 3)]:
        mask = rng.randint(0, 3, lead + (4, 6, 5, 1)).astype(np.uint8)
        out = P.MaskToTensor()(mask)
        assert out.dtype == torch.float32 and out.shape == lead + (4, 6, 5)
        assert np.array_equal(out.numpy(), (mask[..., 0] > 0).astype(np.float32))
    flat = P.MaskToTensor(singleton_dim_last=False)(np.array([[0.0, 0.2]]))
    assert flat.tolist() == [[0.0, 1.0]]
    with pytest.raises(BAD):
        P.MaskToTensor()(np.zeros((2, 3, 3)))


@pytest.mark.core
def test_dense_mask_to_tensor_keeps_ids():
    mask = np.array([[[[7], [0]]]], np.uint8)
    out = P.DenseMaskToTensor()(mask)
    assert out.dtype == torch.uint8 and out.tolist() == [[[7, 0]]]
    with pytest.raises(BAD):
        P.DenseMaskToTensor()(np.zeros((2, 3, 3), np.uint8))


@pytest.mark.core
@pytest.mark.parametrize("lead", [(), (3,)])
def test_multi_mask_to_tensor_makes_masks_exclusive(lead):
    rng = np.random.RandomState(1)
    mask = rng.randint(0, 3, lead + (4, 6, 5, 1)).astype(np.uint8)
    out = P.MultiMaskToTensor()(mask)
    winner = mask[..., 0].argmax(-3)  # ties go to the lowest index, empty pixels to class 0
    expected = np.stack([winner == c for c in range(4)], axis=-3).astype(np.float32)
    assert out.dtype == torch.float32 and np.array_equal(out.numpy(), expected)
    assert torch.all(out.sum(-3) == 1)


@pytest.mark.core
@pytest.mark.parametrize("lead", [(), (3,)])
def test_integer_mask_to_one_hot_with_background(lead):
    ids = np.random.RandomState(2).randint(0, 4, lead + (6, 5, 1)).astype(np.uint8)
    out = P.IntegerToOneHotMask(ignore_typical_background=False, max_instances=10)(ids.copy())
    assert out.shape == lead + (11, 6, 5, 1) and out.dtype == np.uint8
    for c in range(11):
        assert np.array_equal(np.take(out, c, axis=-4), (ids == c).astype(np.uint8))
    free = P.IntegerToOneHotMask(ignore_typical_background=False)(ids.copy())
    assert free.shape == lead + (int(ids.max()) + 1, 6, 5, 1)


@pytest.mark.core
def test_integer_mask_to_one_hot_ignoring_background():
    ids = np.array([[0, 1, 3], [255, 3, 0]], np.uint8)[..., None]
    out = P.IntegerToOneHotMask()(ids.copy())
    assert out.shape == (3, 2, 3, 1)
    assert out[..., 0].tolist() == [
        [[0, 1, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 0]],
        [[0, 0, 1], [0, 1, 0]],
    ]
    wide = P.IntegerToOneHotMask(max_instances=5)(ids.copy())
    assert wide.shape == (5, 2, 3, 1) and np.array_equal(wide[:3], out) and not wide[3:].any()
    empty = P.IntegerToOneHotMask()(np.zeros((2, 2, 1), np.uint8))
    assert empty.shape == (0, 2, 2, 1)
    last = P.IntegerToOneHotMask(output_axis=-1)(np.array([0, 1, 2], np.uint8))
    assert last.tolist() == [[0, 0], [1, 0], [0, 1]]


@pytest.mark.modern
@pytest.mark.compat
def test_integer_mask_to_one_hot_leaves_its_input_alone():
    ids = np.array([[0, 255, 1]], np.uint8)[..., None]
    before = ids.copy()
    P.IntegerToOneHotMask()(ids)
    assert np.array_equal(ids, before)


@pytest.mark.core
def test_expand_dense_mask():
    mask = np.array([[0, 3], [7, 3]], np.uint8)[None, ..., None]
    out = P.expand_dense_mask(mask)
    assert out.shape == (2, 2, 2, 1)
    assert out[..., 0].tolist() == [[[0, 3], [0, 3]], [[0, 0], [7, 0]]]
    assert P.expand_dense_mask(np.zeros((1, 2, 2, 1), np.uint8)).shape == (1, 2, 2, 1)
    assert P.expand_dense_mask(np.full((1, 2, 2, 1), 4, np.uint8)).tolist() == [[[[4]] * 2] * 2]


@pytest.mark.core
def test_instance_masks_to_dense_and_semantic_masks():
    """The COCO chain: binary instance masks + categories -> instance and semantic masks."""
    instances = np.zeros((3, 2, 3, 1), np.uint8)
    instances[0, 0, 0] = instances[1, 0, 1] = instances[2, 1, 1:] = 1
    instances[1, 1, 1] = 1  # overlap with instance 2
    data = {"instance_mask": instances, "instance_category": np.array([5, 9, 5], np.uint8)}
    data = P.InstanceMasksToDenseMasks()(data)
    dense = data["instance_mask"]
    assert dense.dtype == np.uint8 and dense.max() == 9
    assert np.array_equal(dense, instances * np.array([5, 9, 5])[:, None, None, None])
    data = P.AddSegmentationMaskFromInstanceMask()(data)
    assert data["segmentation_mask"][..., 0].tolist() == [
        [[5, 0, 0], [0, 0, 5]],
        [[0, 9, 0], [0, 9, 0]],  # the higher class id wins the overlap
    ]
    for transform in (P.InstanceMasksToDenseMasks(), P.AddSegmentationMaskFromInstanceMask()):
        assert transform({"image": 1}) == {"image": 1}


@pytest.mark.core
@pytest.mark.parametrize("categories", [[0, 3], [3, 300]])
def test_instance_categories_must_fit(categories):
    data = {"instance_mask": np.ones((2, 1, 1, 1)), "instance_category": np.array(categories)}
    with pytest.raises(ValueError):
        P.InstanceMasksToDenseMasks()(data)


@pytest.mark.core
def test_voc_instance_masks():
    """The VOC chain: indexed instance PNG + class PNG -> dense instance masks."""
    classes = np.array([[0, 255, 12], [15, 15, 255]], np.uint8)[..., None]
    instance_ids = np.array([[0, 255, 1], [2, 2, 255]], np.uint8)[..., None]
    data = {
        "segmentation-class": classes,
        "segmentation-instance": P.IntegerToOneHotMask()(instance_ids.copy()),
    }
    out = P.VOCInstanceMasksToDenseMasks()(data)
    assert out["ignore_mask"].shape == (1, 2, 3, 1) and out["ignore_mask"].dtype == bool
    assert np.array_equal(out["ignore_mask"][0], classes == 255)
    assert out["instance_category"].tolist() == [12, 15]
    assert out["segmentation-instance"][..., 0].tolist() == [
        [[0, 0, 12], [0, 0, 0]],
        [[0, 0, 0], [15, 15, 0]],
    ]
    with pytest.raises(BAD):  # every instance needs pixels of exactly one class
        P.VOCInstanceMasksToDenseMasks()(
            {
                "segmentation-class": np.array([[[0], [1], [2]]], np.uint8),
                "segmentation-instance": np.ones((1, 1, 3, 1), np.uint8),
            }
        )


@pytest.mark.core
def test_add_empty_masks():
    data = {"image": np.zeros((4, 6, 3), np.uint8), "a": np.ones((2, 4, 6, 1))}
    out = P.AddEmptyMasks(["a", "b"])(data)
    assert out["a"].shape == (2, 4, 6, 1) and out["b"].shape == (1, 4, 6, 1)
    assert out["b"].dtype == np.uint8 and not out["b"].any()
    single = P.AddEmptyMasks("m", take_size_from="img")({"img": np.zeros((2, 3, 3))})
    assert single["m"].shape == (1, 2, 3, 1)


# --------------------------------------------------------------------------------------------------------- dict helpers


@pytest.mark.core
def test_rename_and_drop():
    data = {"video": 1, "segmentations": 2, "rest": 3}
    out = P.RenameFields({"video": "image", "segmentations": "mask"})(data)
    assert out == {"image": 1, "mask": 2, "rest": 3} and set(data) == {"video", "segmentations", "rest"}
    with pytest.raises(KeyError):
        P.RenameFields({"nope": "x"})(data)
    assert P.DropEntries(["video", "not there"])(data) == {"segmentations": 2, "rest": 3}


@pytest.mark.compat
def test_image_size_and_boxes():
    data = {"image": np.zeros((4, 8, 3)), "instance_bbox": np.array([[0.1, 0.2, 0.3, 0.4]])}
    data = P.AddImageSize()(data)
    assert data["image_size"].tolist() == [4, 8] and data["image_size"].dtype == np.int64
    xyxy = P.CanonicalizeBboxes(format="yxyx")(dict(data))["instance_bbox"]
    assert np.allclose(xyxy, [[0.2, 0.1, 0.4, 0.3]])
    xyxy = P.CanonicalizeBboxes(format="xywh")(dict(data))["instance_bbox"]
    assert np.allclose(xyxy, [[0.1, 0.2, 0.4, 0.6]])
    scaled = P.RescaleBboxes()({**data, "instance_bbox": xyxy})["instance_bbox"]
    assert np.allclose(scaled, [[0.8, 0.8, 3.2, 2.4]])
    empty = P.AddEmptyBboxes()({})["instance_bbox"]
    assert empty.dtype == np.float32 and empty.tolist() == [[-1.0] * 4]
    assert P.AddEmptyBboxes(["a"], empty_value=0.0)({"a": 3}) == {"a": 3}
    assert P.CanonicalizeBboxes()({}) == {} and P.RescaleBboxes()({}) == {}
    with pytest.raises(ValueError):
        P.CanonicalizeBboxes(format="cxcywh")


@pytest.mark.compat
def test_check_format():
    data = torch.eye(3)
    assert P.CheckFormat([3, 3], one_hot=True)(data) is data
    with pytest.raises(ValueError):
        P.CheckFormat([3, 4])(data)
    with pytest.raises(ValueError):
        P.CheckFormat([3, 3], one_hot=True, class_dim=0)(torch.ones(3, 3))


# ------------------------------------------------------------------------------------------------------- images, videos


@pytest.mark.core
def test_video_to_tensor():
    rng = np.random.RandomState(3)
    video = rng.randint(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    out = P.VideoToTensor()(video)
    assert out.shape == (5, 3, 4, 6) and out.dtype == torch.float32
    assert np.allclose(out.numpy(), video.transpose(0, 3, 1, 2) / 255.0)
    assert torch.equal(P.VideoToTensor()(torch.from_numpy(video)), out)
    mono = rng.rand(5, 4, 6).astype(np.float32)
    out = P.VideoToTensor()(mono)
    assert out.shape == (5, 1, 4, 6) and np.array_equal(out.numpy()[:, 0], mono)


@pytest.mark.compat
def test_video_normalization_and_frames():
    video = torch.rand(2, 3, 4, 4)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    m, s = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    out = P.NormalizeVideo(mean, std)(video)
    assert torch.allclose(out, (video - m) / s)
    denormalize = P.Denormalize(mean, std)
    assert isinstance(denormalize, torch.nn.Module) and torch.allclose(denormalize(out), video)
    assert torch.allclose(denormalize(out[0]), video[0])
    assert torch.allclose(denormalize(out[None]), video[None])
    assert P.ToSingleFrameVideo()(video[0]).shape == (1, 3, 4, 4)


@pytest.mark.compat
def test_flow_to_tensor():
    flow = np.random.RandomState(4).rand(3, 4, 5, 2)
    out = P.FlowToTensor()(flow)
    assert out.shape == (3, 2, 4, 5) and out.dtype == torch.float32
    assert np.allclose(out.numpy(), np.moveaxis(flow, -1, -3), atol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_resize_nearest_exact(dtype):
    mask = torch.arange(2 * 6 * 9).reshape(2, 6, 9).to(dtype)
    reference = F.interpolate(mask[None].double(), size=(4, 6), mode="nearest-exact")[0].to(dtype)
    out = P.ResizeNearestExact(4)(mask)  # an integer sets the shorter edge
    assert out.dtype == dtype and torch.equal(out, reference)
    out = P.ResizeNearestExact([5, 7])(mask)
    reference = F.interpolate(mask[None].double(), size=(5, 7), mode="nearest-exact")[0].to(dtype)
    assert torch.equal(out, reference)
    batched = P.ResizeNearestExact([5, 7])(torch.stack([mask, mask]))
    assert torch.equal(batched, torch.stack([reference, reference]))


@pytest.mark.compat
def test_resize_nearest_exact_limits():
    mask = torch.rand(1, 8, 16)
    assert torch.equal(P.ResizeNearestExact(8)(mask), mask)
    assert P.ResizeNearestExact(4, max_size=6)(mask).shape == (1, 3, 6)
    assert P.ResizeNearestExact([4])(mask).shape == (1, 4, 8)
    with pytest.raises(ValueError):
        P.ResizeNearestExact(4, max_size=4)(mask)


@pytest.mark.compat
@pytest.mark.parametrize("height, width", [(7, 4), (4, 7), (5, 5), (4, 8)])
def test_orig_center_crop(height, width):
    image = torch.rand(3, height, width)
    side = min(height, width)
    top, left = int(round((height - side) / 2)), int(round((width - side) / 2))
    out = P.OrigCenterCrop()(image)
    assert torch.equal(out, image[:, top : top + side, left : left + side])
