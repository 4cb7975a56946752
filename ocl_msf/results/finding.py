"""Slots and masks of pictures and videos by a model on one device, and their files."""

import io
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterator, List, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image

from ocl_msf.files import DataError
from ocl_msf.inference.inputs import to_segments
from ocl_msf.inference.model import Model, Result
from ocl_msf.inference.sources import Source, Video
from ocl_msf.inference.videos import VideoError, write_video
from ocl_msf.results import style
from ocl_msf.results.predictions import COLUMNS, Files, Stamp, stamp_of, write

Work = Sequence[Tuple[str, Source]]  # pictures that a model is given at a time, or one video, with their keys


class Journal:
    """Is told of the work while it goes on."""

    def report(self, message: str) -> None:
        """An input cannot be read."""

    def watch(self, key: str, frames: int) -> None:
        """So many further frames of a video are done."""


class Finder:
    """Finds the slots and masks of pictures and videos, and writes them.

    Args:
        model: on its device.
        fit: see `Model.forward`.
        files: where the results belong.
        journal: is told of progress, and of what cannot be read.
        pool: threads that decode and encode pictures.
    """

    def __init__(self, model: Model, fit: str, files: Files, journal: Journal, pool: ThreadPoolExecutor):
        self.model, self.fit, self.files, self.journal, self.pool = model, fit, files, journal, pool
        self.colors = style.segment_palette()

    def __call__(self, work: Work) -> int:
        """Do some pictures, or a video; returns how many of them could be read."""
        (key, source), *_ = work
        return self._find_video(key, source) if isinstance(source, Video) else self._find_pictures(work)

    def _read(self, work: Work) -> List[Tuple[str, Stamp, np.ndarray]]:
        """The pictures that can be read, with their keys and stamps."""

        def read(picture: Source) -> Union[Tuple[Stamp, np.ndarray], DataError]:
            try:
                return stamp_of(picture), picture.read()  # type: ignore[union-attr]
            except DataError as error:
                return error

        readable = []
        for (key, _), outcome in zip(work, self.pool.map(read, [picture for _, picture in work])):
            if isinstance(outcome, DataError):
                self.journal.report(str(outcome))
            else:
                readable.append((key, *outcome))
        return readable

    def _find_pictures(self, work: Work) -> int:
        pictures = self._read(work)
        if not pictures:
            return 0
        self.files.begin()
        is_video = self.model.description.video  # a picture is then a video of one frame
        result = self.model([image[None] if is_video else image for _, _, image in pictures], self.fit)
        slots = _slots(result).reshape(len(pictures), 1, *result.slots.shape[-2:])

        def finish(number: int) -> None:
            key, stamp, image = pictures[number]
            scores = result.scores[number]
            mask = to_segments(scores[0] if is_video else scores, result.places[number]).cpu().numpy()
            self._write_mask(self.files.path("masks", key), mask)
            write(self.files.path("overlays", key), _to_png(draw_overlay(image, mask, self.colors)))
            self.files.write_slots(key, slots[number], stamp)

        list(self.pool.map(finish, range(len(pictures))))
        return len(pictures)

    def _find_video(self, key: str, video: Video) -> int:
        stamp = stamp_of(video)
        count, arrays = self.files.resume(key, stamp)
        self.journal.watch(key, count)
        try:
            state = {name: torch.from_numpy(x) for name, x in arrays.items()} or None
            frames = itertools.islice(video.frames(), count, None)
            boxes = video.boxes() if self.model.description.number_of_boxes else None
            for result in self.model.track(frames, self.fit, boxes, state):
                self.files.begin()
                number = self._write_frames(key, count, result, stamp)
                self.journal.watch(key, number)
                count += number
            self._write_overlays(video, key, count)
        except VideoError as error:
            self.files.remove(key)
            self.journal.report(str(error))
            return 0
        self.files.finish(key, stamp)
        return 1

    def _write_frames(self, key: str, first: int, result: Result, stamp: Stamp) -> int:
        """Write masks and slots of some frames of a video, from the number `first` on; returns how many they are."""
        scores, place = result.scores.flatten(0, -4), result.places[0]

        def finish(number: int) -> None:
            mask = to_segments(scores[number], place).cpu().numpy()
            self._write_mask(self.files.path_of_frame("masks", key, first + number), mask)

        list(self.pool.map(finish, range(len(scores))))
        carried = {name: x.cpu().numpy() for name, x in (result.state or {}).items()}
        self.files.write_part(key, first, _slots(result), carried, stamp)
        return len(scores)

    def _write_overlays(self, video: Video, key: str, count: int) -> None:
        """Write a video with its slots in colour, and some of its frames; the video is read once more."""
        stills = set(np.linspace(0, count - 1, min(COLUMNS, count)).round().astype(int))

        def overlays() -> Iterator[np.ndarray]:
            for number, image in enumerate(itertools.islice(video.frames(), count)):
                with Image.open(self.files.path_of_frame("masks", key, number)) as mask:
                    overlay = draw_overlay(image, np.asarray(mask), self.colors)
                if number in stills:
                    write(self.files.path_of_frame("overlays", key, number), _to_png(overlay))
                yield np.asarray(overlay)

        write_video(self.files.path_of_overlays(key), overlays(), video.rate())

    def _write_mask(self, path: Path, mask: np.ndarray) -> None:
        image = Image.fromarray(mask)
        image.putpalette(self.colors.ravel().tolist())
        write(path, _to_png(image))


def _slots(result: Result) -> np.ndarray:
    """The slots of all pictures, or of all frames, (n, k, d)."""
    return np.ascontiguousarray(result.slots.float().flatten(0, -3).cpu().numpy())


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


def _to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=1)
    return buffer.getvalue()
