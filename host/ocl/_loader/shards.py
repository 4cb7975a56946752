"""Reading samples from tar shards on any file system, each by one reader.

The reader is ours, because webdataset's reads every field of every sample, wanted or not and of every rank, and takes
a shard cut off at a header for a whole one: with a check of the headers in front, it took 2 times as long for images
and 20 to 30 times for videos of which two of five fields are wanted.
"""

import bz2
import contextlib
import gzip
import itertools
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Optional, Union

import braceexpand
import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from hydra.utils import to_absolute_path
from torch.utils.data import get_worker_info

from ocl._loader.random_state import draw_seed
from ocl._loader.ranks import Pass, new_pass
from ocl._loader.streams import open_stream
from ocl.errors import ShardError

Shards = Union[str, os.PathLike, Iterable[Union[str, os.PathLike]]]
Member = tuple[str, str, tarfile.TarInfo]  # key of the sample, raw field name, header

# What opens compressed archives, by their first bytes, and what reading archives raises.
COMPRESSIONS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
READ_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)


class Damage(str):
    """Message about a damaged shard or sample that was skipped."""


class RawSample(NamedTuple):
    """A sample as stored: the name of its shard, its key and the bytes of each raw field."""

    shard: str
    key: str
    fields: dict[str, bytes]


def expand_shards(shards: Shards) -> list[str]:
    """Expand the braces in one or several shard names; relative paths start where the program was started.

    Args:
        shards: local paths or URLs such as `"train-{000000..000009}.tar"`. A backslash takes the meaning from a brace.
    """
    names = [shards] if isinstance(shards, (str, os.PathLike)) else shards
    expanded = [shard for name in names for shard in braceexpand.braceexpand(os.fspath(name))]
    return [shard if "://" in shard or "::" in shard else to_absolute_path(shard) for shard in expanded]


class ShardReader:
    """The samples of this reader's share of the shards, in an order that is new in each pass.

    A reader is one worker process of one rank. Shards are assigned to the readers in turn. With several ranks, the
    shards left over when all readers have equally many are read by all of them, each taking every n-th sample, so that
    every rank gets its share however few shards there are.

    Args:
        shards: local paths and fsspec URLs.
        field_prefixes: a field is read if its raw name starts with one of these or with `_`.
        skip_damage: continue behind a damaged sample, or with the next shard, instead of raising.

    Attributes:
        damage: the `Damage` skipped so far; whoever reports it empties the list.
        current_shard: where the sample that was decoded last comes from.

    Raises:
        FileNotFoundError: if a shard does not exist; local ones are looked for before the first sample.
        ShardError: if a shard is damaged, or cannot be read.
    """

    def __init__(self, shards: Iterable[str], field_prefixes: Iterable[str] = (), skip_damage: bool = False):
        self.shards, self.field_prefixes, self.skip_damage = list(shards), (*field_prefixes, "_"), skip_damage
        self.damage: list[Damage] = []
        self.current_shard = ""
        self.current_pass: Optional[Pass] = None  # set by the loader; its worker processes know nothing about ranks

    def __iter__(self) -> Iterator[RawSample]:
        _check_that_shards_exist(self.shards)
        worker = get_worker_info()
        current = self.current_pass
        if current is None:
            # Not our loader: its workers have only its seed in common.
            current = new_pass(draw_seed()) if worker is None else Pass(worker.seed - worker.id)
        n_workers, worker_id = (1, 0) if worker is None else (worker.num_workers, worker.id)
        order = torch.randperm(len(self.shards), generator=torch.Generator().manual_seed(current.seed)).tolist()
        for index, part, n_parts in share_of_reader(len(self.shards), current, worker_id, n_workers):
            with self.tolerance():
                yield from read_shard(self.shards[order[index]], self.field_prefixes, part, n_parts)

    @contextlib.contextmanager
    def tolerance(self) -> Iterator[None]:
        """Catch a `ShardError` and record it, if damage is to be skipped."""
        try:
            yield
        except ShardError as error:
            if not self.skip_damage:
                raise
            self.damage.append(Damage(error))


def share_of_reader(n_shards: int, current_pass: Pass, worker_id: int, n_workers: int) -> list[tuple[int, int, int]]:
    """Return what a reader has to read: (index of a shard, part, number of parts) for each of its shards."""
    n_readers = current_pass.world_size * n_workers
    reader = current_pass.rank * n_workers + worker_id
    n_whole = n_shards if current_pass.world_size == 1 else n_shards - n_shards % n_readers
    whole = [(index, 0, 1) for index in range(reader, n_whole, n_readers)]
    # The parts rotate, so that no reader is always the one with a sample more.
    return whole + [(index, (reader + index) % n_readers, n_readers) for index in range(n_whole, n_shards)]


