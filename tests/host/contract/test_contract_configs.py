"""Contract of the config schemas, the resolvers and the package `configs`."""

import inspect
import pickle
from pathlib import Path

import hydra
import numpy as np
import ocl.cli.eval
import ocl.cli.train
import pytest
import pytorch_lightning as pl
import yaml
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

# -------------------------------------------------------------------------------------------------------------- schemas


@pytest.mark.core
def test_training_config_schema(compose):
    config = compose("training_config")
    defaults = {
        "visualizations": {},
        "training_vis_frequency": None,
        "training_metrics": None,
        "evaluation_metrics": None,
        "load_checkpoint": None,
        "seed": None,
        "experiment": {"callbacks": {}},
    }
    mandatory = ["dataset", "models", "optimizers", "losses"]
    assert set(config) == {*defaults, *mandatory, "trainer"}
    assert all(OmegaConf.is_missing(config, name) for name in mandatory)
    assert {name: config[name] for name in defaults} == defaults


@pytest.mark.core
def test_trainer_schema_mirrors_lightning(compose):
    trainer = compose("training_config").trainer
    assert hydra.utils.get_class(trainer._target_) is pl.Trainer
    parameters = inspect.signature(pl.Trainer.__init__).parameters
    names = [n for n, p in parameters.items() if n != "self" and p.kind is not p.VAR_KEYWORD]
    assert set(names) <= set(trainer)
    assert trainer.max_steps == -1 and trainer.logger is None and trainer.precision in (None, "32-true")
    assert list(trainer.callbacks) == []
    with pytest.raises(ConfigCompositionException):
        compose("training_config", ["trainer.not_an_option=1"])


@pytest.mark.core
def test_callbacks_are_collected_from_the_experiment(compose):
    config = compose(
        "training_config",
        [
            "+experiment.callbacks.b._target_=ocl.callbacks.UpdateHyperparameterScheduling",
            "+experiment.callbacks.a._target_=ocl.callbacks.SetEpochEnvironmentVariable",
            "+experiment.anything=3",
        ],
    )
    assert [c._target_.split(".")[-1] for c in config.trainer.callbacks] == [
        "UpdateHyperparameterScheduling",
        "SetEpochEnvironmentVariable",
    ]


@pytest.mark.core
def test_evaluation_config_schema(compose):
    defaults = {
        "train_config_overrides": None,
        "train_config_name": None,
        "checkpoint_path": None,
        "output_dir": None,
        "report_filename": "metrics.json",
        "modules": None,
        "dataset": None,
        "evaluation_metrics": None,
        "save_outputs": False,
        "skip_metrics": False,
        "outputs_dirname": "outputs",
        "outputs_to_store": None,
        "n_samples_to_store": None,
        "eval_train": False,
        "eval_val": True,
        "eval_test": False,
        "eval_batch_size": None,
    }
    for name, overrides in (
        ("evaluation_config", []),
        ("evaluation/eval", []),
        ("evaluation_config", ["+evaluation=eval"]),
    ):
        config = compose(name, overrides)
        assert set(config) == {*defaults, "train_config_path"}
        assert OmegaConf.is_missing(config, "train_config_path")
        assert {key: config[key] for key in defaults} == defaults


@pytest.mark.core
def test_schema_dataclasses_are_public():
    assert {"dataset", "trainer", "experiment"} <= set(ocl.cli.train.TrainingConfig.__dataclass_fields__)
    assert "report_filename" in ocl.cli.eval.EvaluationConfig.__dataclass_fields__


# ------------------------------------------------------------------------------------------------------------ resolvers


def resolve(expression, **extra):
    return OmegaConf.create({"value": expression, **extra}).value


@pytest.mark.core
def test_lambda_resolvers():
    function = resolve("${lambda_fn:'lambda a, b=2: a * b'}")
    assert function(3) == 6 and function(3, b=5) == 15
    assert pickle.loads(pickle.dumps(function))(4) == 8
    expression = "${eval_lambda:'lambda d, e: d + e', ${d}, 10}"
    assert resolve(expression, d=5) == 15
    with pytest.raises(OmegaConfBaseException):
        resolve("${lambda_fn:'3 + 4'}")


@pytest.mark.core
@pytest.mark.parametrize("piece, expected", [("0", "a"), ("'1:'", "b/c"), ("':2'", "a/b")])
def test_slice_resolver(piece, expected):
    assert resolve("${slice:'a/b/c','/'," + piece + "}") == expected


