"""The model that comes with ocl_msf, on scenes that it has not seen."""

import numpy as np
import pytest
import torch
from ocl.metrics import UnsupervisedMaskIoUMetric

import ocl_msf
from ocl_msf.data.synthetic._render import render
from ocl_msf.data.synthetic.scenes import sample_scene
from ocl_msf.results.trivial import blind_grid, colour_centres, nearest_colours

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]
SIZE, COUNT = 96, 16


@pytest.fixture(scope="module")
def scenes():
    """Pictures and true masks."""
    drawn = [sample_scene(7, index, SIZE, SIZE) for index in range(COUNT)]
    return [render(scene) for scene, _ in drawn], [mask for _, mask in drawn]


@pytest.fixture(scope="module")
def result(scenes):
    return ocl_msf.load("pretrained:scenes")(scenes[0])


def miou(predicted, true):
    one_hot = [
        torch.nn.functional.one_hot(torch.as_tensor(np.stack(masks)).long(), 11).permute(0, 3, 1, 2).float()
        for masks in (predicted, true)
    ]
    metric = UnsupervisedMaskIoUMetric()
    metric.update(*one_hot)
    return float(metric.compute())


def test_it_gives_slots_and_masks_of_the_pictures_own_size(result):
    assert result.slots.shape == (COUNT, 11, 67)  # 64 channels, a position and a scale
    assert all(mask.shape == (SIZE, SIZE) and mask.max() < 11 for mask in result.masks)
    assert result.reconstruct().shape == (COUNT, 3, 64, 64)


def test_it_segments_better_than_what_knows_nothing_of_objects(scenes, result):
    pictures, true = scenes
    score = miou(result.masks, true)
    colours = [nearest_colours(picture, colour_centres(picture, 11)) for picture in pictures]
    others = result.masks[1:] + result.masks[:1]
    for trivial in (colours, [blind_grid(SIZE, SIZE, 11)] * COUNT, others):
        assert score > miou(trivial, true) + 0.03


def test_a_dropped_slot_leaves_the_picture_where_it_was(result):
    alone = result.drop(*range(1, 11), picture=0)
    assert (alone.masks[0] == 0).all()
    before, after = result.reconstruct()[0], result.drop(0, picture=0).reconstruct()[0]
    changed, where = (after - before).abs().sum(0), result.scores[0, 0] > 0.5
    assert changed[where].mean() > changed[~where].mean()
