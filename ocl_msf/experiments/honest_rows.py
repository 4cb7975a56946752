"""The rows beside a model's scores that say what they are worth: its image gain, a blind grid, colour clustering.

`ocl_msf.results.slot_instruments` measures them; reports of evaluations have them as <row>_<score>, grid_ari for
instance.
"""

from typing import Dict, List, Mapping, Optional, Sequence

from ocl_msf.experiments.runs import Scores

SCORES = {"ari": "ARI", "ari_fg": "ARI_fg", "miou": "mIoU", "mbo": "mBO"}
TRIVIAL = {"grid": "blind grid", "colour": "colour clustering"}
ROWS = {"image_gain": "of it image gain", **TRIVIAL}
INSTRUMENTS = {"slot_gain": "slot gain", "attention_entropy": "attention entropy", "slot_overlap": "slot overlap"}


def row_of(row: str, scores: Scores) -> Scores:
    """The scores of a row, one of `ROWS`, by the name of the score; empty if a report is older than the rows."""
    prefix = f"{row}_"
    return {name[len(prefix) :]: value for name, value in scores.items() if name.startswith(prefix)}


def mean_scores(runs: Sequence[Scores]) -> Scores:
    """The mean of every score over the runs that have it."""
    names = dict.fromkeys(name for scores in runs for name in scores)
    having = {name: [scores[name] for scores in runs if scores.get(name) is not None] for name in names}
    return {name: sum(values) / len(values) for name, values in having.items() if values}


def behind(scores: Scores) -> Dict[str, List[str]]:
    """By trivial row, the scores in which a model is not ahead of it."""
    rows = {row: row_of(row, scores) for row in TRIVIAL}
    return {row: [name for name in SCORES if name in its and not scores[name] > its[name]] for row, its in rows.items()}


def verdict(scores: Scores) -> str:
    """Whether a model is ahead of both trivial rows in every score; "" if they have not been measured."""
    if not all(row_of(row, scores) for row in TRIVIAL):
        return ""
    lost = [
        f"{TRIVIAL[row]} in {', '.join(SCORES[name] for name in names)}"
        for row, names in behind(scores).items()
        if names
    ]
    return f"not ahead of {'; of '.join(lost)}" if lost else "ahead of both in every score"


def gain_share(name: str, scores: Scores) -> str:
    """How much of a score is image gain, such as "62 %"; "" if it has not been measured or there is no score."""
    gain = row_of("image_gain", scores).get(name)
    return f"{100 * gain / scores[name]:.0f} %" if gain is not None and scores.get(name, 0) > 0 else ""


def text_table(title: str, models: Mapping[str, Scores]) -> List[str]:
    """Lines of an aligned table in percent: each model and its image gain, then the trivial rows of the last one."""
    rows = []
    for label, scores in models.items():
        rows += [(label, scores), (f"  {ROWS['image_gain']}", row_of("image_gain", scores))]
    rows += [(label, row_of(row, scores)) for row, label in TRIVIAL.items()]
    rows = [(label, scores) for label, scores in rows if set(SCORES) & set(scores)]
    names = [name for name in SCORES if any(name in scores for _, scores in rows)]
    width = max(len(label) for label in [title, *(label for label, _ in rows)])
    lines = [title.ljust(width) + "".join(f"{SCORES[name]:>9}" for name in names)]
    for label, scores in rows:
        lines.append(label.ljust(width) + "".join(f"{percent(scores.get(name)):>9}" for name in names))
    return lines


def percent(score: Optional[float]) -> str:
    """One decimal of a percentage; "-" for None."""
    return "-" if score is None else f"{100 * score:.1f}"
