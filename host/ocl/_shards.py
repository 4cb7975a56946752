"""Reading samples from tar shards on any file system, each by one reader."""

import collections
import contextlib
import dataclasses
import itertools
import os
import tarfile

import braceexpand
import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from torch import distributed
from torch.utils.data import get_worker_info

from ocl._randomness import draw_seed
from ocl._streams import open_stream


class ShardError(RuntimeError):
    """A shard or one of its samples is damaged, or the shards do not suffice."""


class Damage(str):
    """What is said about a damaged shard or sample that was skipped."""


RawSample = collections.namedtuple("RawSample", ["shard", "key", "fields"])
RawSample.__doc__ = "A sample as stored: the name of its shard, its key and the bytes of each raw field."


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass over the shards: what all its readers have to agree on.

    Args:
        seed: determines the order of the shards.
        rank: index of this process.
        world_size: number of processes.
    """

    seed: int
    rank: int = 0
    world_size: int = 1


def new_pass(seed):
    """Begin a pass with the seed of the first rank; with `torch.distributed` all ranks have to call this."""
    return Pass(gather(seed)[0], rank(), world_size())


def world_size():
    """Return the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank():
    """Return the index of this process among those that train together."""
    return distributed.get_rank() if world_size() > 1 else 0


def gather(value):
    """Return the values that all processes pass, in the order of their ranks."""
    values = [value] * world_size()
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


def share_of_rank(samples):
    """Iterate every n-th of the samples that all n processes have, each process other ones."""
    return itertools.islice(samples, rank(), None, world_size())


def expand_shards(shards):
    """Expand the braces in one or several shard names.

    Args:
        shards: str or list of str such as `"train-{000000..000009}.tar"`, local paths or URLs.
    """
    names = [shards] if isinstance(shards, (str, os.PathLike)) else shards
    return [shard for name in names for shard in braceexpand.braceexpand(os.fspath(name))]


class ShardReader:
    """The samples of this reader's share of the shards, in an order that is new in each pass.

    A reader is one worker process of one rank. Shards are dealt to the readers in turn. Those that do not go round
    evenly between several ranks are read by all readers, each taking every n-th sample, so that every rank gets its
    share however few shards there are.

    Args:
        shards: list of local paths and fsspec URLs.
        field_prefixes: a field is read if its raw name starts with one of these or with `_`.
        skip_damage: whether to go on behind a damaged sample, or with the next shard, instead of raising.

    Attributes:
        damage: list of the `Damage` skipped so far; whoever reports it empties it.

    Raises:
        FileNotFoundError: a shard does not exist; local ones are looked for before the first sample.
        ShardError: a shard is damaged, or cannot be read.
    """

    def __init__(self, shards, field_prefixes=(), skip_damage=False):
        self.shards, self.field_prefixes, self.skip_damage = list(shards), (*field_prefixes, "_"), skip_damage
        self.damage = []
        self.current_pass = None  # set by the loader, since its worker processes know nothing about ranks

    def __iter__(self):
        _check_that_shards_exist(self.shards)
        worker = get_worker_info()
        current = self.current_pass
        if current is None:
            # Workers of a foreign loader agree at least on the seed of their loader.
            current = new_pass(draw_seed()) if worker is None else Pass(worker.seed - worker.id)
        n_workers, worker_id = (1, 0) if worker is None else (worker.num_workers, worker.id)
        order = torch.randperm(len(self.shards), generator=torch.Generator().manual_seed(current.seed))
        for index, part, n_parts in share_of_reader(len(self.shards), current, worker_id, n_workers):
            with self.tolerance():
                yield from read_shard(self.shards[order[index]], self.field_prefixes, part, n_parts)

    @contextlib.contextmanager
    def tolerance(self):
        """Leave the block at a `ShardError`: note it if damage is to be skipped, and raise it otherwise."""
        try:
            yield
        except ShardError as error:
            if not self.skip_damage:
                raise
            self.damage.append(Damage(error))


def share_of_reader(n_shards, current_pass, worker_id, n_workers):
    """Return what a reader has to read: (index of a shard, part, number of parts) for each of its shards."""
    n_readers = current_pass.world_size * n_workers
    reader = current_pass.rank * n_workers + worker_id
    n_whole = n_shards if current_pass.world_size == 1 else n_shards - n_shards % n_readers
    whole = [(index, 0, 1) for index in range(reader, n_whole, n_readers)]
    # Rotating the parts evens out who gets one sample more.
    return whole + [(index, (reader + index) % n_readers, n_readers) for index in range(n_whole, n_shards)]


def read_shard(shard, field_prefixes, part=0, n_parts=1):
    """Yield the raw samples of a shard, or only every `n_parts`-th one from the `part`-th on.

    Consecutive files whose base names agree up to the first dot form a sample. Only the requested fields are read.

    Raises:
        FileNotFoundError: there is no such shard.
        ShardError: the shard is cut off or damaged, or reading it failed too often.
    """
    key = None
    try:
        with _open_archive(shard) as archive:
            samples = itertools.groupby(_members(archive), key=lambda member: member[0])
            for index, (key, members) in enumerate(samples):
                if index % n_parts == part:
                    yield RawSample(shard, key, _read_fields(archive, members, field_prefixes))
            _check_the_rest(archive)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Shard `{shard}` does not exist.") from error
    except (tarfile.TarError, OSError) as error:
        where = "at its beginning" if key is None else f"at or after sample `{key}`"
        raise ShardError(f"Shard `{shard}` is damaged {where}: {error}. Fetch or write it again.") from error


def _is_local(filesystem):
    return isinstance(filesystem, LocalFileSystem)


def _check_that_shards_exist(shards):
    places = [(shard, *fsspec.core.url_to_fs(shard)) for shard in shards]
    missing = [shard for shard, system, path in places if _is_local(system) and not os.path.exists(path)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(shards)} shards do not exist, the first is `{missing[0]}`. "
            "Check the shard paths of the dataset."
        )


@contextlib.contextmanager
def _open_archive(shard):
    filesystem, path = fsspec.core.url_to_fs(shard)
    mode = "r:" if _is_local(filesystem) else "r|"  # seek over skipped fields, or stream
    with open_stream(filesystem, path) as stream:
        with tarfile.open(fileobj=stream, mode=mode, tarinfo=_StrictTarInfo) as archive:
            yield archive


class _StrictTarInfo(tarfile.TarInfo):
    """Header of a tar member; what tarfile would quietly take for the end of the archive is an error."""

    @classmethod
    def fromtarfile(cls, archive):
        try:
            return super().fromtarfile(archive)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError("it is cut off, the end-of-archive mark is missing") from error
        except tarfile.InvalidHeaderError as error:
            raise tarfile.ReadError("this is not tar data") from error


def _members(archive):
    """Yield (key, raw field name, member) of each file that belongs to a sample."""
    for member in archive:
        key, _, field = os.path.basename(member.name).partition(".")
        if member.isfile() and key and field:
            yield key, field, member


def _read_fields(archive, members, field_prefixes):
    fields = {}
    for key, field, member in members:
        if not field.startswith(field_prefixes):
            continue
        if field in fields:
            raise tarfile.ReadError(f"`{key}.{field}` occurs twice, neighbouring samples share the key")
        fields[field] = archive.extractfile(member).read()
        if len(fields[field]) != member.size:
            raise tarfile.ReadError(f"it is cut off within `{member.name}`")
    return fields


def _check_the_rest(archive):
    """Make sure that only padding follows the end-of-archive mark."""
    while padding := archive.fileobj.read(2**16):
        if padding.strip(b"\0"):
            raise tarfile.ReadError("there is data after the end-of-archive mark")
