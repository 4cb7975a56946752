"""Slots and masks of many pictures and videos as files; the command is `ocl-msf predict`.

For the layout of the folder that it fills see `ocl_msf.results.predictions`.
"""

import hashlib
import io
import itertools
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ocl_msf.files import DataError
from ocl_msf.inference.inputs import to_segments
from ocl_msf.inference.loading import load
from ocl_msf.inference.model import Model, Result
from ocl_msf.inference.sources import Picture, Video, find_sources
from ocl_msf.inference.videos import VideoError, require_pyav, write_video
from ocl_msf.results import style
from ocl_msf.results.predictions import COLUMNS, Predictions, Stamp, stamp_of, write

THREADS = 4  # that decode and encode pictures

Report = Callable[[str], None]


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
) -> Tally:
    """Find slots and masks of pictures and videos, and write them; for the layout see `ocl_msf.results.predictions`.

    A picture whose files are there is not done again, unless it has changed, and a video goes on where it was
    interrupted. What cannot be read is named on stderr, and the others are done.

    Args:
        source: a model, see `ocl_msf.load`. One of images finds each frame of a video by itself; to one of videos, a
            picture is a video of one frame.
        inputs: see `ocl_msf.inference.sources.find_sources`.
        out: a new folder, or one of an earlier call with the same model and fit.
        batch_size: pictures at a time.
        device: where the model computes; by default a GPU if there is one.
        fit: see `Model.forward`.

    Raises:
        DataError: there is no such model or device, nothing could be read, videos need PyAV, or the folder holds
            something else or cannot be written.
    """
    unread: List[str] = []
    sources = find_sources(inputs, unread.append, out)
    alone = len(sources) + len(unread) == 1

    def report(message: str) -> None:
        unread.append(message)
        if not alone:
            _say(message)

    if not alone:
        for message in unread:
            _say(message)
    if any(isinstance(source, Video) for source in sources):
        require_pyav()
    model = _to(load(source), device)
    folder = Predictions(out, {"model": str(source), "weights": _fingerprint(model), "fit": fit})
    if not sources:
        raise _nothing(unread)
    named = folder.name(sources)
    missing = [(key, source) for key, source in named if not folder.is_done(key, source)]
    pictures = [(key, source) for key, source in missing if isinstance(source, Picture)]
    videos = [(key, source) for key, source in missing if isinstance(source, Video)]
    if videos and not model.description.video:
        _say("This model was trained on pictures, so each frame of a video is a picture by itself.")
    kept, done_pictures, done_videos = len(named) - len(missing), 0, 0
    with tqdm(total=len(named), initial=kept, desc="predict", unit=" inputs") as bar, ThreadPoolExecutor(
        THREADS
    ) as pool:
        for start in range(0, len(pictures), batch_size):
            batch = pictures[start : start + batch_size]
            done_pictures += _find_pictures(model, batch, fit, folder, pool, report)
            bar.update(len(batch))
        for key, video in videos:
            done_videos += _find_video(model, video, key, fit, folder, pool, report)
            bar.update()
    if not done_pictures + done_videos + kept:
        if folder.is_new:
            shutil.rmtree(out, ignore_errors=True)
        raise _nothing(unread)
    folder.summarize()
    return Tally(done_pictures, done_videos, kept, len(unread))


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


def _read(
    batch: Sequence[Tuple[str, Picture]], pool: ThreadPoolExecutor, report: Report
) -> List[Tuple[str, Stamp, np.ndarray]]:
    """Those of a batch that can be read, with their stamps."""

    def read(picture: Picture) -> Union[Tuple[Stamp, np.ndarray], DataError]:
        try:
            return stamp_of(picture), picture.read()
        except DataError as error:
            return error

    readable = []
    for (key, _), outcome in zip(batch, pool.map(read, [picture for _, picture in batch])):
        if isinstance(outcome, DataError):
            report(str(outcome))
        else:
            readable.append((key, *outcome))
    return readable


