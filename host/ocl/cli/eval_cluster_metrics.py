"""Evaluate the classes of objects by clustering: `ocl_eval_cluster_metrics +evaluation=NAME train_config_path=RUN`.

Objects of the whole validation split are clustered, clusters are matched with classes, and the report has the IoU of
each class.
"""

import enum
import logging
import os
from dataclasses import dataclass
from typing import Any, Optional

import pytorch_lightning as pl
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, open_dict
from torch import Tensor

from ocl.cli import eval_utils
from ocl.cli.cli_utils import hydra_main
from ocl.cli.eval import build_datamodule, build_trainer, extend_model, load_train_config, resolve_paths, write_report
from ocl.cli.train import instantiate
from ocl.metrics import DatasetSemanticMaskIoUMetric
from ocl.metrics.utils import one_hot_argmax

log = logging.getLogger(__name__)


class RepresentationType(enum.Enum):
    """What stands for an object when it is clustered."""

    NONE = enum.auto()
    SLOTS = enum.auto()
    MASK_WEIGHTED_FEATURES = enum.auto()
    CLS_ON_MASKED_INPUT = enum.auto()


@dataclass
class EvaluationClusteringConfig:
    """What to cluster, how, and where to put the results."""

    train_config_path: str = MISSING
    n_classes: int = MISSING  # the largest id of a class
    clusterings: Any = None  # by name, such as `ocl.metrics.SklearnClustering`
    model_clusterings: Any = None  # paths of the clusters of objects that the model itself gives, by name
    train_config_overrides: Optional[list[str]] = None
    train_config_name: Optional[str] = None
    checkpoint_path: Optional[str] = None
    output_dir: Optional[str] = None
    report_filename: str = "clustering_metrics.json"
    batch_size: int = 25
    class_discovery_threshold: float = 0.02
    use_mask_threshold: bool = False
    mask_threshold: float = 0.5
    ignore_background: bool = False
    use_unmatched_as_background: bool = False
    use_ignore_masks: bool = False
    n_min_mask_pixels: int = 1  # smaller objects are not clustered
    n_min_max_mask_values: float = 1e-4  # nor are those whose masks are nowhere above
    representation_type: RepresentationType = RepresentationType.SLOTS
    modules: Any = None
    dataset: Any = None
    slots_path: str = "perceptual_grouping.objects"
    features_path: str = "feature_extractor.features"  # with CLS_ON_MASKED_INPUT the name of an auxiliary feature
    masks_path: str = "object_decoder.masks_as_image"
    masks_flat_path: str = "object_decoder.masks"
    target_masks_path: str = "input.segmentation_mask"
    ignore_masks_path: str = "input.ignore_mask"
    cluster_representation_path: str = "representation"
    empty_slots_path: str = "empty_slots"
    class_name_by_category_id: Optional[dict[int, str]] = None


ConfigStore.instance().store(name="evaluation_clustering_config", node=EvaluationClusteringConfig)


class _Extractor:
    """Keeps of each batch masks, true masks, ignored pixels, empty slots and what is to be clustered."""

    def __init__(self, config: DictConfig, model: Any):
        self.config, self.model, self.kind = config, model, config.representation_type
        self.paths = [config.masks_path, config.masks_flat_path, config.target_masks_path]
        self.paths += list((config.model_clusterings or {}).values())
        self.paths += [config.ignore_masks_path] if config.use_ignore_masks else []
        further = {
            RepresentationType.SLOTS: [config.slots_path],
            RepresentationType.MASK_WEIGHTED_FEATURES: [config.features_path],
            RepresentationType.CLS_ON_MASKED_INPUT: ["input.image", "object_decoder.masks_as_image"],
        }
        self.paths = list(dict.fromkeys([*self.paths, *further.get(self.kind, [])]))

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        config = self.config
        scores, flat = data[config.masks_path].flatten(0, -4), data[config.masks_flat_path].flatten(0, -3)
        is_top = (flat == flat.amax(dim=1, keepdim=True)) & (flat > 0)
        kept = {
            "masks": self._choose(scores),
            "targets": data[config.target_masks_path],
            "ignore": data[config.ignore_masks_path] if config.use_ignore_masks else None,
            "empty": (is_top.sum(-1) < config.n_min_mask_pixels) | (flat.amax(-1) < config.n_min_max_mask_values),
        }
        if self.kind != RepresentationType.NONE:
            kept["objects"] = self._represent(data, flat)
        return kept | {name: data[path] for name, path in (config.model_clusterings or {}).items()}

    def _choose(self, scores: Tensor) -> Tensor:
        """Return whose each pixel is (b, k, h, w)."""
        threshold = self.config.mask_threshold
        return (scores > threshold if self.config.use_mask_threshold else _winners(scores)).byte()

    def _represent(self, data: dict[str, Any], flat: Tensor) -> Tensor:
        """Return what is clustered (b, k, d)."""
        if self.kind == RepresentationType.SLOTS:
            return data[self.config.slots_path].flatten(0, -3)
        if self.kind == RepresentationType.MASK_WEIGHTED_FEATURES:
            return flat @ data[self.config.features_path].flatten(0, -3)
        from ocl.feature_extractors import TimmFeatureExtractor

        extractors: list[Any] = [part for part in self.model.modules() if isinstance(part, TimmFeatureExtractor)]
        if not extractors:
            raise ValueError("CLS_ON_MASKED_INPUT needs a TimmFeatureExtractor in the model, and there is none.")
        masks = self._choose(data["object_decoder.masks_as_image"].flatten(0, -4))  # of the image that the model saw
        parts = (masks.unsqueeze(2) * data["input.image"].unsqueeze(1)).flatten(0, 1)
        extractor = extractors[-1].eval()
        with torch.no_grad():
            features = extractor.forward_images(parts.to(self.model.device))[2][self.config.features_path]
        return features.flatten(1).unflatten(0, masks.shape[:2]).cpu()


