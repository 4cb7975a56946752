"""Names that have changed: an old one fails with a sentence that says the new one."""

import functools
import sys
from importlib.abc import MetaPathFinder
from typing import Any, Callable, Dict, Type, TypeVar

Class = TypeVar("Class")

MODULES = {
    "ocl_msf.callbacks": "ocl_msf.training.callbacks",
    "ocl_msf.checkpoints": "ocl_msf.experiments.checkpoints",
    "ocl_msf.editing": "ocl_msf.results.editing",
    "ocl_msf.ema": "ocl_msf.training.ema",
    "ocl_msf.environment": "ocl_msf.training.environment",
    "ocl_msf.figures": "ocl_msf.results.figures",
    "ocl_msf.outputs": "ocl_msf.results.outputs",
    "ocl_msf.paper": "ocl_msf.experiments.paper",
    "ocl_msf.progress": "ocl_msf.training.progress",
    "ocl_msf.protocol": "ocl_msf.experiments.protocol",
    "ocl_msf.report": "ocl_msf.results.report",
    "ocl_msf.runs": "ocl_msf.experiments.runs",
    "ocl_msf.sysbinder": "ocl_msf.perceptual_grouping",
    "ocl_msf.tables": "ocl_msf.experiments.tables",
    "ocl_msf.tasks": "ocl_msf.experiments.tasks",
    "ocl_msf.video_grouping": "ocl_msf.perceptual_grouping",
    "ocl_msf.visualizations": "ocl_msf.results.visualizations",
    "ocl_msf.data.clevrtex": "ocl_msf.data.raw.clevrtex",
    "ocl_msf.data.coco": "ocl_msf.data.raw.coco",
    "ocl_msf.data.moving_scenes": "ocl_msf.data.synthetic.moving_scenes",
    "ocl_msf.data.movi": "ocl_msf.data.raw.movi",
    "ocl_msf.data.openimages": "ocl_msf.data.raw.openimages",
    "ocl_msf.data.scenes": "ocl_msf.data.synthetic.scenes",
    "ocl_msf.data.voc": "ocl_msf.data.raw.voc",
}

# What `python -m` ran, and the command that does it now. Some of these modules are there still.
COMMANDS = {
    "ocl_msf.data.convert": "convert",
    "ocl_msf.data.inspect": "inspect",
    "ocl_msf.data.moving_scenes": "videos",
    "ocl_msf.data.scenes": "scenes",
    "ocl_msf.data.synthetic.moving_scenes": "videos",
    "ocl_msf.data.synthetic.scenes": "scenes",
    "ocl_msf.editing": "edit",
    "ocl_msf.experiments.protocol": "protocol",
    "ocl_msf.experiments.tables": "tables",
    "ocl_msf.figures": "figures",
    "ocl_msf.protocol": "protocol",
    "ocl_msf.report": "report",
    "ocl_msf.results.editing": "edit",
    "ocl_msf.results.figures": "figures",
    "ocl_msf.results.report": "report",
    "ocl_msf.tables": "tables",
}

# Classes and functions by their full names, as a config's `_target_` gives them. A module that had some of them says
# `__getattr__ = refuse_old_names(__name__)`.
TARGETS = {
    "ocl_msf.losses.Weighted": "ocl_msf.losses.WeightedLoss",
    "ocl_msf.fusion.Parts": "ocl_msf.fusion.FusionMaps",
    "ocl_msf.fusion.source_rows": "ocl_msf.fusion.source_vectors",
    "ocl_msf.quantization.Part": "ocl_msf.quantization.MatchedGroup",
    "ocl_msf.losses.join": "ocl_msf.indices.ravel_codes",
    "ocl_msf.composition.present": "ocl_msf.composition.drop_nulls",
    "ocl_msf.decoding.Attention": "ocl_msf.transformer.Attention",
    "ocl_msf.decoding.attend_to_past": "ocl_msf.transformer.attend_to_past",
    "ocl_msf.decoding.choose": "ocl_msf.decoding.sample_codes",
    "ocl_msf.decoding.split": "ocl_msf.indices.unravel_codes",
    "ocl_msf.feature_extractors.BigLittle": "ocl_msf.feature_extractors.ViTWithCNN",
    "ocl_msf.feature_extractors.read_dino": "ocl_msf.vit.read_vit",
    "ocl_msf.sysbinder.BlockSlotAttentionGrouping": "ocl_msf.perceptual_grouping.BlockSlotAttentionGrouping",
    "ocl_msf.training.callbacks.LoadDino": "ocl_msf.training.callbacks.LoadViT",
    "ocl_msf.video.ChunkedBigLittle": "ocl_msf.feature_extractors.ViTWithCNN",
    "ocl_msf.video.ChunkedDiffusionDecoder": "ocl_msf.diffusion.DiffusionDecoder",
    "ocl_msf.video.ChunkedGuidance": "ocl_msf.guidance.FrozenGuidance",
    "ocl_msf.video.ChunkedTokenDecoder": "ocl_msf.decoding.TokenDecoder",
    "ocl_msf.video.in_chunks": "ocl_msf.chunks.in_chunks",
    "ocl_msf.video_grouping.VideoSlotAttentionGrouping": "ocl_msf.perceptual_grouping.VideoSlotAttentionGrouping",
    "ocl_msf.data.convert.main": "ocl_msf.cli.main",
    "ocl_msf.data.inspect.main": "ocl_msf.cli.main",
    "ocl_msf.data.shards.describe": "ocl_msf.data.summary.describe",
    "ocl_msf.data.shards.shard_records": "ocl_msf.data.summary.files_of",
    "ocl_msf.data.shards.verify": "ocl_msf.data.summary.verify",
}

