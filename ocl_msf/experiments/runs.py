"""Runs: what a training and its evaluations have left in a folder, and which of several runs to take."""

import re
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ocl_msf.experiments.logs import Log, join_logs, read_log, seconds_per_step
from ocl_msf.files import DataError, decode_json

STEP = re.compile(r"step=?(\d+)(-v\d+)?\.ckpt$")  # with =: of earlier versions, and what Lightning makes by itself
CHECKPOINTS = ("*/*/checkpoints/*.ckpt", "checkpoints/*.ckpt")  # of any logger, and of none
REPORTS = {1: "separability.json", 2: "metrics.json"}  # by stage
NOT_SHARED = re.compile(r"\+*(seed|load_checkpoint|experiment\.root_output_folder|experiment\.vae_checkpoint)=")


Scores = Dict[str, float]  # by name, such as "ari"


class Run:
    """A run of `ocl_train`; what is in its folder is read once, when it is first needed.

    Attributes:
        folder: where it is.
        config: its training configuration.
    """

    def __init__(self, folder: Path, config: DictConfig):
        self.folder = folder
        self.config = config

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Open the run in a folder, or the run that a checkpoint belongs to.

        Raises:
            DataError: there is no run, or its configuration is damaged.
        """
        folders = path.absolute().parents if path.suffix == ".ckpt" else [path]
        folder = next((folder for folder in folders if config_path(folder).is_file()), None)
        if folder is None:
            raise DataError(f"{path} is no run: it has no config/config.yaml.")
        try:
            config = OmegaConf.load(config_path(folder))
        except (OSError, yaml.YAMLError, OmegaConfBaseException) as error:
            raise DataError(f"{config_path(folder)} is damaged ({error}).") from error
        if not isinstance(config, DictConfig):
            raise DataError(f"{config_path(folder)} is no configuration.")
        return cls(folder, config)

    def setting(self, name: str) -> Any:
        """A value below `experiment`, interpolations filled in; None if it is not set or needs a running training."""
        try:
            value = OmegaConf.select(self.config, f"experiment.{name}")
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException:
            return None

    @property
    def outdated(self) -> bool:
        """Whether it uses this package and was trained before configs recorded stage, model, data and video."""
        return self.setting("stage") is None and "ocl_msf." in OmegaConf.to_yaml(self.config)

    @cached_property
    def stage(self) -> Optional[int]:
        """1 for a VAE, 2 for slots, None for a run without this package.

        Raises:
            DataError: the run is outdated.
        """
        if self.outdated:
            raise DataError(
                f"{self.folder} does not record experiment.stage, model, data and video: a run of an earlier version "
                f"is converted by  ocl-msf upgrade {self.folder}"
            )
        return self.setting("stage")

    @property
    def evaluation(self) -> str:
        """The evaluation config that scores it; raises what `stage` does."""
        return "msf/scores" if self.stage else "eval"

    @property
    def report(self) -> str:
        """The file in its folder with the scores of that evaluation; raises what `stage` does."""
        return REPORTS[self.stage or 2]

    @cached_property
    def overrides(self) -> Tuple[str, ...]:
        """The overrides of its command, as Hydra has recorded them."""
        path = self.folder / "config" / "overrides.yaml"
        return tuple(yaml.safe_load(path.read_text(encoding="utf-8")) or ()) if path.is_file() else ()

    def override(self, name: str, default: str = "") -> str:
        """The value of an override, such as of "seed"."""
        values = [o.split("=", 1)[1] for o in self.overrides if o.lstrip("+").split("=", 1)[0] == name]
        return values[-1] if values else default

    @property
    def shared_overrides(self) -> Tuple[str, ...]:
        """The overrides that it shares with its other seeds: without places, seed and the default variant."""
        return tuple(sorted(o for o in self.overrides if not NOT_SHARED.match(o) and o != "msf/variant=msf"))

    @property
    def experiment(self) -> str:
        """Such as slate_clevrtex."""
        return self.override("experiment", "unnamed").rsplit("/", 1)[-1]

    @property
    def variant(self) -> str:
        """Such as msf; "" for an experiment without variants."""
        return self.override("msf/variant") or self.setting("variant") or ""

    @property
    def seed(self) -> str:
        """As it was given; "-" if it was not."""
        return self.override("seed", "-")

    @cached_property
    def checkpoints(self) -> Dict[int, Path]:
        """Its checkpoints by step, in that order."""
        paths = sorted(path for pattern in CHECKPOINTS for path in self.folder.glob(pattern))
        return dict(sorted((step, path) for path in paths for step in [step_of(path)] if step is not None))

    @property
    def checkpoint(self) -> Optional[Path]:
        """Its last checkpoint."""
        return self.checkpoints[self.step] if self.checkpoints else None

    @property
    def step(self) -> int:
        """The step of the last checkpoint, 0 without one."""
        return max(self.checkpoints, default=0)

    @cached_property
    def max_steps(self) -> int:
        """How many steps it trains; 0 if that is not set."""
        try:
            return max(int(self.config.trainer.max_steps), 0)
        except (OmegaConfBaseException, AttributeError, TypeError, ValueError):
            return 0

    @property
    def finished(self) -> bool:
        """Whether the last checkpoint is of the last step."""
        return 0 < self.max_steps <= self.step

    @cached_property
    def resumed_from(self) -> Optional[Path]:
        """The checkpoint that training went on from; it may be gone."""
        recorded = self.config.get("load_checkpoint")
        if not recorded or Path(recorded).is_absolute():
            return Path(recorded) if recorded else None
        launch = self.folder / "config" / "hydra.yaml"
        if not launch.is_file():
            raise DataError(f"{launch} is missing: it says where the run's load_checkpoint={recorded} begins.")
        return Path(OmegaConf.load(launch).hydra.runtime.cwd, recorded)

    @property
    def first_step(self) -> int:
        """The step of the checkpoint that training went on from, 0 without one."""
        return (step_of(self.resumed_from) if self.resumed_from else None) or 0

    @cached_property
    def predecessor(self) -> Optional["Run"]:
        """The run that this one went on from; None if there is none, or not any more."""
        if not (self.first_step and self.resumed_from.is_file()):
            return None
        try:
            run = Run.open(self.resumed_from)
        except DataError:
            return None
        return run if run.folder.resolve() != self.folder.resolve() else None

    @property
    def all_checkpoints(self) -> Dict[int, Path]:
        """Its checkpoints and, up to where it went on from them, those of its predecessors, by step."""
        earlier = self.predecessor.all_checkpoints if self.predecessor else {}
        earlier = {step: path for step, path in earlier.items() if step <= self.first_step}
        return dict(sorted({**earlier, **self.checkpoints}.items()))

    @property
    def untrained(self) -> Optional[Path]:
        """The model before the first step, if it was saved; see `ocl_msf.training.callbacks.SaveUntrained`."""
        path = next(self.folder.glob("*/*/untrained.ckpt"), None)
        return path or (self.predecessor.untrained if self.predecessor else None)

    @cached_property
    def scores(self) -> Scores:
        """Scores on the validation set by name, as far as evaluations have left them and they are defined.

        Raises:
            DataError: a report is damaged.
        """
        reports = [self.read_json(name).get("metrics", {}).get("val", {}) for name in REPORTS.values()]
        return with_sum({name: value for report in reports for name, value in defined(report).items()})

    @cached_property
    def protocol(self) -> Dict[str, Scores]:
        """Scores of the last checkpoints on the validation set: "mean" and "best", if the protocol has been run.

        Raises:
            DataError: its report is damaged.
        """
        report = self.read_json("protocol/val.json")
        return {kind: with_sum(defined(report[kind])) for kind in ("mean", "best") if kind in report}

    @cached_property
    def environment(self) -> Dict[str, str]:
        """Devices and versions that training ran with; empty if it has not recorded them.

        Raises:
            DataError: their file is damaged.
        """
        recorded = self.read_json("config/environment.json", "Delete it: the report can do without")
        return {name: str(value) for name, value in recorded.items()}

    def read_json(self, name: str, advice: str = "Delete it and evaluate again") -> Dict[str, Any]:
        """Read a JSON file in the folder; empty if there is none. What is not a number in it is None.

        Raises:
            DataError: it is damaged.
        """
        path = self.folder / name
        try:
            content = decode_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}). {advice}.") from error
        return content if isinstance(content, dict) else {}

    @cached_property
    def log(self) -> Log:
        """Scalars logged to TensorBoard by name, those of its predecessors up to where it went on included.

        Raises:
            DataError: there is a log, and TensorBoard is not installed.
        """
        earlier = self.predecessor.log if self.predecessor else {}
        return join_logs(earlier, read_log(self.folder), self.first_step)

    @property
    def seconds_per_step(self) -> Optional[float]:
        """Median over the intervals of the log, most of which hold no validation; None if it holds none."""
        return seconds_per_step(self.log)


def step_of(checkpoint: Path) -> Optional[int]:
    """The step in a checkpoint's name; None if there is none.

    >>> step_of(Path("epoch0002-step0000020.ckpt"))
    20
    """
    step = STEP.search(checkpoint.name)
    return int(step.group(1)) if step else None


def config_path(folder: Path) -> Path:
    """Where a run has its training configuration."""
    return folder / "config" / "config.yaml"


def defined(scores: Mapping[str, Optional[float]]) -> Scores:
    """Scores of a report without undefined ones, null or NaN, such as ARI_fg of data without any object."""
    return {name: value for name, value in scores.items() if value is not None and value == value}


def with_sum(scores: Scores) -> Scores:
    """Scores that are defined and, as in the paper's ablations, the sum of ARI and ARI_fg."""
    scores = defined(scores)
    return {**scores, "ari+ari_fg": scores["ari"] + scores["ari_fg"]} if {"ari", "ari_fg"} <= {*scores} else scores


