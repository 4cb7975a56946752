"""Every community experiment trains a step, and is evaluated, on shards of a few tiny samples."""

import io
import json
import math
import tarfile
from pathlib import Path

import hydra
import numpy as np
import ocl.cli.eval
import ocl.cli.eval_cluster_metrics
import ocl.cli.train
import pytest
import pytorch_lightning as pl
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from ocl._coco_classes import SUPERCLASSES
from ocl.cli import cli_utils
from ocl.utils.routing import Combined
from omegaconf import OmegaConf
from PIL import Image

import configs

CONFIGS = Path(configs.__file__).parent
BRIDGING = "projects/bridging"
DINOSAUR = f"{BRIDGING}/dinosaur/coco_feat_rec_dino_base16_auto"
FEATURES_OR_IMAGE = f"{BRIDGING}/experiment_image_feature_rec"

SMALL = {
    "slate": ["experiment.image_size=16", "experiment.dim=8", "experiment.vocab_size=12"],
    "slot_attention": ["models.conditioning.n_slots=2"],
    "examples": [],
    "clip": [],
    "SAVi": ["experiment.dim=8", "experiment.n_frames=2"],
    "projects": [
        "experiment.backbone={name: vit_tiny_patch16_224, dim: 192, n_patches: 196}",
        "experiment.grouping={number: 3, dim: 8, hidden_dim: 8}",
    ],
}
EXPERIMENTS = {  # one of each kind, and what its losses are called
    "slot_attention/clevr6": {"mse"},
    "slot_attention/voc2012_trainaug": {"mse"},
    "slot_attention/movi_c_optical_flow": {"mse"},
    "examples/slot_masking": {"mse"},
    "slate/clevr6": {"vq_ce", "vq_mse"},
    "slate/coco": {"vq_ce", "vq_mse"},
    "slate/movi_c": {"vq_ce", "vq_mse"},
    "slate/movi_e": {"vq_ce", "vq_mse"},
    "SAVi/cater": {"mse"},
    DINOSAUR: {"mse"},
    f"{BRIDGING}/dinosaur/movi_c_feat_rec": {"mse"},
    f"{FEATURES_OR_IMAGE}/coco_image_rec_base16_frozen": {"mse"},
}
PARAMETERS = {  # of every experiment, as counted in OCLF
    721_956: ["SAVi/cater", "SAVi/clevrer"],
    975_684: ["SAVi/clevrer_highres"],
    923_140: [
        *(f"slot_attention/{data}" for data in ("clevr6", "clevr10", "clevr10_lds", "cater6", "cater10")),
        *("examples/hp_scheduling", "examples/parameter_groups"),
    ],
    923_204: ["examples/slot_masking"],
    922_563: ["slot_attention/movi_c_optical_flow"],
    902_794: ["occluded_slot_attention/clevr6"],
    23_058_756: [
        f"{folder}slot_attention/{data}"
        for folder in ("", f"{BRIDGING}/")
        for data in ("coco", "movi_c", "movi_e", "voc2012_trainaug")
    ],
    7_651_267: [f"slate/{data}" for data in ("clevr6", "coco", "movi_c", "movi_e", "voc2012_trainaug")],
    98_249_985: [
        f"{BRIDGING}/dinosaur/coco_feat_rec_dino_base16",
        *(f"{FEATURES_OR_IMAGE}/coco_feat_rec_dino_base16_{encoder}" for encoder in ("fine", "frozen")),
    ],
    126_302_464: [
        f"{BRIDGING}/dinosaur/{name}_base16_auto"
        for name in ("coco_feat_rec_dino", "coco_feat_rec_in", "voc2012_trainaug_feat_rec_dino")
    ],
    32_745_088: [f"{BRIDGING}/dinosaur/coco_feat_rec_{encoder}_small16_auto" for encoder in ("dino", "in")],
    22_048_833: [f"{BRIDGING}/dinosaur/coco_feat_rec_resnet50"],
    24_874_625: [f"{BRIDGING}/dinosaur/movi_{x}_feat_rec" for x in "ce"],
    31_808_640: [f"{BRIDGING}/dinosaur/movi_{x}_feat_rec_auto" for x in "ce"],
    118_945_345: [f"{FEATURES_OR_IMAGE}/coco_feat_rec_dino_base16_resnet_scratch"],
    184_047_105: [f"{FEATURES_OR_IMAGE}/coco_feat_rec_dino_base16_scratch"],
    102_007_136: ["clip/coco_finetuning"],
    88_423_172: [f"{FEATURES_OR_IMAGE}/coco_image_rec_base16_{x}" for x in ("fine", "frozen", "scratch")],
}
RNG = np.random.default_rng(0)