def read_shard(shard: str, field_prefixes: tuple[str, ...], part: int = 0, n_parts: int = 1) -> Iterator[RawSample]:
    """Yield the raw samples of a shard, or only every `n_parts`-th one from the `part`-th on.

    Consecutive files whose base names agree up to the first dot form a sample. Only the requested fields are read.

    Raises:
        FileNotFoundError: if there is no such shard.
        ShardError: if the shard is cut off or damaged, or reading it failed too often.
    """
    key = None
    try:
        with _open_archive(shard) as archive:
            samples = itertools.groupby(_members(archive, shard), key=lambda member: member[0])
            for index, (key, members) in enumerate(samples):
                if index % n_parts == part:
                    yield RawSample(shard, key, _read_fields(archive, members, field_prefixes))
            _check_the_rest(archive)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Shard `{shard}` does not exist.") from error
    except READ_ERRORS as error:
        where = "at its beginning" if key is None else f"at or after sample `{key}`"
        raise ShardError(f"Shard `{shard}` is damaged {where}: {error}. Fetch or write it again.") from error


def explain_missing_fields(stream: Iterable[Any], reader: ShardReader) -> Iterator[Any]:
    """Yield a stream of samples; if a field is missing because of how the files in its shard are named, say so.

    Raises:
        ShardError: if the files of a sample are not adjacent, or keys have dots.
    """
    try:
        yield from stream
    except KeyError:
        with contextlib.suppress(*READ_ERRORS):
            _check_names(reader.current_shard, reader.field_prefixes[:-1])
        raise


def _check_names(shard: str, prefixes: tuple[str, ...]) -> None:
    with _open_archive(shard) as archive:
        for key, field, member in _members(archive, shard):
            if not field.startswith(prefixes) and any(f".{prefix}" in field for prefix in prefixes):
                raise ShardError(
                    f"Shard `{shard}` has dots in the keys of its samples: keys end at the first dot, so that "
                    f"`{member.name}` is the field `{field}` of sample `{key}`. Write the shard again, keys without "
                    "dots."
                )


def _check_that_shards_exist(shards: Sequence[str]) -> None:
    places = [(shard, *fsspec.core.url_to_fs(shard)) for shard in shards]
    missing = [shard for shard, system, path in places if _is_local(system) and not os.path.exists(path)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(shards)} shards do not exist, the first is `{missing[0]}`. "
            "Check the shard paths of the dataset."
        )


def _is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    return isinstance(filesystem, LocalFileSystem)


@contextlib.contextmanager
def _open_archive(shard: str) -> Iterator[tarfile.TarFile]:
    filesystem, path = fsspec.core.url_to_fs(shard)
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(open_stream(filesystem, path))
        start = stream.peek(6)
        for magic, decompress in COMPRESSIONS.items():
            if start.startswith(magic):
                stream = stack.enter_context(decompress(stream, "rb"))
        # Skipped fields are sought over in a local file, and read in a stream.
        opened = tarfile.open(fileobj=stream, mode="r:" if _is_local(filesystem) else "r|", tarinfo=_StrictTarInfo)
        yield stack.enter_context(opened)


class _StrictTarInfo(tarfile.TarInfo):
    """Header of a tar member; what tarfile would quietly take for the end of the archive is an error."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_StrictTarInfo":
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]  # undocumented
            raise tarfile.ReadError("it is cut off, the end-of-archive mark is missing") from error
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]  # undocumented
            raise tarfile.ReadError("this is not tar data") from error


def _members(archive: tarfile.TarFile, shard: str) -> Iterator[Member]:
    """Yield what belongs to a sample.

    Raises:
        ShardError: if further files of a sample come behind other samples.
    """
    fields: dict[str, set[str]] = {}  # by key
    last = None
    for member in archive:
        key, _, field = os.path.basename(member.name).partition(".")
        if not (member.isfile() and key and field):
            continue
        if key != last and field not in fields.get(key, {field}):  # the same fields again are another sample
            raise ShardError(
                f"Shard `{shard}` has files of sample `{key}` in several places, `{member.name}` behind other samples. "
                "The files of a sample have to be adjacent: write the shard again, its files sorted by name, for "
                "instance with `tar --sort=name`."
            )
        fields.setdefault(key, set()).add(field)
        last = key
        yield key, field, member


def _read_fields(archive: tarfile.TarFile, members: Iterable[Member], prefixes: tuple[str, ...]) -> dict[str, bytes]:
    fields: dict[str, bytes] = {}
    for key, field, member in members:
        if not field.startswith(prefixes):
            continue
        if field in fields:
            raise tarfile.ReadError(f"`{key}.{field}` occurs twice, neighbouring samples share the key")
        file = archive.extractfile(member)
        fields[field] = file.read() if file else b""
        if len(fields[field]) != member.size:
            raise tarfile.ReadError(f"it is cut off within `{member.name}`")
    return fields


def _check_the_rest(archive: tarfile.TarFile) -> None:
    """Make sure that only padding follows the end-of-archive mark."""
    stream: Any = archive.fileobj
    while padding := stream.read(2**16):
        if padding.strip(b"\0"):
            raise tarfile.ReadError("there is data after the end-of-archive mark")
