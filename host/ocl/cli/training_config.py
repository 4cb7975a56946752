"""The schema of training configs, to compose and print them without importing PyTorch and Lightning for seconds."""

import ast
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from ocl.cli.resolvers import register_resolvers

# The types that Hydra checks; arguments of other types take anything.
TYPES: dict[str, Any] = {"int": int, "bool": bool}
TYPES |= {f"Optional[{kind.__name__}]": Optional[kind] for kind in (bool, int, str)}


def trainer_arguments() -> list[tuple[str, Any, Any]]:
    """Name, type and default of each argument of Lightning's trainer, read in its source where that is possible."""
    spec = importlib.util.find_spec("pytorch_lightning")
    assert spec is not None and spec.origin is not None, "the host depends on Lightning"
    try:
        return list(read_arguments(Path(spec.origin).with_name("trainer").joinpath("trainer.py").read_text("utf-8")))
    except (OSError, ValueError):  # a version that is written in another way
        from pytorch_lightning import Trainer

        return [(name, Any, parameter.default) for name, parameter in inspect.signature(Trainer).parameters.items()]


def read_arguments(source: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, type and default of each argument of the class `Trainer` in some source.

    Raises:
        ValueError: if there is no such class, or its defaults are no plain values.
    """
    (trainer,) = [x for x in ast.parse(source).body if isinstance(x, ast.ClassDef) and x.name == "Trainer"]
    (init,) = [x for x in trainer.body if isinstance(x, ast.FunctionDef) and x.name == "__init__"]
    defaults: list[Any] = init.args.kw_defaults
    for argument, default in zip(init.args.kwonlyargs, defaults):
        kind = ast.unparse(argument.annotation) if argument.annotation else ""
        yield argument.arg, TYPES.get(kind, Any), ast.literal_eval(default)


TrainerConf = make_dataclass(
    "TrainerConf",
    [
        ("_target_", str, "pytorch_lightning.trainer.trainer.Trainer"),
        *((name, kind, field(default=default)) for name, kind, default in trainer_arguments() if name != "callbacks"),
        ("callbacks", Any, "${oc.dict.values:experiment.callbacks}"),
    ],
)


@dataclass
class TrainingConfig:
    """Everything a training run is made of."""

    dataset: Any = MISSING
    models: Any = MISSING
    optimizers: dict[str, Any] = MISSING
    losses: dict[str, Any] = MISSING
    visualizations: dict[str, Any] = field(default_factory=dict)
    trainer: TrainerConf = field(default_factory=TrainerConf)  # type: ignore[valid-type]  # made at run time
    training_vis_frequency: Optional[int] = None
    training_metrics: Any = None  # not an optional dict: overrides could not turn its None into one
    evaluation_metrics: Any = None
    load_checkpoint: Optional[str] = None
    seed: Optional[int] = None
    experiment: dict[str, Any] = field(default_factory=lambda: {"callbacks": {}})


register_resolvers()
ConfigStore.instance().store(name="training_config", node=TrainingConfig)