def one_hot(*shape):
    """Random masks (K, H, W, 1), or (T, K, H, W, 1), of which one is set in every pixel."""
    *lead, classes, height, width, _ = shape
    winners = RNG.integers(0, classes, (*lead, 1, height, width, 1))
    return (winners == np.arange(classes)[:, None, None, None]).astype(np.uint8)


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def clevr(index):
    visibility = np.arange(11) < (5 if index else 9)  # the first scene has too many objects
    return {"image": pixels(240, 320, 3), "mask": one_hot(11, 240, 320, 1), "visibility": visibility}


def cater(index):
    return {"image": pixels(5, 24, 32, 3), "mask": one_hot(5, 11, 24, 32, 1)}


def movi(index):
    ids = RNG.integers(0, 11, (24, 16, 16, 1), dtype=np.uint8)
    flow = RNG.normal(size=(24, 16, 16, 2)).astype(np.float32)
    return {"video": pixels(24, 16, 16, 3), "segmentations": ids, "backward_flow": flow}


def coco(index):
    stuff = RNG.choice([0, 89, 91, 181, 255], (30, 40, 1)).astype(np.uint8)
    sample = {"image": pixels(30, 40, 3), "stuffthings_mask": stuff.repeat(3, -1), "caption": [f"image {index}", "one"]}
    if index == 0:  # an image without objects
        return sample
    masks = RNG.integers(0, 2, (index, 30, 40, 1), dtype=np.uint8)
    boxes = np.tile(np.float32([1, 2, 3, 4]), (index, 1))  # x, y, width, height
    categories = np.arange(index) + 1
    return {**sample, "instance_mask": masks, "instance_category": categories, "instance_bbox": boxes}


def voc(index):
    instances = np.where(RNG.random((30, 40, 1)) < 0.1, 255, RNG.integers(0, index + 2, (30, 40, 1))).astype(np.uint8)
    classes = np.where(instances < 255, instances + 3 * (instances > 0), 255).astype(np.uint8)
    boxes = np.float32([[0.1, 0.2, 0.3, 0.4]])  # relative, row first
    masks = {"segmentation-instance": instances, "segmentation-class": classes}
    return {"image": pixels(30, 40, 3), "objects.bbox": boxes, **masks}


SAMPLES = {
    **{"clevr6": clevr, "cater": cater, "movi_c": movi, "movi_e": movi, "coco": coco},
    **{"voc2012_trainaug": voc, "slot_masking": clevr},
}


def encode(name, value):
    """Return the name of a shard's member, and its bytes."""
    buffer = io.BytesIO()
    if name == "image" and value.ndim == 3:
        Image.fromarray(value).save(buffer, "png")
        return "image.png", buffer.getvalue()
    if isinstance(value, list):
        return f"{name}.json", json.dumps(value).encode()
    np.save(buffer, value)
    return f"{name}.npy", buffer.getvalue()