def find_runs(folder: Path) -> List[Run]:
    """List the runs `folder/<time>/`, newest first; those without a readable configuration are left out."""
    paths = sorted(folder.glob("*/config/config.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    runs = []
    for path in paths:
        try:
            runs.append(Run.open(path.parent.parent))
        except DataError:
            continue
    return [run for run in runs if run.max_steps]


def furthest(runs: Iterable[Run]) -> Optional[Run]:
    """The run whose last checkpoint is of the highest step; None if none has a checkpoint."""
    return max((run for run in runs if run.checkpoint), key=lambda run: run.step, default=None)


def find_finished(folder: Path, wanted: Dict[str, Any], command: str) -> Path:
    """Find the last checkpoint of the newest finished run with the wanted settings.

    Args:
        folder: holds the runs of one stage-1 experiment.
        wanted: settings below `experiment`, and their values.
        command: what makes such a run; goes into the message.

    Raises:
        FileNotFoundError: there is none; the message lists the runs that there are and what to do.
    """
    found = {"image_size": "guidance_image_size"}  # by a VAE on a community's data
    settings = {
        run: {name: run.setting(found.get(name, name)) or run.setting(name) for name in wanted}
        for run in find_runs(folder)
    }
    for run in settings:
        if run.finished and settings[run] == wanted:
            return run.checkpoint  # type: ignore[return-value]  # a finished run has one
    lines = [f"Stage 2 needs a trained VAE with {_listed(wanted)}, and {folder} holds no finished run of it."]
    for run, its in settings.items():
        lines.append(f"  {run.folder}: {_listed(its)}, step {run.step} of {run.max_steps}")
    lines.append(f"Train stage 1 first:  {command}")
    lines.append("or name a checkpoint:  experiment.vae_checkpoint=PATH")
    raise FileNotFoundError("\n".join(lines))


def _listed(settings: Dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
