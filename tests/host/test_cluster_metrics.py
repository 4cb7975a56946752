"""`ocl_eval_cluster_metrics`: what is clustered, and what the report says; scikit-learn is the judge."""

import pytest
import torch
from ocl.cli.eval_cluster_metrics import (
    EvaluationClusteringConfig,
    RepresentationType,
    _Extractor,
    cluster_objects,
    score,
)
from ocl.metrics import SklearnClustering
from omegaconf import OmegaConf
from sklearn.metrics import accuracy_score, jaccard_score


def make_config(**options):
    return OmegaConf.structured(EvaluationClusteringConfig(train_config_path="run", n_classes=2, **options))


def outputs_of(truth):
    """Two images of 4x4 pixels; the slots are the four rows, the third of the first image is empty."""
    rows = torch.eye(4).view(1, 4, 4, 1).expand(2, 4, 4, 4).clone()
    rows[0, 1] += rows[0, 2]
    rows[0, 2] = 0
    features = torch.nn.functional.one_hot(truth, 3).float() * torch.tensor([1.0, 2, 3])
    return {
        "object_decoder.masks_as_image": rows,
        "object_decoder.masks": rows.flatten(2),
        "feature_extractor.features": features.flatten(1, 2),
        "perceptual_grouping.objects": rows.mean(-1),
        "input.segmentation_mask": truth.unsqueeze(1),
    }


@pytest.mark.parametrize("kind", ["MASK_WEIGHTED_FEATURES", "SLOTS", "NONE"])
def test_what_is_clustered(kind):
    data = outputs_of(torch.zeros(2, 4, 4, dtype=torch.int64))
    kept = _Extractor(make_config(representation_type=RepresentationType[kind]), None)(data)
    assert kept["empty"].tolist() == [[False, False, True, False], [False] * 4]
    assert torch.equal(kept["masks"], data["object_decoder.masks_as_image"].byte())
    expected = {"SLOTS": data["perceptual_grouping.objects"]}
    expected["MASK_WEIGHTED_FEATURES"] = data["object_decoder.masks"] @ data["feature_extractor.features"]
    assert ("objects" in kept) == (kind in expected)
    if kind in expected:
        assert torch.equal(kept["objects"], expected[kind])


def test_report_of_clusters():
    truth = torch.tensor([[0, 1, 1, 2], [2, 2, 1, 0]]).unsqueeze(-1).expand(2, 4, 4).clone()
    truth[0, 3, :2] = 0  # half of a row is of another class
    config = make_config(
        representation_type=RepresentationType.MASK_WEIGHTED_FEATURES, class_name_by_category_id={1: "one", 7: "far"}
    )
    batches = [_Extractor(config, None)(outputs_of(truth))]
    clustering = SklearnClustering(3, clustering_kwargs={"random_state": 0, "n_init": 5}, use_l2_normalization=True)
    ids = cluster_objects(batches, clustering)
    assert ids[0][0, 2] == 0 and ids[0].unique().tolist() == [0, 1, 2, 3]
    results = score(config, batches, ids, 3)
    found = truth.clone()
    found[0, 3] = 2  # rows are of one cluster
    iou = jaccard_score(truth.flatten(), found.flatten(), average=None)
    for matching in ("hungarian", "majority"):
        result = results[matching]
        assert result["iou_mean"] == pytest.approx(iou.mean())
        assert result["iou_without_background"] == pytest.approx(iou[1:].mean())
        assert result["accuracy"] == pytest.approx(accuracy_score(truth.flatten(), found.flatten()))
        assert result["iou_per_class"] == {"one": pytest.approx(iou[1])} and result["num_discovered"] == 3
        assert result["settings"] == {"n_classes": 2, "n_clusters": 3, "matching": matching}
