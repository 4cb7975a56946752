"""Slots and masks of many pictures and videos as files; the command is `ocl-msf predict`.

For the layout of the folder that it fills see `ocl_msf.results.predictions`.
"""

import contextlib
import functools
import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generator, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from tqdm import tqdm

from ocl_msf.experiments.tasks import AGAIN
from ocl_msf.files import DataError
from ocl_msf.inference.loading import find, load
from ocl_msf.inference.model import Model
from ocl_msf.inference.sources import Source, Video, find_sources
from ocl_msf.inference.videos import require_pyav
from ocl_msf.results.devices import choose_devices, share
from ocl_msf.results.finding import Finder, Journal, Work
from ocl_msf.results.predictions import Files, Predictions, Stamp

THREADS = 4  # of each process, that decode and encode pictures


class Tally(NamedTuple):
    """How many pictures and videos were done now, how many before, and how many inputs could not be read."""

    pictures: int
    videos: int
    kept: int
    unread: int


def predict(
    source: Union[str, Path],
    inputs: Sequence[str],
    out: Path,
    batch_size: int = 16,
    device: Optional[str] = None,
    fit: str = "crop",
    devices: Optional[str] = None,
) -> Tally:
    """Find slots and masks of pictures and videos, and write them; for the layout see `ocl_msf.results.predictions`.

    A picture whose files are there is not done again, unless it has changed, and a video goes on where it was
    interrupted. What cannot be read is named on stderr, and the others are done. Several devices share the batches of
    pictures and the videos, and write what one would.

    Args:
        source: a model, see `ocl_msf.load`. One of images finds each frame of a video by itself; to one of videos, a
            picture is a video of one frame.
        inputs: see `ocl_msf.inference.sources.find_sources`.
        out: a new folder, or one of an earlier call with the same model and fit.
        batch_size: pictures at a time.
        device: where the model computes; by default a GPU if there is one.
        fit: see `Model.forward`.
        devices: several to compute on, see `ocl_msf.results.devices.choose_devices`.

    Raises:
        DataError: there is no such model or device, nothing could be read, videos need PyAV, or the folder holds
            something else or cannot be written.
    """
    unread: List[str] = []
    sources = find_sources(inputs, unread.append, out)
    alone = len(sources) + len(unread) == 1  # what is wrong with it is then the error
    for message in [] if alone else unread:
        _say(message)
    if any(isinstance(source, Video) for source in sources):
        require_pyav()
    names, path = choose_devices(device, devices), find(source)
    model = load(path)
    if len(names) == 1:
        model = _to(model, names[0])
    folder = Predictions(out, {"model": str(source), "weights": _fingerprint(model), "fit": fit})
    if not sources:
        raise _nothing(unread)
    named = folder.name(sources)
    missing = _in_batches([(key, source) for key, source in named if not folder.is_done(key, source)], batch_size)
    kept, pictures, videos = len(named) - sum(map(len, missing)), 0, 0
    if any(_is_video(work) for work in missing) and not model.description.video:
        _say("This model was trained on pictures, so each frame of a video is a picture by itself.")
    try:
        with _Bars(len(named), kept, unread, alone) as bars, contextlib.closing(
            _find(model, path, folder, missing, names, bars)
        ) as results:
            for work, number in results:
                videos, pictures = (videos + number, pictures) if _is_video(work) else (videos, pictures + number)
                bars.inputs.update(len(work))
        if not pictures + videos + kept:
            raise _nothing(unread)
    finally:
        folder.abandon()
    folder.summarize()
    return Tally(pictures, videos, kept, len(unread))


class _Bars(Journal):
    """Progress bars, and what cannot be read, on stderr."""

    def __init__(self, total: int, kept: int, unread: List[str], alone: bool):
        self.unread, self.alone = unread, alone
        self.inputs = tqdm(total=total, initial=kept, desc="predict", unit=" inputs")
        self.frames: Optional[tqdm] = None

    def report(self, message: str) -> None:
        self.unread.append(message)
        if not self.alone:
            _say(message)

    def watch(self, key: str, frames: int) -> None:
        if self.frames is None:
            self.frames = tqdm(desc="videos", unit=" frames", leave=False)
        self.frames.set_postfix_str(key, refresh=False)
        self.frames.update(frames)

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *_: Any) -> None:
        for bar in (self.frames, self.inputs):
            if bar is not None:
                bar.close()


def _is_video(work: Work) -> bool:
    return isinstance(work[0][1], Video)


def _in_batches(missing: Sequence[Tuple[str, Source]], batch_size: int) -> List[Work]:
    """Each video, and then pictures in batches: those that take the longest first, for devices to end together."""
    videos: List[Work] = [[(key, source)] for key, source in missing if isinstance(source, Video)]
    pictures = [(key, source) for key, source in missing if not isinstance(source, Video)]
    return [*videos, *(pictures[start : start + batch_size] for start in range(0, len(pictures), batch_size))]


def _find(
    model: Model, path: Path, folder: Predictions, missing: Sequence[Work], devices: Sequence[str], journal: Journal
) -> Generator[Tuple[Work, int], None, None]:
    """Do the work; with each piece, how many of its pictures or videos could be read."""
    if len(devices) > 1:
        folder.begin()  # not all of its writers at once
        open_finder = functools.partial(_open_finder, path, folder.folder, folder.record)
        yield from share(open_finder, missing, devices, journal, [__name__])
        return
    with ThreadPoolExecutor(THREADS) as pool:
        find_slots = Finder(model, folder.record["fit"], folder, journal, pool)
        yield from ((work, find_slots(work)) for work in missing)


@contextlib.contextmanager
def _open_finder(path: Path, folder: Path, record: Stamp, device: str, journal: Journal) -> Iterator[Finder]:
    """The same for one of several processes."""
    model = _to(load(path), device)
    if _fingerprint(model) != record["weights"]:
        raise DataError(f"{path} has changed in the meantime. {AGAIN}")
    with ThreadPoolExecutor(THREADS) as pool:
        yield Finder(model, record["fit"], Files(folder, record), journal, pool)


def _say(message: str) -> None:
    tqdm.write(message, file=sys.stderr)


def _nothing(unread: Sequence[str]) -> DataError:
    if len(unread) == 1:
        return DataError(unread[0])
    return DataError(f"Nothing could be read of {len(unread)} inputs.")


def _to(model: Model, device: Optional[str]) -> Model:
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.to(name)
    except (RuntimeError, AssertionError) as error:  # torch's for a wrong name, and for a device that is not there
        reason = str(error).split("\n")[0]
        raise DataError(f"The device {name} cannot be used ({reason}). Choose another one, such as cpu.") from error


def _fingerprint(model: Model) -> str:
    digest = hashlib.sha256()
    for name, x in sorted(model.state_dict().items()):
        if isinstance(x, torch.Tensor):
            digest.update(name.encode() + x.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
