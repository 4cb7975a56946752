"""What figures and report know of runs: found in folders, read from their files, named by what tells them apart."""

import json
import re
import statistics
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import yaml

from ocl_msf.experiments.paper import TABLES
from ocl_msf.experiments.runs import STEP, Run, find_runs

REPORTS = ("metrics.json", "separability.json")
PLACES = re.compile(r"\+*(seed|load_checkpoint|experiment\.root_output_folder|experiment\.vae_checkpoint)=")
LONGEST_NAME = 60  # characters of overrides that stand in the name of a row
NAMED = re.compile(r"\+*(experiment|msf/variant)=")


class Event(NamedTuple):
    """A number that was logged, and when: `time` is in seconds since 1970."""

    step: int
    value: float
    time: float


Scores = Dict[str, float]  # by name, such as "ari"
Log = Dict[str, List[Event]]  # by name, such as "val/ari_fg", in the order of steps


class ScoredRun(NamedTuple):
    """A run, the overrides that started it, its scores on the validation set by name, and what it has logged."""

    run: Run
    overrides: Tuple[str, ...]
    scores: Scores
    log: Log

    def chosen(self, name: str, default: str = "") -> str:
        """The value of an override, such as of "seed"."""
        values = [o.split("=", 1)[1] for o in self.overrides if o.lstrip("+").split("=", 1)[0] == name]
        return values[-1] if values else default

    @property
    def experiment(self) -> str:
        """Such as slate_clevrtex."""
        return self.chosen("experiment", "unnamed").rsplit("/", 1)[-1]

    @property
    def variant(self) -> str:
        """Such as msf; "" of an experiment that has no variants."""
        return self.chosen("msf/variant") or self.run.settings.get("variant") or ""

    @property
    def seed(self) -> str:
        """As it was given; "-" if it was not."""
        return self.chosen("seed", "-")

    @property
    def settings(self) -> Tuple[str, ...]:
        """What runs of one row of a table have in common: overrides, but for seed, places and the default variant."""
        return tuple(sorted(o for o in self.overrides if not PLACES.match(o) and o != "msf/variant=msf"))

    @property
    def seconds_per_step(self) -> Optional[float]:
        """Median over the intervals of the log, most of which hold no validation; None if it holds none."""
        names = [name for name in self.log if name.startswith("train/")]
        events = self.log[max(names, key=lambda name: len(self.log[name]))] if names else []
        pairs = [(a, b) for a, b in zip(events, events[1:]) if b.time > a.time]
        return statistics.median((b.time - a.time) / (b.step - a.step) for a, b in pairs) if pairs else None


def collect(folders: Iterable[Path]) -> List[ScoredRun]:
    """Find the runs in folders, at any depth; the furthest one where a command was run more than once.

    Raises:
        FileNotFoundError: a folder does not exist, or none holds a run.
        ImportError, ValueError: see `read_log`, `read_scores`.
    """
    folders = list(folders)
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise FileNotFoundError(f"There is no folder {', '.join(missing)}.")
    wanted = [folder.resolve() for folder in folders]
    parents = {path.parent.parent.parent for folder in wanted for path in folder.glob("**/config/config.yaml")}
    found: Dict[Tuple, Tuple] = {}
    for run in (run for parent in sorted(parents) for run in find_runs(parent)):
        if not any(folder in (run.folder, *run.folder.parents) for folder in wanted):
            continue
        scored = ScoredRun(run, _overrides(run.folder), read_scores(run.folder), {})
        key = scored.settings, scored.chosen("seed", str(run.folder))
        best = found.get(key)
        if best is None or (run.step, len(scored.scores)) > (best.run.step, len(best.scores)):
            found[key] = scored
    if not found:
        raise FileNotFoundError(
            f"No run of ocl_train in {', '.join(map(str, folders))}: a run has config/config.yaml in its folder."
        )
    return [found[key]._replace(log=read_log(found[key].run.folder)) for key in sorted(found, key=_order)]


def _order(key: Tuple[Tuple[str, ...], str]) -> Tuple:
    """By experiment, then as the paper's tables first name the variants, then by the rest and the seed."""
    settings, seed = key
    chosen = dict(o.lstrip("+").split("=", 1) for o in settings if "=" in o)
    known = [row.variant for parts in TABLES.values() for part in parts.values() for row in part.rows]
    variant = chosen.get("msf/variant", "msf")
    place = known.index(variant) if variant in known else len(known)
    return chosen.get("experiment", ""), place, settings, len(seed), seed


def read_scores(folder: Path) -> Scores:
    """Read the scores on the validation set that evaluations left in a run's folder.

    Raises:
        ValueError: a report is damaged.
    """
    scores: Scores = {}
    for name in REPORTS:
        scores.update(_read(folder / name).get("metrics", {}).get("val", {}))
    return _with_sum(scores)


