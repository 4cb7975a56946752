import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from ocl_msf.cli import main
from ocl_msf.data.raw import movi
from ocl_msf.data.synthetic._sprites import WALLS, MovingObject
from ocl_msf.data.synthetic.moving_scenes import make_moving_scenes, make_video, tight_boxes
from ocl_msf.files import DataError


def frames_of(features, key):
    return np.stack([np.asarray(Image.open(io.BytesIO(png))) for png in features[key]])


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("movi*")}


def make(variant, index, frames=24, size=32):
    return make_video(variant, 0, frames, size, "train", index)


@pytest.mark.parametrize("variant", ["c", "d", "e"])
def test_boxes_are_tight_around_the_masks_with_exclusive_maxima(variant):
    for index in range(4):
        features = make(variant, index)
        masks = frames_of(features, "segmentations")
        boxes = movi.dense_boxes(features_as_read(features), len(masks))
        assert masks.max() == boxes.shape[1] <= movi.MAX_OBJECTS[variant]
        for t, mask in enumerate(masks):
            for number in range(1, boxes.shape[1] + 1):
                y, x = np.nonzero(mask == number)
                expected = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(y) else [0, 0, 0, 0]
                assert (boxes[t, number - 1] * 32).tolist() == expected


def features_as_read(features):
    """Numbers as the parser of records gives them."""
    kinds = {"f": np.float32, "i": np.int64}
    return {
        key: values.astype(kinds[values.dtype.kind]).ravel() if isinstance(values, np.ndarray) else values
        for key, values in features.items()
    }


def test_a_box_of_few_pixels():
    masks = np.zeros((3, 8, 8), np.uint8)
    masks[1, 2, 5] = masks[1, 3, 7] = 1
    frames, boxes = tight_boxes(masks, 1)
    assert frames.tolist() == [1] and (boxes * 8).tolist() == [[2, 5, 4, 8]]
    frames, boxes = tight_boxes(masks, 2)
    assert len(frames) == 0 and boxes.shape == (0, 4)


def test_rows_are_ordered_by_visibility_and_always_visible():
    for index in range(4):
        features = make("d", index)
        pixels = np.bincount(frames_of(features, "segmentations").ravel())[1:]
        assert pixels.min() > 0 and (np.diff(pixels) <= 0).all()
        assert features["instances/visibility"].sum(axis=1).tolist() == pixels.tolist()


def test_objects_move_or_rest_as_the_variant_says():
    moving = make("c", 0)
    masks = frames_of(moving, "segmentations")
    assert all((masks[0] != mask).any() for mask in masks[1:])
    resting = make("d", 0)
    masks = frames_of(resting, "segmentations")
    dynamic = resting["instances/is_dynamic"]
    assert 1 <= dynamic.sum() <= 3
    rests = np.flatnonzero(dynamic == 0) + 1
    covered = np.isin(masks, np.flatnonzero(dynamic) + 1)
    for mask, hidden in zip(masks, covered):
        np.testing.assert_array_equal(
            np.where(hidden | covered[0] | ~np.isin(mask, rests), 0, mask),
            np.where(hidden | covered[0] | ~np.isin(masks[0], rests), 0, masks[0]),
        )


@pytest.mark.parametrize("variant, moves", [("d", False), ("e", True)])
def test_only_in_e_the_camera_moves(variant, moves):
    features = make(variant, 1)
    video, masks = frames_of(features, "video").astype(int), frames_of(features, "segmentations")
    ground = np.zeros(masks.shape[1:], bool)
    ground[1:-1, 1:-1] = True  # away from the edges of objects, which share their pixels with the ground
    for mask in (masks[0], masks[-1]):
        for shift in ((0, 0), (0, 1), (1, 0), (1, 1), (0, -1), (-1, 0), (-1, -1), (1, -1), (-1, 1)):
            ground &= np.roll(mask, shift, (0, 1)) == 0
    assert ground.sum() > 100
    assert (video[0] != video[-1])[ground].any() == moves


def test_objects_bounce_off_the_walls():
    low, high = WALLS
    item = MovingObject("disc", None, 0.1, np.array([high - 0.2, 0.5]), np.array([1.0, 0.0]), 0.0, 0.0)
    np.testing.assert_allclose(item.position(0.1), [high - 0.1, 0.5])
    np.testing.assert_allclose(item.position(0.5), [high - 0.3, 0.5])
    np.testing.assert_allclose(item.position(0.2 + high - low + 0.3), [low + 0.3, 0.5])


def test_objects_are_absent_at_first_leave_return_and_cover_each_other():
    late = gaps = 0
    for index in range(12):
        masks = frames_of(make("c", index, size=16), "segmentations")
        for number in range(1, masks.max() + 1):
            shown = (masks == number).any(axis=(1, 2))
            late += not shown[0]
            gaps += (np.diff(shown.astype(int)) == 1).sum() > (not shown[0])
    assert late and gaps


def test_a_video_depends_on_its_seed_and_place_alone(tmp_path):
    one = make_moving_scenes(tmp_path / "one", 22, 2, frames=2, size=8, workers=1)
    two = make_moving_scenes(tmp_path / "two", 22, 2, frames=2, size=8, workers=2)
    assert contents(one) == contents(two)
    other = make_moving_scenes(tmp_path / "other", 22, 2, frames=2, size=8, seed=1, workers=1)
    assert not set(contents(one).values()) & set(contents(other).values())
    records = make("c", 0, 2, 8), make("c", 1, 2, 8), make_video("c", 0, 2, 8, "validation", 0)
    assert len({b"".join(record["video"]) for record in records}) == 3


def test_what_is_there_stays_and_the_rest_is_made(tmp_path):
    folder = make_moving_scenes(tmp_path, 22, 2, frames=2, size=8, workers=1)
    whole = contents(folder)
    kept, lost = sorted(folder.glob("*train*"))
    lost.unlink()
    before = kept.stat().st_mtime_ns
    make_moving_scenes(tmp_path, 22, 2, frames=2, size=8, workers=1)
    assert contents(folder) == whole and kept.stat().st_mtime_ns == before
    with pytest.raises(DataError, match="other settings"):
        make_moving_scenes(tmp_path, 22, 2, frames=2, size=8, seed=1, workers=1)


def test_the_command_writes_what_the_converter_reads(tmp_path):
    options = ["--videos", "3", "--frames", "5", "--size", "16", "--variant", "e", "--workers", "1"]
    main(["videos", str(tmp_path), *options])
    folder = tmp_path / "movi_e" / "16x16" / "1.0.0"
    assert sorted(contents(folder)) == [
        "movi_e-train.tfrecord-00000-of-00001",
        "movi_e-validation.tfrecord-00000-of-00001",
    ]
    conversion = movi.prepare(tmp_path, variant="e", size=16)
    assert {name: len(items) for name, items in conversion.splits.items()} == {"train": 3, "val": 1}
    for items in conversion.splits.values():
        for item in items:
            assert set(conversion.encode(item)[1]) == {
                "video.npy.gz",
                "segmentations.npy.gz",
                "instance_bbox.npy.gz",
            }