# Keywords of constructors, by the class that took them; it calls `refuse_old_arguments` or is decorated with
# `refuse_old_keywords`. The size of a TokenDecoder is h and w, or the root of num_tokens.
KEYWORDS = {
    "ocl_msf.decoding.TokenDecoder": {"num_tokens": "size"},
    "ocl_msf.feature_extractors.NaiveCNN": {"video_path": "image_path"},
    "ocl_msf.feature_extractors.ViTWithCNN": {"video_path": "image_path"},
    "ocl_msf.fusion.MultiScaleFusion": {"specific": "per_scale_codebooks"},
}

# Arguments that were words and are modules now, by class and keyword: what a config has to say instead.
VALUES: Dict[str, Dict[str, Dict[str, Any]]] = {
    "ocl_msf.fusion.MultiScaleFusion": {
        "inter_scale": {
            "vote": {"_target_": "ocl_msf.fusion.Vote"},
            "none": {"_target_": "ocl_msf.fusion.Separate"},
            "sum": {"_target_": "ocl_msf.fusion.Sum"},
            "concat": {"_target_": "ocl_msf.fusion.Concat", "dim": "${..dim}", "num_scales": "${..num_scales}"},
        }
    },
}


class OldNames(MetaPathFinder):
    """Asked first, because some modules that were commands exist."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Refuse an old name with the new one; know nothing of any other."""
        if name in COMMANDS and sys.argv[:1] == ["-m"]:  # which stands there while `python -m` looks for its module
            raise ModuleNotFoundError(f"the command is `ocl-msf {COMMANDS[name]}` now.", name=name)
        if name in MODULES:
            raise ModuleNotFoundError(f"{name} is called {MODULES[name]} now.", name=name)


def refuse_old_names(module: str) -> Callable[[str], Any]:
    """Make the `__getattr__` of a module some of whose names are in TARGETS."""

    def refuse(name: str) -> Any:
        new = TARGETS.get(f"{module}.{name}")
        if new:  # an ImportError, because Hydra replaces an AttributeError by one that does not say the new name
            raise ImportError(f"{module}.{name} is called {new} now.", name=module)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return refuse


def refuse_old_arguments(target: str, **arguments: Any) -> None:
    """Raise TypeError if a class was given an argument whose keyword is in KEYWORDS or whose value is in VALUES."""
    for old, new in KEYWORDS.get(target, {}).items():
        if old in arguments:
            raise TypeError(f"{target}: the argument {old} is called {new} now.")
    for keyword, words in VALUES.get(target, {}).items():
        value = arguments.get(keyword)
        if isinstance(value, str):
            config = words.get(value) or next(iter(words.values()))
            name = config["_target_"].rsplit(".", 1)[1]
            given = ", ".join(key for key in config if key != "_target_")
            raise TypeError(
                f"{target}: {keyword} is a module now. Instead of {value!r} write {keyword}={name}({given}), or in a "
                f"config {keyword}: {{{', '.join(f'{key}: {entry}' for key, entry in config.items())}}}."
            )


def refuse_old_keywords(cls: Type[Class]) -> Type[Class]:
    """Decorate a class such that its constructor refuses its keywords in KEYWORDS, and those of its VALUES."""
    construct = cls.__init__

    @functools.wraps(construct)
    def checked(self: Any, *args: Any, **keywords: Any) -> None:
        refuse_old_arguments(f"{cls.__module__}.{cls.__name__}", **keywords)
        construct(self, *args, **keywords)

    cls.__init__ = checked  # type: ignore[method-assign]
    return cls


if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
    sys.meta_path.insert(0, OldNames())