def read_protocol(folder: Path) -> Dict[str, Scores]:
    """Read the scores of a run's last checkpoints on the validation set, from the protocol: "mean" and "best".

    Raises:
        ValueError: its report is damaged.
    """
    report = _read(folder / "protocol" / "val.json")
    return {kind: _with_sum(report[kind]) for kind in ("mean", "best") if kind in report}


def read_environment(folder: Path) -> Dict[str, str]:
    """Read what a training has recorded of the machine and the versions that it ran with; empty if it has not.

    Raises:
        ValueError: its file is damaged.
    """
    recorded = _read(folder / "config" / "environment.json", "Delete it: the report can do without")
    return {name: str(value) for name, value in recorded.items()}


def _read(path: Path, advice: str = "Delete it and evaluate again") -> Dict[str, Any]:
    """A report; empty where there is none."""
    try:
        report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). {advice}.") from error
    return report if isinstance(report, dict) else {}


def _with_sum(scores: Scores) -> Scores:
    """Scores and, as the paper's ablations have it, the sum of the first two."""
    return {**scores, **({"ari+ari_fg": scores["ari"] + scores["ari_fg"]} if {"ari", "ari_fg"} <= {*scores} else {})}


def read_log(folder: Path) -> Log:
    """Read the scalars that a run has logged to TensorBoard.

    Args:
        folder: of the run.

    Returns:
        Events by name; of a run that went on from a checkpoint of another, that one's up to there as well.

    Raises:
        ImportError: there is a log, and TensorBoard is not installed.
    """
    events: Dict[str, Dict[int, Event]] = {}
    source = _resumed(folder)
    for name, earlier in read_log(source.parents[3]).items() if source else ():
        events[name] = {e.step: e for e in earlier if e.step <= int(STEP.search(source.name).group(1))}
    versions = sorted({path.parent for path in folder.glob("lightning_logs/*/events.out.tfevents.*")})
    try:  # what has logged to TensorBoard has it installed, but the report may be made elsewhere
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        if versions:
            raise ImportError(f"The log in {folder} needs tensorboard to be read: pip install tensorboard") from error
    for version in versions:
        logged = EventAccumulator(str(version), size_guidance={"scalars": 0, "images": 1}).Reload()
        for name in logged.Tags()["scalars"]:
            new = {event.step: Event(event.step, event.value, event.wall_time) for event in logged.Scalars(name)}
            events.setdefault(name, {}).update(new)
    return {name: [found[step] for step in sorted(found)] for name, found in sorted(events.items())}


def _overrides(folder: Path) -> Tuple[str, ...]:
    path = folder / "config" / "overrides.yaml"
    return tuple(yaml.safe_load(path.read_text(encoding="utf-8")) or ()) if path.is_file() else ()


def _resumed(folder: Path) -> Optional[Path]:
    """The checkpoint of another run that a run went on from; None if there is none, or not any more."""
    loads = [o.split("=", 1)[1] for o in _overrides(folder) if o.lstrip("+").startswith("load_checkpoint=")]
    path = Path(loads[-1].strip("'\"").replace("\\=", "=")).resolve() if loads else folder
    known = path.is_file() and STEP.search(path.name) and len(path.parents) > 3
    return path if known and folder.resolve() not in path.parents else None


def group(runs: Iterable[ScoredRun]) -> Dict[Tuple[str, ...], List[ScoredRun]]:
    """Group runs that differ in their seed alone."""
    groups: Dict[Tuple[str, ...], List[ScoredRun]] = {}
    for run in runs:
        groups.setdefault(run.settings, []).append(run)
    return groups


def shared_settings(runs: Sequence[ScoredRun]) -> List[str]:
    """The overrides that all of some runs of one experiment have, but those that name experiment and variant."""
    shared = set(runs[0].settings).intersection(*(run.settings for run in runs))
    return [o for o in runs[0].settings if o in shared and not NAMED.match(o)]


def name_rows(runs: Sequence[ScoredRun]) -> List[Tuple[str, List[ScoredRun]]]:
    """Name the groups of runs: by variant and what other overrides not all runs of the experiment have."""
    rows = []
    for settings, found in group(runs).items():
        same = [run for run in runs if run.experiment == found[0].experiment]
        own = _own_settings(settings, same)
        words = [long_settings(same)[own]] if own in long_settings(same) else own
        rows.append((" ".join([found[0].variant, *words]).strip() or found[0].experiment, found))
    return rows


def long_settings(runs: Sequence[ScoredRun]) -> Dict[Tuple[str, ...], str]:
    """Overrides of some runs of one experiment that are too long for a name, and what they are called instead."""
    own = dict.fromkeys(_own_settings(run.settings, runs) for run in runs)
    long = [settings for settings in own if len(" ".join(settings)) > LONGEST_NAME]
    return {settings: f"settings {number}" for number, settings in enumerate(long, 1)}


def _own_settings(settings: Sequence[str], runs: Sequence[ScoredRun]) -> Tuple[str, ...]:
    shared = shared_settings(runs)
    return tuple(o for o in settings if o not in shared and not NAMED.match(o))