@pytest.mark.core
def test_yaml_and_testing_resolvers(tmp_path, monkeypatch):
    (tmp_path / "x.yaml").write_text("a: [1, 2]\n")
    assert resolve("${read_yaml:'" + str(tmp_path / "x.yaml") + "'}") == {"a": [1, 2]}
    monkeypatch.setenv("RUNNING_TESTS", "true")
    assert resolve("${when_testing:1,2}") == 1
    monkeypatch.setenv("RUNNING_TESTS", "0")
    assert resolve("${when_testing:1,2}") == 2
    monkeypatch.delenv("RUNNING_TESTS")
    assert resolve("${when_testing:1,2}") == 2


@pytest.mark.core
def test_interpolation_mode_resolver():
    mode = resolve("${torchvision_interpolation_mode:bicubic}")
    assert mode.name == "BICUBIC" and type(mode).__name__ == "InterpolationMode"


# ------------------------------------------------------------------------------------------------------ configs package

CLEVR, COCO, MOVI_C = "clevr_with_masks", "coco2017", "movi_c"
DATASETS = {
    "clevr": (CLEVR + "/train/shard-{000000..000114}.tar", 70000, 15000, 15000),
    "clevr6": (CLEVR + "/train/shard-{000000..000114}.tar", 26240, 5553, 5600),
    "cater": ("cater_with_masks/train/shard-{000000..000152}.tar", 35427, 3937, 17100),
    "cater6": ("cater_with_masks/train/shard-{000000..000152}.tar", 11768, 1311, 5793),
    "cater_image": ("cater_with_masks/train/shard-{000000..000152}.tar", 106281, 11811, 51300),
    "cater6_image": ("cater_with_masks/train/shard-{000000..000152}.tar", 35304, 3933, 17379),
    "clevrer": ("clevrer/train/shard-{000000..000129}.tar", 10000, 1163, 3915),
    "coco": (COCO + "/train/shard-{000000..000412}.tar", 118287, 5000, 40670),
    "coco_nocrowd": (COCO + "/train/shard-{000000..000412}.tar", 118287, 5000, 40670),
    "movi_c": (MOVI_C + "/train/shard-{000000..000298}.tar", 9737, 250, 250),
    "movi_c_image": (MOVI_C + "/train/shard-{000000..000298}.tar", 87633, 6000, 6000),
    "movi_e": ("movi_e/train/shard-{000000..000679}.tar", 9749, 250, 250),
    "movi_e_image": ("movi_e/train/shard-{000000..000679}.tar", 87741, 6000, 6000),
    "voc2012": ("voc2012_detection/train/shard-{000000..000021}.tar", 5717, 5823, 10991),
    "voc2012_trainaug": ("voc2012/trainaug/shard-{000000..000040}.tar", 10582, 1449, None),
}


@pytest.mark.compat
@pytest.mark.parametrize("name", sorted(DATASETS))
def test_dataset_configs(compose, monkeypatch, name):
    monkeypatch.setenv("DATASET_PREFIX", "/prefix")
    dataset = compose("training_config", [f"+dataset={name}"]).dataset
    shards, train_size, val_size, test_size = DATASETS[name]
    assert dataset._target_ == "ocl.datasets.WebdatasetDataModule"
    assert dataset.train_shards == "/prefix/" + shards
    sizes = (dataset.train_size, dataset.val_size, dataset.test_size)
    assert sizes == (train_size, val_size, test_size)
    padded = name.startswith(("coco", "movi", "voc"))
    assert bool(dataset.get("use_autopadding", False)) == padded
    overridden = compose("training_config", [f"+dataset={name}", "+dataset.batch_size=3"])
    module = ocl.cli.train.build_and_register_datamodule_from_config(overridden, eval_batch_size=5, num_workers=0)
    assert (module.batch_size, module.eval_batch_size) == (3, 5)


@pytest.mark.compat
def test_evaluation_only_dataset_configs(compose, monkeypatch):
    monkeypatch.setenv("DATASET_PREFIX", "/prefix")
    coco = compose("training_config", ["+dataset=coco2014_20k"]).dataset
    assert coco.val_shards == "/prefix/coco2014/20k/shard-{000000..000064}.tar"
    assert coco.val_size == 19820 and "train_shards" not in coco
    voc = compose("training_config", ["+dataset=voc2012_trainval"]).dataset
    assert len(voc.train_shards) == len(voc.val_shards) == 45 and voc.train_size == 11540
    dummy = compose("training_config", ["+dataset=dummy_dataset", "dataset.batch_size=2"]).dataset
    assert dummy._target_ == "ocl.datasets.DummyDataModule" and dummy.train_size is None


