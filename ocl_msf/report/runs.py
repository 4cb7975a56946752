"""What the report knows of runs: read from their folders, grouped over seeds, compared with the paper."""

import json
import re
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

import yaml

from ocl_msf.checkpoints import Run, find_runs
from ocl_msf.paper import TABLES

REPORTS = ("metrics.json", "separability.json")


class ScoredRun(NamedTuple):
    """A run, the overrides that started it, and its scores on the validation set by name."""

    run: Run
    overrides: Tuple[str, ...]
    scores: Dict[str, float]

    def chosen(self, name: str, default: str = "") -> str:
        """The value of an override, such as of "seed"."""
        values = [o.split("=", 1)[1] for o in self.overrides if o.lstrip("+").split("=", 1)[0] == name]
        return values[-1] if values else default

    @property
    def experiment(self) -> str:
        """Such as slate_clevrtex."""
        return self.chosen("experiment").rsplit("/", 1)[-1]

    @property
    def settings(self) -> Tuple[str, ...]:
        """What runs of one group have in common: all overrides but the seed and places."""
        skipped = re.compile(r"\+*(seed|load_checkpoint|experiment\.root_output_folder|experiment\.vae_checkpoint)=")
        return tuple(sorted(o for o in self.overrides if not skipped.match(o)))


def collect(folders: Iterable[Path]) -> List[ScoredRun]:
    """Find the runs in folders, at any depth; the furthest one where a command was run more than once.

    Raises:
        FileNotFoundError: a folder does not exist, or none holds a run.
    """
    folders = list(folders)
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise FileNotFoundError(f"There is no folder {', '.join(missing)}.")
    parents = {p.parent.parent.parent for f in folders for p in f.resolve().glob("**/config/config.yaml")}
    wanted = [folder.resolve() for folder in folders]
    found: Dict[Tuple, ScoredRun] = {}
    for run in (run for parent in sorted(parents) for run in find_runs(parent)):
        if not any(folder in (run.folder, *run.folder.parents) for folder in wanted):
            continue
        path = run.folder / "config" / "overrides.yaml"
        overrides = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else []
        scored = ScoredRun(run, tuple(overrides or ()), read_scores(run.folder))
        key = scored.settings, scored.chosen("seed", str(run.folder))
        best = found.get(key)
        if best is None or (run.step, len(scored.scores)) > (best.run.step, len(best.scores)):
            found[key] = scored
    if not found:
        raise FileNotFoundError(
            f"No run of ocl_train in {', '.join(map(str, folders))}: a run has config/config.yaml in its folder."
        )
    return [found[key] for key in sorted(found)]


def read_scores(folder: Path) -> Dict[str, float]:
    """Read the scores on the validation set that evaluations left in a run's folder."""
    scores: Dict[str, float] = {}
    for name in REPORTS:
        if (folder / name).is_file():
            scores.update(json.loads((folder / name).read_text(encoding="utf-8"))["metrics"].get("val", {}))
    if {"ari", "ari_fg"} <= set(scores):
        scores["ari+ari_fg"] = scores["ari"] + scores["ari_fg"]
    return scores


def group(runs: Iterable[ScoredRun]) -> Dict[Tuple[str, ...], List[ScoredRun]]:
    """Group runs that differ in their seed alone."""
    groups: Dict[Tuple[str, ...], List[ScoredRun]] = {}
    for run in runs:
        groups.setdefault(run.settings, []).append(run)
    return groups


def paper_value(run: ScoredRun, metric: str) -> Optional[Tuple[float, str]]:
    """What the paper reports for runs of this kind, and in which table; None where it does not."""
    variant, guidance = run.chosen("msf/variant", "msf"), run.chosen("msf/guidance", "scale_1")
    for name, parts in TABLES.items():
        for part in parts.values():
            for row in part.rows:
                name_of = f"{part.model}_{{}}" if part.model else part.pretraining
                same = name_of.format(row.dataset) == run.experiment and row.variant == variant
                wanted = dict(o.split("=", 1) for o in row.overrides).get("msf/guidance", "scale_1")
                if same and metric in part.metrics and (part.model is None or wanted == guidance):
                    return row.values[part.metrics.index(metric)], f"Table {name[5:]}"
    return None