def _find_pictures(
    model: Model,
    batch: Sequence[Tuple[str, Picture]],
    fit: str,
    folder: Predictions,
    pool: ThreadPoolExecutor,
    report: Report,
) -> int:
    """Find the slots of some pictures, and write their files; returns how many could be read."""
    pictures = _read(batch, pool, report)
    if not pictures:
        return 0
    folder.begin()
    images = [image[None] if model.description.video else image for _, _, image in pictures]  # videos of one frame
    result = model(images, fit)
    slots = _slots(result).reshape(len(images), 1, *result.slots.shape[-2:])
    colors = style.segment_palette()

    def finish(number: int) -> None:
        key, stamp, image = pictures[number]
        scores = result.scores[number]
        mask = to_segments(scores[0] if scores.ndim == 4 else scores, result.places[number]).cpu().numpy()
        _write_mask(folder.path("masks", key), mask, colors)
        write(folder.path("overlays", key), _to_png(draw_overlay(image, mask, colors)))
        folder.write_slots(key, slots[number], stamp)

    list(pool.map(finish, range(len(pictures))))
    return len(pictures)


def _find_video(
    model: Model, video: Video, key: str, fit: str, folder: Predictions, pool: ThreadPoolExecutor, report: Report
) -> int:
    """Find the slots of a video, and write its files; returns whether it could be read, as 0 or 1."""
    stamp, colors = stamp_of(video), style.segment_palette()
    count, arrays = folder.resume(key, stamp)
    try:
        state = {name: torch.from_numpy(x) for name, x in arrays.items()} or None
        frames = itertools.islice(video.frames(), count, None)
        boxes = video.boxes() if model.description.number_of_boxes else None
        with tqdm(desc=key, initial=count, unit=" frames", leave=False) as bar:
            for result in model.track(frames, fit, boxes, state):
                folder.begin()
                slots, scores = _slots(result), result.scores.flatten(0, -4)

                def finish(number: int, first: int = count, scores: torch.Tensor = scores, place=result.places[0]):
                    mask = to_segments(scores[number], place).cpu().numpy()
                    _write_mask(folder.path_of_frame("masks", key, first + number), mask, colors)

                list(pool.map(finish, range(len(scores))))
                carried = {name: x.cpu().numpy() for name, x in (result.state or {}).items()}
                folder.write_part(key, count, slots, carried, stamp)
                count += len(scores)
                bar.update(len(scores))
        _write_overlays(video, key, count, folder, colors)
    except VideoError as error:
        folder.remove(key)
        report(str(error))
        return 0
    folder.finish(key, stamp)
    return 1


def _slots(result: Result) -> np.ndarray:
    """The slots of all pictures, or of all frames, (n, k, d)."""
    return np.ascontiguousarray(result.slots.float().flatten(0, -3).cpu().numpy())


def _write_overlays(video: Video, key: str, count: int, folder: Predictions, colors: np.ndarray) -> None:
    """Write a video with its slots in colour, and some of its frames; the video is read once more."""
    stills = set(np.linspace(0, count - 1, min(COLUMNS, count)).round().astype(int))

    def overlays() -> Iterator[np.ndarray]:
        for number, image in enumerate(itertools.islice(video.frames(), count)):
            with Image.open(folder.path_of_frame("masks", key, number)) as mask:
                overlay = draw_overlay(image, np.asarray(mask), colors)
            if number in stills:
                write(folder.path_of_frame("overlays", key, number), _to_png(overlay))
            yield np.asarray(overlay)

    write_video(folder.path_of_overlays(key), overlays(), video.rate())


def draw_overlay(image: np.ndarray, mask: np.ndarray, colors: np.ndarray) -> Image.Image:
    """A picture under the colours of its slots, with a white line between neighbours.

    Args:
        image: (h, w, 3) uint8.
        mask: (h, w) uint8.
        colors: of each number in the mask, (256, 3) uint8.
    """
    painted = colors[mask]
    painted[:, 1:][mask[:, 1:] != mask[:, :-1]] = 255
    painted[1:][mask[1:] != mask[:-1]] = 255
    return Image.blend(Image.fromarray(image), Image.fromarray(painted), 0.5)


def _write_mask(path: Path, mask: np.ndarray, colors: np.ndarray) -> None:
    image = Image.fromarray(mask)
    image.putpalette(colors.ravel().tolist())
    write(path, _to_png(image))


def _to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=1)
    return buffer.getvalue()
