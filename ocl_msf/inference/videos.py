"""Video files, one frame at a time, by PyAV: the extra `video`."""

import contextlib
from fractions import Fraction
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator

import numpy as np

from ocl_msf.files import DataError, explain_missing, replacing

VIDEOS = frozenset(".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ogv .wmv .flv .mts .m2ts".split())
INSTALL = "Videos are read by PyAV, which is not installed: pip install av"
RATE = 25  # frames per second of a video that does not say it


class VideoError(DataError):
    """A video that cannot be read; others may be in order."""


def require_pyav() -> Any:
    """The package `av`.

    Raises:
        DataError: it is not installed.
    """
    with explain_missing(INSTALL):
        import av
        import av.error
    return av


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Open the container of a video; what fails in it is an error that names the file."""
    av = require_pyav()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{path} holds no video.")
            container.streams.video[0].thread_type = "AUTO"  # decodes several frames at once
            yield container
    except EOFError as error:  # PyAV's for a file that ends before a frame
        raise VideoError(f"{path} is a video without frames.") from error
    except av.error.FFmpegError as error:
        raise VideoError(f"{path} cannot be read as a video: {error.strerror}") from error


def frame_rate(path: Path) -> Fraction:
    """Frames per second, on average.

    Raises:
        VideoError: it cannot be read.
        DataError: PyAV is not installed.
    """
    with _open(path) as container:
        return Fraction(container.streams.video[0].average_rate or RATE)


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """Read a video as viewers show it, holding a few frames in memory.

    Yields:
        (h, w, 3), uint8, all of the size of the first frame.

    Raises:
        VideoError: it cannot be read, has no frames, or ends too early.
        DataError: PyAV is not installed.
    """
    count, frame = 0, None
    size: Dict[str, int] = {}
    with _open(path) as container:
        stream = container.streams.video[0]
        try:
            for frame in container.decode(stream):
                size = size or {"width": frame.width, "height": frame.height}
                pixels = frame.to_ndarray(format="rgb24", **size)
                yield np.rot90(pixels, round(getattr(frame, "rotation", 0) / 90))  # counterclockwise; PyAV 14 or newer
                count += 1
        except require_pyav().error.FFmpegError as error:
            if count:
                raise VideoError(f"{path} is cut off or damaged after {count} frames.") from error
            raise
        if not count:
            raise VideoError(f"{path} is a video without frames.")
        if frame.is_corrupt or _is_cut_off(container, stream, frame):
            raise VideoError(f"{path} is cut off or damaged after {count} frames.")


def _is_cut_off(container: Any, stream: Any, last: Any) -> bool:
    """Whether more than a second, and a tenth, of what a file declares is missing; some decoders end without an error.

    The duration of a container is that of its longest stream, so it counts only if there is no other stream.
    """
    if stream.duration:
        declared = float(stream.duration * stream.time_base)
    elif container.duration and len(container.streams) == 1:
        declared = container.duration / 1_000_000
    else:
        return False
    start = float((stream.start_time or 0) * stream.time_base)
    return declared - ((last.time or 0) - start) > max(1, declared / 10) + 1 / (stream.average_rate or RATE)


def write_video(path: Path, frames: Iterable[np.ndarray], rate: Fraction) -> None:
    """Write an MP4 that browsers play; the file appears when it is complete.

    Args:
        path: its suffix is .mp4.
        frames: (h, w, 3) each, uint8, all of one size; the last row or column is repeated where that is odd.
        rate: frames per second.

    Raises:
        DataError: it cannot be written, or PyAV is not installed.
    """
    av = require_pyav()
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"  # every FFmpeg has the latter
    with replacing(path) as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.pix_fmt = "yuv420p"
        for number, pixels in enumerate(frames):
            height, width = pixels.shape[:2]
            even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if not number:
                stream.height, stream.width = even.shape[:2]
            frame = av.VideoFrame.from_ndarray(even, format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
