"""Logs of trainings: scalars by name, read from TensorBoard's files."""

import statistics
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

from ocl_msf.files import explain_missing


class Event(NamedTuple):
    """A number that was logged, and when: `time` is in seconds since 1970."""

    step: int
    value: float
    time: float


Log = Dict[str, List[Event]]  # by name, such as "val/ari_fg", in the order of steps


def read_log(folder: Path) -> Log:
    """Read the scalars that a run has logged to TensorBoard.

    Args:
        folder: of the run.

    Raises:
        DataError: there is a log, and TensorBoard is not installed.
    """
    versions = sorted({path.parent for path in folder.glob("*/*/events.out.tfevents.*")})
    if not versions:
        return {}
    with explain_missing(f"The log in {folder} needs TensorBoard: pip install tensorboard"):  # the run had it
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    log: Log = {}
    for version in versions:
        logged = EventAccumulator(str(version), size_guidance={"scalars": 0, "images": 1}).Reload()
        for name in logged.Tags()["scalars"]:
            events = [Event(event.step, event.value, event.wall_time) for event in logged.Scalars(name)]
            log[name] = _replace(log.get(name, []), events)
    return log


def join_logs(earlier: Log, later: Log, step: int) -> Log:
    """Continue a log from `step` on by another one."""
    log = {name: [event for event in events if event.step <= step] for name, events in earlier.items()}
    return {name: _replace(log.get(name, []), later.get(name, [])) for name in sorted({*log, *later})}


def _replace(events: List[Event], others: List[Event]) -> List[Event]:
    """All events, of two at the same step the other one."""
    steps = {event.step: event for event in [*events, *others]}
    return [steps[step] for step in sorted(steps)]


def seconds_per_step(log: Log) -> Optional[float]:
    """Median over the intervals of the log, most of which hold no validation; None if it holds none."""
    logs = [events for name, events in log.items() if name.startswith("train/")]
    events = max(logs, key=len, default=[])
    pairs = [(a, b) for a, b in zip(events, events[1:]) if b.time > a.time]
    return statistics.median((b.time - a.time) / (b.step - a.step) for a, b in pairs) if pairs else None
