"""Rows of tables and figures: runs that differ in their seed alone, named by what tells them from the others."""

import re
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Tuple

from ocl_msf.experiments.paper import TABLES
from ocl_msf.experiments.runs import Run, find_runs
from ocl_msf.files import DataError

LONGEST_NAME = 60  # characters of overrides that stand in the name of a row
NAMED = re.compile(r"\+*(experiment|msf/variant)=")


class RunRow(NamedTuple):
    """Runs that differ in their seed alone, and the name of their row."""

    name: str
    runs: List[Run]

    @property
    def first(self) -> Run:
        """The run of the first seed."""
        return self.runs[0]


def collect(folders: Sequence[Path]) -> List[Run]:
    """Find the runs in folders, at any depth; the furthest one where a command was run more than once.

    Raises:
        DataError: a folder does not exist, or none holds a run.
    """
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise DataError(f"There is no folder {', '.join(missing)}.")
    wanted = [folder.resolve() for folder in folders]
    parents = {path.parents[2] for folder in wanted for path in folder.glob("**/config/config.yaml")}
    furthest: Dict[Tuple, Run] = {}
    for run in (run for parent in sorted(parents) for run in find_runs(parent)):
        if any(folder in (run.folder, *run.folder.parents) for folder in wanted):
            key = run.shared_overrides, run.override("seed", str(run.folder))
            other = furthest.get(key)
            if other is None or (run.step, len(run.scores)) > (other.step, len(other.scores)):
                furthest[key] = run
    if not furthest:
        places = ", ".join(map(str, folders))
        raise DataError(f"No run of ocl_train in {places}: a run has config/config.yaml in its folder.")
    return [furthest[key] for key in sorted(furthest, key=lambda key: _order(furthest[key], *key))]


def _order(run: Run, overrides: Tuple[str, ...], seed: str) -> Tuple:
    """By experiment, then as the paper's tables first name the variants, then by the rest and the seed."""
    known = [row.variant for parts in TABLES.values() for part in parts.values() for row in part.rows]
    variant = run.override("msf/variant", "msf")
    place = known.index(variant) if variant in known else len(known)
    return run.override("experiment"), place, overrides, len(seed), seed


def by_experiment(runs: Sequence[Run]) -> Dict[str, List[Run]]:
    """The runs of each experiment: stage 2 before stage 1, whose scores are of guidance alone.

    Raises:
        DataError: a run is outdated.
    """
    groups: Dict[str, List[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.stage == 1, run.experiment)):
        groups.setdefault(run.experiment, []).append(run)
    return groups


def name_rows(runs: Sequence[Run]) -> List[RunRow]:
    """Group runs and name the groups: by variant and the overrides that not all runs of the experiment have."""
    groups: Dict[Tuple[str, ...], List[Run]] = {}
    for run in runs:
        groups.setdefault(run.shared_overrides, []).append(run)
    rows = []
    for seeds in groups.values():
        first = seeds[0]
        same = [run for run in runs if run.experiment == first.experiment]
        own = _own_overrides(first, same)
        words = [numbered_overrides(same).get(own, " ".join(own))]
        rows.append(RunRow(" ".join([first.variant, *words]).strip() or first.experiment, seeds))
    return rows


def common_overrides(runs: Sequence[Run]) -> List[str]:
    """The overrides that all of some runs of one experiment have, but those that name experiment and variant."""
    common = set(runs[0].shared_overrides).intersection(*(run.shared_overrides for run in runs))
    return [o for o in runs[0].shared_overrides if o in common and not NAMED.match(o)]


def numbered_overrides(runs: Sequence[Run]) -> Dict[Tuple[str, ...], str]:
    """Overrides of some runs of one experiment that are too long for a name, and what they are called instead."""
    own = dict.fromkeys(_own_overrides(run, runs) for run in runs)
    long = [overrides for overrides in own if len(" ".join(overrides)) > LONGEST_NAME]
    return {overrides: f"settings {number}" for number, overrides in enumerate(long, 1)}


def _own_overrides(run: Run, runs: Sequence[Run]) -> Tuple[str, ...]:
    common = common_overrides(runs)
    return tuple(o for o in run.shared_overrides if o not in common and not NAMED.match(o))
