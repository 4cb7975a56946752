"""The rows beside a model's scores that say what they are worth: its image gain, a blind grid, colour clustering.

`ocl_msf.results.slot_instruments` measures them; reports of evaluations have them as <row>_<score>, grid_ari for
instance.
"""

from typing import Dict, List, Mapping, Sequence

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
    rows: Dict[str, Scores] = {}
    for label, scores in models.items():
        rows[label] = scores
        rows[f"  {ROWS['image_gain']}{' ' * (len(rows) // 2)}"] = row_of("image_gain", scores)
    last = [*models.values()][-1]
    rows.update({label: row_of(row, last) for row, label in TRIVIAL.items()})
    rows = {label: its for label, its in rows.items() if set(SCORES) & set(its)}
    names = [name for name in SCORES if any(name in its for its in rows.values())]
    width = max(len(label.rstrip()) for label in [title, *rows])
    lines = [title.ljust(width) + "".join(f"{SCORES[name]:>9}" for name in names)]
    for label, its in rows.items():
        lines.append(label.rstrip().ljust(width) + "".join(f"{percent(its.get(name)):>9}" for name in names))
    return lines


def percent(score: object) -> str:
    """One decimal of a percentage; "-" for None or NaN."""
    return f"{100 * score:.1f}" if isinstance(score, (int, float)) and score == score else "-"
