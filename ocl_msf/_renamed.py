"""Names that have changed: an old one fails with a sentence that says the new one."""

import sys
from importlib.abc import MetaPathFinder
from typing import Any, Callable, Iterable

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
    "ocl_msf.tables": "ocl_msf.experiments.tables",
    "ocl_msf.tasks": "ocl_msf.experiments.tasks",
    "ocl_msf.visualizations": "ocl_msf.results.visualizations",
    "ocl_msf.data.clevrtex": "ocl_msf.data.raw.clevrtex",
    "ocl_msf.data.coco": "ocl_msf.data.raw.coco",
    "ocl_msf.data.moving_scenes": "ocl_msf.data.synthetic.moving_scenes",
    "ocl_msf.data.movi": "ocl_msf.data.raw.movi",
    "ocl_msf.data.openimages": "ocl_msf.data.raw.openimages",
    "ocl_msf.data.scenes": "ocl_msf.data.synthetic.scenes",
    "ocl_msf.data.voc": "ocl_msf.data.raw.voc",
}

# Classes and functions by their full names, as a config's `_target_` gives them. A module that had some of them says
# `__getattr__ = refuse_old_names(__name__)`.
TARGETS = {
    "ocl_msf.losses.Weighted": "ocl_msf.losses.WeightedLoss",
    "ocl_msf.losses.join": "ocl_msf.indices.ravel_codes",
    "ocl_msf.decoding.split": "ocl_msf.indices.unravel_codes",
    "ocl_msf.data.shards.describe": "ocl_msf.data.summary.describe",
    "ocl_msf.data.shards.shard_records": "ocl_msf.data.summary.files_of",
    "ocl_msf.data.shards.verify": "ocl_msf.data.summary.verify",
}

# Keywords of constructors, by the class that took them; it calls `refuse_old_keywords`.
KEYWORDS = {
    "ocl_msf.fusion.MultiScaleFusion": {"specific": "per_scale_codebooks"},
}


class OldNames(MetaPathFinder):
    """Asked last, so for modules that nobody else has."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Refuse an old name with the new one; know nothing of any other."""
        if name in MODULES:
            raise ModuleNotFoundError(f"{name} is called {MODULES[name]} now.", name=name)


def refuse_old_names(module: str) -> Callable[[str], Any]:
    """Make the `__getattr__` of a module some of whose names are in TARGETS."""

    def refuse(name: str) -> Any:
        new = TARGETS.get(f"{module}.{name}")
        raise AttributeError(
            f"{module}.{name} is called {new} now." if new else f"module {module!r} has no attribute {name!r}"
        )

    return refuse


def refuse_old_keywords(target: str, keywords: Iterable[str]) -> None:
    """Raise TypeError if one of the keywords that a class was given has another name now, according to KEYWORDS."""
    for old, new in KEYWORDS.get(target, {}).items():
        if old in keywords:
            raise TypeError(f"{target}: the argument {old} is called {new} now.")


if OldNames not in sys.meta_path:
    sys.meta_path.append(OldNames)