def _winners(scores: Tensor) -> Tensor:
    return one_hot_argmax(scores) & (scores.amax(dim=1, keepdim=True) != 0)


def cluster_objects(batches: list[dict[str, Any]], clustering: Any) -> list[Tensor]:
    """Cluster what is not empty; return ids (b, k) of each batch from 1 on, and 0 for empty slots."""
    objects, kept = (torch.cat([batch[name].flatten(0, 1) for batch in batches]) for name in ("objects", "empty"))
    ids = torch.zeros(len(objects), dtype=torch.int64)
    if not kept.all():
        ids[~kept] = clustering.fit_predict(objects[~kept].float()) + 1
    sizes = [batch["empty"].numel() for batch in batches]
    return [part.view_as(batch["empty"]) for part, batch in zip(ids.split(sizes), batches)]


def score(config: DictConfig, batches: list[dict[str, Any]], ids: list[Tensor], n_clusters: int) -> dict[str, Any]:
    """Return the results of both matchings by name."""
    results, table = {}, None
    for matching in ("hungarian", "majority"):
        metric = DatasetSemanticMaskIoUMetric(
            n_clusters,
            config.n_classes,
            config.use_mask_threshold,
            matching=matching,
            ignore_background=config.ignore_background,
            use_unmatched_as_background=config.use_unmatched_as_background and matching == "hungarian",
        )
        if table is None:
            for batch, clusters in zip(batches, ids):
                metric.update(batch["masks"], batch["targets"], clusters, batch["ignore"])
            table = metric.confusion_mat
        metric.confusion_mat = table
        metric._update_count = 1  # the second one takes over what the first has counted
        results[matching] = {
            "settings": {"n_classes": config.n_classes, "n_clusters": n_clusters, "matching": matching},
            **summarize(config, *metric.compute()),
        }
    return results


def summarize(config: DictConfig, iou: Tensor, accuracy: Tensor, is_missing: Tensor) -> dict[str, Any]:
    """Average the IoU of the classes that occur, of all of them, of the foreground, and of those that were found."""
    first = int(config.ignore_background)
    present, foreground = iou[~is_missing], iou[1 - first :][~is_missing[1 - first :]]
    found = present[present > config.class_discovery_threshold]
    names = config.class_name_by_category_id or {number: str(number) for number in range(first, config.n_classes + 1)}
    return {
        "iou_mean": present.mean().item(),
        "iou_without_background": foreground.mean().item(),
        "accuracy": accuracy.item(),
        "num_discovered": len(found),
        "iou_discovered": found.mean().item() if len(found) else 0.0,
        "iou_per_class": {
            name: iou[number - first].item() for number, name in names.items() if first <= number <= config.n_classes
        },
    }


def predict(config: DictConfig) -> list[dict[str, Any]]:
    """Run the trained model over the validation split, and return what was kept of each batch."""
    train_config = load_train_config(config.train_config_path, config.train_config_overrides, config.train_config_name)
    with open_dict(config):
        config.update(eval_batch_size=config.batch_size, skip_metrics=True, save_outputs=False)
    eval_utils.seed_from_config(train_config)
    datamodule = build_datamodule(config, train_config)
    model = eval_utils.build_trained_model(train_config, config.checkpoint_path)
    extend_model(model, config)
    extract = _Extractor(config, model)
    collect = eval_utils.ExtractDataFromPredictions(extract.paths, transform=extract)
    trainer: Any = build_trainer(config, train_config)
    trainer.callbacks.append(collect)
    datamodule.prepare_data()
    datamodule.setup("validate")
    trainer.predict(model, datamodule.val_dataloader(), return_predictions=False)
    return collect.get_outputs()


@hydra_main("evaluation_clustering_config")
def evaluate(config: DictConfig) -> None:
    """Cluster the objects of a trained model and write the report.

    Raises:
        ValueError: if the training config, the checkpoint or the output folder does not exist, or nothing says how
            objects are clustered.
    """
    if not config.clusterings and not config.model_clusterings:
        raise ValueError("Say how to cluster: `clusterings` or `model_clusterings`, by name.")
    config = resolve_paths(config)
    batches = predict(config)
    report: dict[str, Any] = {name: config[name] for name in ("train_config_path", "checkpoint_path")}
    report["settings"] = {"representation_type": config.representation_type.name}
    assignments = {name: [batch[name] for batch in batches] for name in config.model_clusterings or {}}
    counts = {name: max(int(ids.max()) for ids in clusters) for name, clusters in assignments.items()}
    pl.seed_everything(0)
    for name, clustering in (instantiate(config.clusterings) or {}).items():
        assignments[name], counts[name] = cluster_objects(batches, clustering), clustering.n_clusters
    for name, ids in assignments.items():
        for matching, result in score(config, batches, ids, counts[name]).items():
            report[f"{name}_{matching}"] = result
            log.info("%s, %s: mIoU %.4f", name, matching, result["iou_mean"])
    path = os.path.join(config.output_dir, config.report_filename)
    write_report(path, report)
    log.info("Report: %s", path)


if __name__ == "__main__":
    evaluate()