@pytest.mark.core
@pytest.mark.parametrize("name, objects", [("movi_c", 11), ("movi_e", 24)])
def test_movi_configs_rename_and_expand_masks(compose, monkeypatch, through_pipeline, name, objects):
    monkeypatch.setenv("DATASET_PREFIX", "/prefix")
    dataset = compose("training_config", [f"+dataset={name}"]).dataset
    train = hydra.utils.instantiate(dataset.train_transforms, _convert_="all")
    evaluation = hydra.utils.instantiate(dataset.eval_transforms, _convert_="all")
    ids = np.random.RandomState(0).randint(0, 5, (3, 8, 8, 1)).astype(np.uint8)
    sample = {"__key__": "4", "video": np.zeros((3, 8, 8, 3), np.uint8), "segmentations": ids}
    (out,) = through_pipeline([sample], train)
    assert set(out) == {"__key__", "image"}
    (out,) = through_pipeline([sample], evaluation)
    assert out["image"].shape == (3, 8, 8, 3) and out["mask"].shape == (3, objects, 8, 8, 1)
    assert np.array_equal(out["mask"].argmax(1), ids)


@pytest.mark.core
@pytest.mark.parametrize("name, frames", [("movi_c_image", 9), ("movi_e_image", 9)])
def test_movi_image_configs_sample_frames(compose, monkeypatch, through_pipeline, name, frames):
    monkeypatch.setenv("DATASET_PREFIX", "/prefix")
    dataset = compose("training_config", [f"+dataset={name}"]).dataset
    sample = {
        "__key__": "12",
        "video": np.zeros((24, 4, 4, 3), np.uint8),
        "segmentations": np.zeros((24, 4, 4, 1), np.uint8),
    }
    train = hydra.utils.instantiate(dataset.train_transforms, _convert_="all")
    out = through_pipeline([sample], train)
    assert len(out) == frames and out[0]["image"].shape == (4, 4, 3)
    evaluation = hydra.utils.instantiate(dataset.eval_transforms, _convert_="all")
    out = through_pipeline([sample], evaluation)
    assert len(out) == 24 and out[0]["mask"].shape[1:] == (4, 4, 1)


@pytest.mark.compat
def test_filtered_dataset_configs(compose, monkeypatch, through_pipeline):
    monkeypatch.setenv("DATASET_PREFIX", "/prefix")
    for split in ("train_transforms", "eval_transforms"):
        config = compose("training_config", ["+dataset=clevr6"]).dataset[split]
        transforms = hydra.utils.instantiate(config, _convert_="all")
        samples = [{"__key__": str(n), "visibility": np.arange(11) < n} for n in (3, 6, 7, 11)]
        assert [s["__key__"] for s in through_pipeline(samples, transforms)] == ["3", "6"]


@pytest.mark.compat
def test_cluster_configs_exist(configs_dir):
    slurm = yaml.safe_load((configs_dir / "cluster" / "slurm.yaml").read_text())
    assert {"override /hydra/launcher": "submitit_slurm"} in slurm["defaults"]
    assert slurm["trainer"]["strategy"]["find_unused_parameters"] is True
    mlflow = yaml.safe_load((configs_dir / "cluster" / "mlflow_logging.yaml").read_text())
    assert mlflow["trainer"]["default_root_dir"] == "."
    assert {"checkpoint", "log_hydra_config", "log_model_summary"} <= set(mlflow["experiment"]["callbacks"])


@pytest.mark.modern
@pytest.mark.compat
def test_slurm_strategy_is_importable(configs_dir):
    trainer = yaml.safe_load((configs_dir / "cluster" / "slurm.yaml").read_text())["trainer"]
    assert issubclass(hydra.utils.get_class(trainer["strategy"]["_target_"]), pl.strategies.DDPStrategy)


@pytest.mark.modern
@pytest.mark.core
def test_configs_is_an_importable_package():
    import configs

    assert (Path(configs.__file__).parent / "experiment" / "_output_path.yaml").is_file()


FAMILIES = ("slate", "SAVi", "slot_attention", "projects/bridging/dinosaur")


