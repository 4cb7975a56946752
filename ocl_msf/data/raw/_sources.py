"""The files of a raw download by name, in folders or in zip and tar archives, which are read without unpacking."""

import fnmatch
import functools
import io
import os
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Collection, Dict, Iterator, NamedTuple, Optional, Tuple, Union

from ocl_msf.data.raw._tars import RandomAccess, TarMember, list_members
from ocl_msf.files import DataError

# What reading a damaged archive raises; RuntimeError if it is encrypted or its compression is unknown.
_BUILT_IN = (OSError, EOFError, ValueError, KeyError, RuntimeError)
READ_ERRORS = (*_BUILT_IN, zipfile.BadZipFile, tarfile.TarError, zlib.error)


class Source(NamedTuple):
    """A file, or a member of an archive; small and picklable, for every process that reads opens the archive once.

    Attributes:
        path: of the file itself, or of the archive.
        member: () for the file itself, else the name in the archive; two names are an archive in the archive and its
            member.
    """

    path: str
    member: Tuple[str, ...] = ()

    def __str__(self) -> str:
        return ":".join((self.path, *self.member))

    def read(self) -> bytes:
        """The content.

        Raises:
            READ_ERRORS: the file or its archive is damaged.
        """
        if not self.member:
            return Path(self.path).read_bytes()
        return _archive(self.path, self.member[:-1], _state(self.path)).read(self.member[-1])


AnySource = Union[Source, TarMember]


class Sources:
    """The wanted files of a download, wherever they are below a folder or in the archives there.

    Args:
        root: folder of the download.
        folders: names of the folders whose files are wanted.
        files: names of files that are wanted in any folder.
        tars: patterns of the names of tar archives to search, such as "VOC*.tar"; zip files are always searched.
        without: names of folders to ignore, like hidden ones and `__MACOSX`.

    Unpacked files take precedence over those in archives.

    Raises:
        DataError: there is no such folder, or an archive in it is damaged.
    """

    def __init__(
        self,
        root: Path,
        folders: Collection[str],
        files: Collection[str] = (),
        tars: Collection[str] = (),
        without: Collection[str] = (),
    ) -> None:
        if not root.is_dir():
            raise DataError(f"{root} is no folder. Give the one with the downloaded files.")
        self._folders, self._files = frozenset(folders), frozenset(files)
        self._without = frozenset([*without, "__MACOSX"])
        self._sources: Dict[str, AnySource] = {}
        paths = list(self._walk(root))
        for path in paths:
            self._add(path.parent.name, path.name, Source(str(path)))
        for path in paths:
            if path.suffix == ".zip":
                self._add_archive(Source(str(path)))
            elif any(fnmatch.fnmatch(path.name, pattern) for pattern in tars):
                self._add_tar(path)

    def find(self, name: str) -> Optional[AnySource]:
        """The file `folder/name`, or the one wanted by this name; None if there is none."""
        return self._sources.get(name)

    def count(self, folder: str) -> int:
        """How many files of a wanted folder there are."""
        return sum(name.startswith(folder + "/") for name in self._sources)

    def _ignored(self, parts: Collection[str]) -> bool:
        return any(part.startswith(".") or part in self._without for part in parts)

    def _walk(self, root: Path) -> Iterator[Path]:
        for folder, folders, names in os.walk(str(root)):
            folders[:] = sorted(name for name in folders if not self._ignored([name]))
            yield from (Path(folder, name) for name in sorted(names) if not self._ignored([name]))

    def _add(self, folder: str, name: str, source: AnySource) -> None:
        if name in self._files:
            self._sources.setdefault(name, source)
        if folder in self._folders:
            self._sources.setdefault(f"{folder}/{name}", source)

    def _add_tar(self, path: Path) -> None:
        try:
            for member in list_members([path]):
                parts = [part for part in member.name.split("/") if part not in ("", ".")]
                if parts and not self._ignored(parts):
                    self._add(parts[-2] if len(parts) > 1 else "", parts[-1], member)
        except READ_ERRORS as error:
            raise DataError(
                f"{path} is no intact tar archive ({error}). Download it again, or move it elsewhere."
            ) from error

    def _add_archive(self, source: Source) -> None:
        try:
            archive = _archive(source.path, source.member, _state(source.path))
        except READ_ERRORS as error:
            raise DataError(
                f"{source} is no intact zip archive ({error}). Download it again, or move it elsewhere."
            ) from error
        stem = (source.member or (source.path,))[-1].rsplit("/", 1)[-1][: -len(".zip")]
        for member in archive.namelist():
            parts = member.split("/")
            if not parts[-1] or self._ignored(parts):
                continue
            inner = Source(source.path, (*source.member, member))
            self._add(parts[-2] if len(parts) > 1 else stem, parts[-1], inner)
            if not source.member and parts[-1][: -len(".zip")] in self._folders and member.endswith(".zip"):
                self._add_archive(inner)


def _state(path: str) -> Tuple[int, ...]:
    """Values that change with the content of an archive, and from a process to its children."""
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size, os.getpid()


@functools.lru_cache(maxsize=6)  # COCO needs five at once; each takes about 600 bytes per file in it
def _archive(path: str, inner: Tuple[str, ...], state: Tuple[int, ...]) -> zipfile.ZipFile:
    if not inner:
        return zipfile.ZipFile(path)
    outer = _archive(path, (), state)
    info = outer.getinfo(inner[0])
    if info.compress_type != zipfile.ZIP_STORED:
        return zipfile.ZipFile(outer.open(info))  # fast if the members are read in their order
    return zipfile.ZipFile(io.BufferedReader(_StoredMember(path, info)))


class _StoredMember(RandomAccess):
    """A member that is stored without compression; before Python 3.13, `zipfile` itself reads all up to a position."""

    def __init__(self, path: str, info: zipfile.ZipInfo) -> None:
        super().__init__(info.file_size)
        self._file = open(path, "rb")
        self._file.seek(info.header_offset + 26)  # in the local header: the lengths of name and extra field
        lengths = self._file.read(4)
        name, extra = int.from_bytes(lengths[:2], "little"), int.from_bytes(lengths[2:], "little")
        self._start = info.header_offset + 30 + name + extra

    def _content(self, count: int) -> bytes:
        self._file.seek(self._start + self._position)
        return self._file.read(max(0, min(count, self.size - self._position)))

    def close(self) -> None:
        self._file.close()
        super().close()