def write_shard(path, sample, count):
    with tarfile.open(path, "w") as archive:
        for index in range(count):
            for name, value in sample(index).items():
                member, content = encode(name, value)
                info = tarfile.TarInfo(f"{index:03}.{member}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return str(path)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return {name: write_shard(folder / f"{name}.tar", make, 4) for name, make in SAMPLES.items()}


@pytest.fixture
def compose(shards, tmp_path, monkeypatch):
    """Compose an experiment on the shards of its data, at a tiny size, launched from an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATASET_PREFIX", "/unused")
    monkeypatch.setenv("RUNNING_TESTS", "true")

    def run(experiment, *overrides):
        (data,) = (name for name in SAMPLES if name in experiment)
        command = [
            f"+experiment={experiment}",
            *(f"dataset.{split}_shards={shards[data]}" for split in ("train", "val", "test")),
            "dataset.batch_size=2",
            "dataset.num_workers=0",
            "trainer.accelerator=cpu",
            "trainer.max_steps=1",
            "trainer.limit_val_batches=1",
            "trainer.num_sanity_val_steps=0",
            "trainer.val_check_interval=1",
            "trainer.check_val_every_n_epoch=1",
            "trainer.enable_model_summary=false",
            "training_vis_frequency=1",
            "seed=0",
            *SMALL[experiment.split("/")[0]],
            *overrides,
        ]
        return hydra_compose("training_config", command)

    return run


def hydra_compose(name, overrides):
    GlobalHydra.instance().clear()
    with cli_utils.hydra_1_1(), hydra.initialize_config_dir(str(CONFIGS), version_base="1.1"):
        return hydra.compose(name, overrides=list(overrides))


def watch(monkeypatch):
    """Add a callback that keeps the trainer after its last step; returns where it will be."""
    seen = {}

    class Keep(pl.Callback):
        def on_train_end(self, trainer, module):
            seen.update(steps=trainer.global_step, metrics=dict(trainer.callback_metrics))

    monkeypatch.setattr("ocl.callbacks.LogProgress", Keep)
    return seen


def test_every_community_experiment_is_tested():
    folder = CONFIGS / "experiment"
    names = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("**/*.yaml")}
    leaves = {name for name in names if not any(part.startswith("_") for part in name.split("/"))}
    assert leaves == {name for experiments in PARAMETERS.values() for name in experiments}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_community_experiment_trains_and_is_evaluated(experiment, compose, monkeypatch, tmp_path):
    config = compose(experiment)
    (tmp_path / "config").mkdir()
    OmegaConf.save(config, tmp_path / "config" / "config.yaml")
    seen = watch(monkeypatch)
    ocl.cli.train.train(config)
    losses = EXPERIMENTS[experiment]
    assert seen["steps"] == 1
    assert {f"{split}/{name}" for split in ("train", "val") for name in losses} <= set(seen["metrics"])
    scores = {f"val/{name}" for name in config.evaluation_metrics}
    assert scores <= set(seen["metrics"]) and len(scores) >= 4
    assert all(math.isfinite(value) for value in seen["metrics"].values()), seen["metrics"]

    overrides = [f"train_config_path={tmp_path}", "eval_batch_size=2"]
    own = (CONFIGS / f"evaluation/{experiment}.yaml").exists()
    evaluation = hydra_compose(f"evaluation/{experiment if own else 'eval'}", overrides)
    ocl.cli.eval.evaluate(evaluation)
    report = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert set(report) == ({"val", "test"} if evaluation.eval_test else {"val"})
    for metrics in report.values():
        assert {*losses, *config.evaluation_metrics} <= set(metrics)
        assert all(math.isfinite(value) for value in metrics.values())


EVALUATIONS = {  # of OCLF's names, by the experiment whose run they score, and how many scores they have
    DINOSAUR: {"metrics_coco": 7, "metrics_coco_20k": 7, "metrics_voc2012_masks": 8, "metrics_voc2012_bboxes": 2},
    f"{BRIDGING}/dinosaur/movi_c_feat_rec": {"metrics_movi_c": 4, "outputs_movi": 0},
}


@pytest.mark.parametrize("experiment", EVALUATIONS)
def test_evaluations_by_the_names_of_oclf_score_runs(experiment, compose, shards, tmp_path):
    config = compose(experiment)
    (tmp_path / "config").mkdir()
    OmegaConf.save(config, tmp_path / "config" / "config.yaml")
    ocl.cli.train.train(config)
    for name, count in EVALUATIONS[experiment].items():
        data = "voc2012_trainaug" if "voc" in name else "movi_c" if "movi" in name else "coco"
        own = "movi" not in name
        overrides = [f"train_config_path={tmp_path}", *([f"dataset.val_shards={shards[data]}"] if own else [])]
        overrides += ["n_samples_to_store=2"] if name == "outputs_movi" else []
        evaluation = hydra_compose(f"evaluation/{BRIDGING}/{name}", overrides)
        ocl.cli.eval.evaluate(evaluation)
        metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]["val"]
        losses = {"mse"}
        assert len(metrics) == count + len(losses), (name, metrics)
        assert all(math.isfinite(value) for value in metrics.values())


CLUSTERINGS = {  # the name of the clusters, the number of classes, and whether background is one
    "clustering_coco": ("kmeans172_l2", 80, True),
    "clustering_coco_cls": ("kmeans172_l2", 80, True),
    "clustering_coco_20k": ("kmeans172_l2", 80, True),
    "clustering_coco_27": ("kmeans27_l2", 27, False),
    "clustering_coco_thingsandstuff": ("kmeans172_l2", 171 + 1, False),
    "clustering_voc2012": ("kmeans105_l2", 20, True),
}


def test_clusterings_by_the_names_of_oclf_score_runs(compose, shards, tmp_path):
    config = compose(DINOSAUR)
    (tmp_path / "config").mkdir()
    OmegaConf.save(config, tmp_path / "config" / "config.yaml")
    ocl.cli.train.train(config)
    for name, (clusters, classes, has_background) in CLUSTERINGS.items():
        data = shards["voc2012_trainaug" if "voc" in name else "coco"]
        overrides = [f"train_config_path={tmp_path}", f"dataset.val_shards={data}"]
        overrides += [f"clusterings.{clusters}={{n_clusters:4,clustering_kwargs:{{n_init:1}}}}"]
        evaluation = hydra_compose(f"evaluation/{BRIDGING}/{name}", overrides)
        ocl.cli.eval_cluster_metrics.evaluate(evaluation)
        report = json.loads((tmp_path / "clustering_metrics.json").read_text())
        for matching in ("hungarian", "majority"):
            result = report[f"{clusters}_{matching}"]
            assert len(result["iou_per_class"]) == classes + has_background, name
            assert 0 <= result["iou_mean"] <= 1 and 0 <= result["accuracy"] <= 1


def test_classes_are_named_as_preprocessing_numbers_them():
    named = hydra_compose(f"evaluation/{BRIDGING}/clustering_coco_27", []).class_name_by_category_id
    assert list(named.values())[1:] == list(SUPERCLASSES)


def test_every_evaluation_by_the_names_of_oclf_composes(monkeypatch):
    monkeypatch.setenv("DATASET_PREFIX", "/unused")
    for path in (CONFIGS / "evaluation").glob("**/*.yaml"):
        if not path.name.startswith("_"):
            name = path.relative_to(CONFIGS).with_suffix("").as_posix()
            hydra_compose(name, ["train_config_path=/unused"])


@pytest.mark.parametrize("schema", ["training_config", "evaluation_config", "evaluation_clustering_config"])
def test_keys_that_a_config_does_not_have_are_an_error(schema):
    with pytest.raises(ConfigCompositionException, match="plugins"):
        hydra_compose(schema, ["plugins={}"])


@pytest.mark.parametrize("size", PARAMETERS)
def test_community_models_are_shaped_as_in_oclf(size, monkeypatch):
    monkeypatch.setenv("DATASET_PREFIX", "/unused")
    monkeypatch.setenv("RUNNING_TESTS", "true")
    models = [hydra_compose("training_config", [f"+experiment={name}"]).models for name in PARAMETERS[size]]
    with torch.device("meta"):
        built = torch.nn.ModuleDict(ocl.cli.train.instantiate(models[0]))
    assert sum(parameter.numel() for parameter in built.parameters()) == size
    grids = [buffer.shape for name, buffer in built.named_buffers() if name.endswith(".grid")]
    assert all(shape in {(8, 8, 2), (16, 16, 2)} for shape in grids)


def test_clip_compares_images_with_their_captions(compose):
    config = compose("clip/coco_finetuning")
    data = ocl.cli.train.instantiate(config.dataset)
    data.setup("fit")
    with torch.device("meta"):
        models, losses = (ocl.cli.train.instantiate(config[part]) for part in ("models", "losses"))
        models = Combined(**models)
    for batch in (next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))):
        assert all(text == "one" or text.startswith("image ") for text in batch["caption_str"])
        assert batch["image"].shape == (2, 3, 224, 224) and batch["caption"].shape == (2, 77)
        tree = {"input": {name: batch[name].to("meta") for name in ("image", "caption")}, "model": None}
        tree.update(models(inputs=tree))
        loss, further = losses["clip"](inputs=tree)
        assert loss.shape == () and further["similarities"].shape == (2, 2)


def test_the_vision_transformer_is_pretrained_but_in_tests(compose, monkeypatch):
    assert compose(DINOSAUR).models.feature_extractor.pretrained is False
    monkeypatch.delenv("RUNNING_TESTS")
    assert compose(DINOSAUR).models.feature_extractor.pretrained is True
