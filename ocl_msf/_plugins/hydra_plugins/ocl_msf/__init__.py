"""Tells every Hydra application of this environment what `ocl_msf` has: its configs and resolvers."""

import copy
import functools
import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Optional

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.utils import get_method, to_absolute_path
from hydra_plugins.ocl_msf import components
from omegaconf import DictConfig, ListConfig, OmegaConf

FORMER_DATASETS = {
    **{f"movi_{variant}_boxes": f"movi dataset.name=movi_{variant}" for variant in "cde"},
    **{f"movi_{variant}_boxes_lmdb": f"movi dataset.name=movi_{variant}_lmdb" for variant in "cde"},
    **{f"{name}_lmdb": f"{name} dataset.name={name}_lmdb" for name in ("clevrtex", "clevrtex_camo", "openimages")},
    **{f"{name}_lmdb": f"{name} dataset.name={name}_lmdb" for name in ("coco_panoptic", "voc", "voc_trainaug")},
    "clevrtex_ood_lmdb": "clevrtex_ood dataset.name=clevrtex_outd_lmdb",
}
# +msf/cache=<name>: the fields of a cache, which frozen part of the models makes each, and the models that take them.
CACHES = {
    "codes": ({"codes": "guidance"}, {"guidance": {"codes_path": "input.codes"}}),
    "features": (
        {"codes": "guidance", "tokens": "feature_extractor.vit"},
        {"guidance": {"codes_path": "input.codes"}, "feature_extractor": {"tokens_path": "input.tokens"}},
    ),
}
# What a command of stage 2 says of its data and its VAE, and the command that trains that VAE repeats.
OF_STAGE_ONE = re.compile(
    r"\+*(experiment|dataset(\..*)?|msf/(variant|preset|shards)|experiment\.(data|image_size|num_scales|token_dim|vae(\..*)?))="
)
FORMER_SETTINGS = {"experiment.dino": "experiment.vit.name", "experiment.dino_weights": "experiment.vit.weights"}


class MSFSearchPathPlugin(SearchPathPlugin):
    """Appends the configs of `ocl_msf` to the search path, after those of the application."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("ocl-msf", f"file://{configs()}")
        OmegaConf.register_new_resolver("msf_evaluation", part_of_evaluation, replace=True)
        OmegaConf.register_new_resolver("msf_run", value_of_run, replace=True)
        OmegaConf.register_new_resolver("msf_run_folder", run_folder, replace=True)
        OmegaConf.register_new_resolver("msf_former", refuse, replace=True)
        OmegaConf.register_new_resolver("msf_setting", setting, replace=True)
        OmegaConf.register_new_resolver("msf_image_size", image_size, replace=True)
        OmegaConf.register_new_resolver("msf_if_video", if_video, replace=True)
        OmegaConf.register_new_resolver("msf_vae_data", vae_data, replace=True)
        OmegaConf.register_new_resolver("msf_vae_command", vae_command, replace=True)
        OmegaConf.register_new_resolver("msf_scale_of_patches", scale_of_patches, replace=True)
        OmegaConf.register_new_resolver("msf_normalization", normalization, replace=True)
        OmegaConf.register_new_resolver("msf_shards", converted_shards, replace=True)
        OmegaConf.register_new_resolver("msf_text", text, replace=True)
        store_configs()


class SharedNode(ConfigNode):
    """A config of which copies of the store are no copies: Hydra copies the store for every composition.

    What it loads from a store it copies once more, and changes that alone.
    """

    def __deepcopy__(self, memo: Any) -> "SharedNode":
        return self


def store(name: str, node: Dict[str, Any], group: str, package: Optional[str] = None) -> None:
    """Store a config as a choice of a group."""
    ConfigStore.instance().store(name, node, group=group, package=package, provider="ocl-msf")
    stored: Any = ConfigStore.instance().repo
    for part in group.split("/"):
        stored = stored[part]
    stored[f"{name}.yaml"] = SharedNode(**vars(stored[f"{name}.yaml"]))


@functools.lru_cache(maxsize=None)
def store_configs() -> None:
    """Store what is no file, once in a process: parts by name, evaluations of experiments, caches and former names."""
    components.register(store)
    for leaf in (configs() / "experiment" / "msf").glob("[!_]*.yaml"):
        scores = {"defaults": ["/evaluation/msf/scores"]}
        store(leaf.stem, scores, group="evaluation/msf", package="_global_")
    for name, (parts, models) in CACHES.items():
        store(name, cache(parts, models), group="msf/cache", package="_global_")
    for name in FORMER_DATASETS:
        former = {"defaults": ["_converted", "_self_"], "name": f"${{msf_former:{name}}}"}
        store(name, former, group="dataset")


def configs() -> Path:
    """The folder of the configs, in an installed package or a checkout."""
    (folder,) = importlib.util.find_spec("ocl_msf").submodule_search_locations  # type: ignore[union-attr, misc]
    package = Path(folder)
    installed, checkout = package / "configs", package.parent / "configs"
    return installed if installed.is_dir() else checkout


def run_folder(path: str, launch: Any, node: Any, *, _root_: DictConfig) -> str:
    """The folder of a run; see `ocl_msf.training.folders`, which needs PyTorch."""
    return get_method("ocl_msf.training.folders.run_folder")(path, str(launch), str(node), _root_)


def refuse(name: str) -> NoReturn:
    """Say what a data set's config is called now."""
    raise ValueError(
        f"dataset={name} is gone: without the suffix, one config reads shards and LMDB. Data converted before are "
        f"read by dataset={FORMER_DATASETS[name]}"
    )


