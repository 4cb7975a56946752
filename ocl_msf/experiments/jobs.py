"""Runs that a table needs: their commands, and which of them exist."""

import functools
import sys
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

from hydra.core.override_parser.overrides_parser import OverridesParser

from ocl_msf.experiments.runs import Run, config_path, defined, find_runs, furthest
from ocl_msf.experiments.tasks import assign


class Job(NamedTuple):
    """One training run.

    Attributes:
        experiment: name below `+experiment=msf/`.
        root: where its outputs go, shared by the stages of one row and seed.
        overrides: the rest of its command.
    """

    experiment: str
    root: Path
    overrides: Tuple[str, ...]

    @property
    def arguments(self) -> List[str]:
        """What follows `ocl_train`."""
        chosen = [f"+experiment=msf/{self.experiment}", *self.overrides]
        return [*chosen, assign("+experiment.root_output_folder", self.root)]

    @property
    def folder(self) -> Path:
        """Where its runs are, and those of other jobs."""
        return self.root / "msf" / self.experiment

    @property
    def run(self) -> Optional[Run]:
        """The furthest run of this very command, or None."""
        return self.among(find_runs(self.folder))

    def among(self, runs: Sequence[Run]) -> Optional[Run]:
        """The furthest of these runs that is of this very command."""
        wanted = _identifying_overrides(self.arguments)
        return furthest(run for run in runs if _identifying_overrides(run.overrides) == wanted)

    @property
    def command(self) -> List[str]:
        """Training from the start, or resuming from the last checkpoint."""
        return self.command_after(self.run)

    def command_after(self, run: Optional[Run]) -> List[str]:
        """The command, given the furthest run that exists, or None."""
        resume = [assign("load_checkpoint", run.checkpoint)] if run else []
        return [sys.executable, "-m", "ocl.cli.train", *self.arguments, *resume]


Find = Callable[[Job], Optional[Run]]  # the furthest run of a job


class Scoring(NamedTuple):
    """The evaluation of a job.

    Attributes:
        job: what is scored.
        report: the file with its scores, in the run's folder.
    """

    job: Job
    report: str

    @property
    def scores(self) -> Optional[Dict[str, float]]:
        """Scores of the job's last checkpoint on the validation set, or None if they are not there."""
        return self.scores_of(self.job.run)

    def scores_of(self, run: Optional[Run]) -> Optional[Dict[str, float]]:
        """The scores, given the furthest run of the job, or None."""
        report = run.read_json(self.report) if run and run.finished else {}
        current = report and Path(report["checkpoint_path"]).name == run.checkpoint.name
        return defined(report["metrics"]["val"]) if current else None

    @property
    def command(self) -> List[str]:
        """The command; RUN stands for the folder of a run that has not been trained yet."""
        return self.command_for(self.job.run)

    def command_for(self, run: Optional[Run]) -> List[str]:
        """The command, given the furthest run of the job, or None."""
        folder = run.folder if run else self.job.folder / "RUN"
        chosen = ["+evaluation=msf/scores", assign("train_config_path", config_path(folder))]
        chosen += [assign("checkpoint_path", run.checkpoint)] if run else []
        return [sys.executable, "-m", "ocl.cli.eval", *chosen]


def run_of(job: Job) -> Optional[Run]:
    """The furthest run of a job, looked for now."""
    return job.run


def searching_once() -> Find:
    """A way to find runs of jobs that searches each folder once, and remembers what it has found."""
    search = functools.lru_cache(maxsize=None)(find_runs)
    return functools.lru_cache(maxsize=None)(lambda job: job.among(search(job.folder)))


def _identifying_overrides(overrides: Sequence[str]) -> Set[Tuple[str, str]]:
    """The overrides that determine what is trained: all but the output folder and the checkpoint to resume from.

    They are compared as Hydra parses them, because it does not always record them as they were written: 1e-3 or 0.001.
    """
    pairs = set(map(_parsed, overrides))
    return {(key, value) for key, value in pairs if key not in ("load_checkpoint", "experiment.root_output_folder")}


@functools.lru_cache(maxsize=None)
def _parsed(override: str) -> Tuple[str, str]:
    parsed = OverridesParser.create().parse_override(override)
    return parsed.key_or_group, parsed.get_value_element_as_str()
