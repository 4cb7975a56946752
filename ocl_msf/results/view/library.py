"""The pictures and videos that a page may show: those of one folder, and no other files."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

import numpy as np

from ocl_msf.files import DataError
from ocl_msf.inference.inputs import read_picture
from ocl_msf.inference.sources import SHARD, Picture, Source, find_sources
from ocl_msf.inference.videos import VIDEOS, read_frames

LIMIT = 1000  # longer lists are of no use on a page


class Library:
    """What can be chosen from a folder.

    Args:
        folder: pictures, videos and shards are found in it at any depth; with None there is nothing to choose.

    Attributes:
        names: of pictures and videos, relative to the folder, and of folders with several pictures, which are shown as
            videos; at most `LIMIT` of each.

    Raises:
        DataError: the folder does not exist, or holds nothing that can be shown.
    """

    def __init__(self, folder: Optional[Path] = None):
        self.root = folder.resolve() if folder else None
        self._entries: Dict[str, Tuple[Source, ...]] = {}
        if self.root:
            self._entries = self._find(self.root)
        self.names: List[str] = list(self._entries)

    def frames(self, name: str) -> Iterator[np.ndarray]:
        """The only frame of a picture, or those of a video, (h, w, 3) uint8.

        Raises:
            DataError: there is no such name, or it cannot be read.
        """
        if name not in self._entries:
            raise DataError(f"There is no {name} in this folder.")
        for source in self._entries[name]:
            if not self._is_inside(source.path):  # a link may have been changed
                raise DataError(f"{name} leads out of the folder.")
            yield from [source.read()] if isinstance(source, Picture) else source.frames()

    def _find(self, root: Path) -> Dict[str, Tuple[Source, ...]]:
        if not root.is_dir():
            raise DataError(f"{root} is no folder. Give one with pictures, or none to open pictures on the page.")
        unread: List[str] = []
        sources = [x for x in find_sources([str(root)], unread.append, root / ".none") if self._is_inside(x.path)]
        if not sources:
            raise DataError(
                f"{root} holds no pictures or videos. Give another folder, or none to open pictures on the page."
            )
        groups: Dict[str, List[Picture]] = defaultdict(list)
        for source in sources:
            if isinstance(source, Picture) and source.path.suffix.lower() != SHARD:
                groups[source.path.parent.relative_to(root).as_posix()].append(source)
        named = {str(Path(source.source).relative_to(root)): (source,) for source in sources}
        names = sorted(named, key=lambda name: (name.count("/"), _by_value(name)))
        entries: Dict[str, Tuple[Source, ...]] = {name: named[name] for name in names[:LIMIT]}
        for folder, members in list(groups.items())[:LIMIT]:
            if len(members) > 1:
                place = "all pictures" if folder == "." else f"{folder}/"
                frames = sorted(members, key=lambda picture: _by_value(picture.name))
                entries[f"{place} as a video of {len(frames)} frames"] = tuple(frames)
        return entries

    def _is_inside(self, path: Path) -> bool:
        return self.root is not None and self.root in path.resolve().parents


def read_upload(path: Path) -> Iterator[np.ndarray]:
    """The frames of a file that was put on the page: one if it is a picture.

    Raises:
        DataError: it cannot be read.
    """
    try:
        yield from read_frames(path) if path.suffix.lower() in VIDEOS else [read_picture(path)]
    except DataError as error:
        raise DataError(str(error).replace(str(path), path.name)) from error  # not where it is kept


def _by_value(name: str) -> List[Tuple[int, str]]:
    """So that frame 10 comes after frame 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