def setting(key: str, *, _root_: DictConfig) -> Any:
    """A setting of a config, unless one is given under a former name, which is an error."""
    for former, name in FORMER_SETTINGS.items():
        if OmegaConf.select(_root_, former) is not None:
            raise ValueError(f"{former} is called {name} now.")
    return OmegaConf.select(_root_, key)


def cache(parts: Dict[str, str], models: Dict[str, Any]) -> Dict[str, Any]:
    """The config of `+msf/cache`; see `ocl_msf.training.cache`, and `CACHES` for the arguments."""
    callback = {
        "_target_": "ocl_msf.training.cache.CacheFrozen",
        "parts": parts,
        "folder": "${experiment.cache_folder}",
        "settings": ["${msf_text:dataset.train_transforms}", "${msf_text:models.guidance.vae}"],
    }
    folder = "${oc.select:dataset.prefix,${oc.env:DATASET_PREFIX,data}}/cache"
    return {"models": models, "experiment": {"cache_folder": folder, "callbacks": {"cache_frozen": callback}}}


def text(key: str, *, _root_: DictConfig) -> str:
    """A part of a config as text, equal for equal content."""
    content = OmegaConf.to_container(OmegaConf.select(_root_, key), resolve=True)
    return json.dumps(content, sort_keys=True, default=str)


def before_preset(value: Any, *, _root_: DictConfig) -> Any:
    """The value, in `+msf=guidance`, unless a preset stands before it: the defaults would replace its numbers."""


def image_size(*, _root_: DictConfig) -> int:
    """Height and width of the images of a community experiment, for `+msf=guidance`.

    Our host's experiments have it as `experiment.image_size`, OCLF's in what they do with images before evaluation:
    the last size there. Without one, it is what the decoder gives: 64 for the small one of SAVi, else 128.

    Raises:
        ValueError: a preset stands before `+msf=guidance`, which would replace its numbers.
    """
    name = OmegaConf.select(_root_, "experiment.preset_name")
    if name and not _root_.experiment.preset:  # set by the preset, then replaced
        raise ValueError(f"+msf/preset={name} must stand behind +msf=guidance on the command line.")
    size = OmegaConf.select(_root_, "experiment.image_size")
    if size is not None:
        return size
    transforms = OmegaConf.to_container(_root_.dataset.get("eval_transforms") or OmegaConf.create(), resolve=False)
    images = [step.get("transforms", {}).get("image", {}) for _, step in sorted(transforms.items())]  # type: ignore
    sizes = [step["size"] for image in images for step in image.get("transforms", []) if "size" in step]
    decoder = OmegaConf.select(_root_, "models.object_decoder.decoder") or {}
    small = str(decoder.get("_target_")).endswith("savi_decoder_backbone") and not decoder.get("larger_input_arch")
    return ([64 if small else 128] + [max(size) if isinstance(size, list) else size for size in sizes])[-1]


def vae_data(experiment: str) -> str:
    """The data set of a community experiment, as the experiments of stage 1 call it; else the end of its name."""
    name = experiment.split("/")[-1]
    leaves = [path.stem[6:] for path in (configs() / "experiment" / "msf").glob("vqvae_*.yaml")]
    return next((data for data in sorted(leaves, reverse=True) if name.startswith(data)), name)


def vae_command() -> str:
    """The command that trains stage 1 on the data of the community experiment that runs, with what it says of these."""
    if not HydraConfig.initialized():
        return "ocl_train +experiment=NAME +msf=vqvae"
    config = HydraConfig.get()
    folders = [source.path for source in config.runtime.config_sources if source.provider == "command-line"]
    given = [re.sub(r"^(\+*msf)=\w+$", r"\1=vqvae", override) for override in config.overrides.task]
    chosen = [override for override in given if OF_STAGE_ONE.match(override) or override.endswith("msf=vqvae")]
    if not any(override.endswith("msf=vqvae") for override in chosen):
        chosen.append("msf=vqvae")  # a config of one's own chooses +msf=guidance itself
    options = [word for folder in folders for word in ("--config-dir", folder)]
    return " ".join(map(shlex.quote, ["ocl_train", *options, *chosen]))