@pytest.mark.compat
def test_shipped_community_experiments_compose(compose, configs_dir, monkeypatch):
    """A few experiments per family have to compose, and their targets to exist."""
    monkeypatch.setenv("DATASET_PREFIX", "/prefix")
    monkeypatch.setenv("RUNNING_TESTS", "true")
    names = [
        path.relative_to(configs_dir / "experiment").with_suffix("").as_posix()
        for family in FAMILIES
        for path in sorted((configs_dir / "experiment" / family).glob("[!_]*.yaml"))[-4:]
    ]
    assert names
    targets = set()

    def collect(node):
        if isinstance(node, dict):
            if "_target_" in node:
                targets.add(node["_target_"])
            for value in node.values():
                collect(value)
        elif isinstance(node, list):
            for value in node:
                collect(value)

    for name in names:
        config = compose("training_config", [f"+experiment={name}"])
        assert config.models and config.losses and config.optimizers
        collect(OmegaConf.to_container(config, resolve=True))
    optional = ("decord", "Timm")
    for target in sorted(targets):
        if not any(word in target for word in optional):
            assert callable(hydra.utils.get_method(target)), target


COMMUNITY_TARGETS = """
ocl.callbacks.UpdateHyperparameterScheduling ocl.datasets.WebdatasetDataModule
ocl.decoding.get_dvae_decoder ocl.decoding.get_dvae_encoder ocl.decoding.get_savi_decoder_backbone
ocl.decoding.get_slotattention_decoder_backbone ocl.neural_networks.build_mlp
ocl.neural_networks.build_transformer_decoder ocl.neural_networks.build_two_layer_mlp
ocl.neural_networks.positional_embedding.DummyPositionEmbed
ocl.neural_networks.positional_embedding.LearnedAdditivePositionalEmbed
ocl.neural_networks.positional_embedding.SoftPositionEmbed ocl.neural_networks.slate.OneHotDictionary
ocl.neural_networks.wrappers.Sequential ocl.optimization.OptimizationWrapper
ocl.preprocessing.AddEmptyMasks ocl.preprocessing.AddSegmentationMaskFromInstanceMask
ocl.preprocessing.Denormalize ocl.preprocessing.DenseMaskToTensor ocl.preprocessing.DropEntries
ocl.preprocessing.FlowToTensor ocl.preprocessing.InstanceMasksToDenseMasks
ocl.preprocessing.IntegerToOneHotMask ocl.preprocessing.MaskToTensor
ocl.preprocessing.MultiMaskToTensor ocl.preprocessing.RenameFields
ocl.preprocessing.ResizeNearestExact ocl.preprocessing.VOCInstanceMasksToDenseMasks
ocl.preprocessing.VideoToTensor ocl.scheduling.CosineAnnealingHPScheduler
ocl.scheduling.cosine_annealing_with_optional_warmup
ocl.scheduling.exponential_decay_after_optional_warmup ocl.transforms.DecodeRandomStridedWindow
ocl.transforms.Filter ocl.transforms.Map ocl.transforms.SampleConsecutive
ocl.transforms.SampleSlices ocl.transforms.SimpleTransform ocl.transforms.VideoDecoder
ocl.utils.routing.Recurrent routed.ocl.conditioning.LearntConditioning
routed.ocl.conditioning.RandomConditioning routed.ocl.decoding.AutoregressivePatchDecoder
routed.ocl.decoding.DVAEDecoder routed.ocl.decoding.PatchDecoder
routed.ocl.decoding.SlotAttentionDecoder routed.ocl.decoding.SlotAttentionOpticalFlowDecoder
routed.ocl.feature_extractors.DVAEFeatureExtractor
routed.ocl.feature_extractors.SAViFeatureExtractor
routed.ocl.feature_extractors.SlotAttentionFeatureExtractor
routed.ocl.losses.LatentDupplicateSuppressionLoss routed.ocl.losses.ReconstructionLoss
routed.ocl.metrics.ARIMetric routed.ocl.metrics.AverageBestOverlapMetric
routed.ocl.metrics.MaskCorLocMetric routed.ocl.metrics.UnsupervisedMaskIoUMetric
routed.ocl.perceptual_grouping.SlotAttentionGrouping routed.ocl.utils.resizing.Resize
routed.ocl.visualizations.Flow routed.ocl.visualizations.Image routed.ocl.visualizations.Mask
routed.ocl.visualizations.Segmentation routed.ocl.visualizations.Video
routed.ocl.visualizations.VisualObject
"""


@pytest.mark.compat
def test_targets_of_community_experiments_exist():
    for target in COMMUNITY_TARGETS.split():
        assert callable(hydra.utils.get_method(target)), target