def scale_of_patches(size: int, *, _root_: DictConfig) -> int:
    """The scale, 1 the finest, that has as many tokens as an experiment has patches in an image.

    Raises:
        ValueError: the decoder of the experiment has no patches, or no scale has as many.
    """
    num_patches = OmegaConf.select(_root_, "models.object_decoder.num_patches")
    if num_patches is None or "decoder_dvae" in _root_.models:
        raise ValueError("+msf=targets is for experiments that reconstruct features; for this one take +msf=guidance.")
    for scale in range(1, 8):
        if (size // 2 ** (scale + 1)) ** 2 == num_patches:
            return scale
    raise ValueError(f"+msf=targets: no scale of MSF has {num_patches} tokens in images of {size}x{size}.")


def normalization(which: str, *, _root_: DictConfig) -> ListConfig:
    """The `mean` or `std` that take images from the normalization of an experiment to [-1, 1].

    Our host's experiments have theirs as `experiment.image_mean` and `image_std`, OCLF's in that of their pictures.
    """
    theirs = OmegaConf.select(_root_, "visualizations.input.denormalization")
    theirs = theirs if OmegaConf.is_dict(theirs) else {}
    mean, std = (
        OmegaConf.select(_root_, f"experiment.image_{x}") or theirs.get(x) or [0.5] * 3 for x in ("mean", "std")
    )
    return OmegaConf.create([((0.5 - m) if which == "mean" else 0.5) / s for m, s in zip(mean, std)])


def if_video(video: Any, images: Any, *, _root_: DictConfig) -> Any:
    """The first of two values if slots run through the frames of a video, else the second."""
    grouping = OmegaConf.select(_root_, "models.perceptual_grouping._target_")
    return video if str(grouping).endswith(".Recurrent") else images


def converted_shards(prefix: str, name: str, split: str) -> List[str]:
    """Paths of the shards that the summary of a converted data set names, for `+msf/shards=converted`.

    Args:
        prefix: Folder of all data sets, DATASET_PREFIX.
        name: Folder of this one below it.
        split: `test` is `val` where the data have none, as in MOVi.

    Raises:
        ValueError: nothing was converted there.
    """
    folder = Path(to_absolute_path(prefix)) / name
    if not (folder / "summary.json").is_file():
        raise ValueError(f"{folder} has no summary.json. Set DATASET_PREFIX to OUT of `ocl-msf convert`.")
    splits = json.loads((folder / "summary.json").read_text())["splits"]
    content = splits.get(split) or splits["val"]
    return [str(folder / file["name"]) for file in content["shards"]]


def part_of_evaluation(key: str, default: Any = None, *, _root_: DictConfig) -> Any:
    """Part of the evaluation that fits a run, for `+evaluation=msf/scores`.

    The run's own config says in `experiment.evaluation` which file of `evaluation/msf` that is.

    Args:
        key: where in that file, such as `modules.scenes`.
        default: if the run needs no more than its own losses and metrics, or the file has no such part.
        _root_: the config of the evaluation, whose `train_config_path` says where the run's is.
    """
    if "train_config_path" not in _root_:  # OmegaConf resolves the parts for OCLF's typed config while it composes them
        return default
    run = _read(_train_config(_root_))
    name = OmegaConf.select(run, "experiment.evaluation")
    if "evaluation" not in OmegaConf.select(run, "experiment", default={}):  # trained before runs said it themselves
        is_image = "guidance" in run.models and "frames" not in run.models
        name = "separability" if "vqvae" in run.models else "images" if is_image else None
    part = OmegaConf.select(_read(configs() / "evaluation" / "msf" / f"{name}.yaml"), key) if name else None
    if not OmegaConf.is_dict(part):
        return default if part is None else copy.deepcopy(part)
    return OmegaConf.create(OmegaConf.to_container(part), parent=_root_)


def value_of_run(key: str, *, _root_: DictConfig) -> Any:
    """A value of the config of the run that is evaluated, None if there is none."""
    if "train_config_path" not in _root_:
        return None
    return copy.deepcopy(OmegaConf.select(_read(_train_config(_root_)), key))


def _train_config(evaluation: DictConfig) -> Path:
    """The file that `ocl_eval` takes, a path relative to where it was launched, or a folder and a name."""
    path, name = Path(to_absolute_path(evaluation.train_config_path)), evaluation.get("train_config_name")
    if name:
        return path / (name if name.endswith(".yaml") else f"{name}.yaml")
    in_run = path / "config" / "config.yaml"
    return path if path.suffix in (".yaml", ".yml") else in_run if in_run.is_file() else path / "config.yaml"


def _read(path: Path) -> Any:
    """A config that many values are taken from, and that stays as it is."""
    status = path.stat()
    return _load(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=2)  # that of the run, and the evaluation that fits it
def _load(path: Path, *state: int) -> Any:
    return OmegaConf.load(path)
