"""The data module of data sets converted with `--format lmdb`."""

import itertools
import logging
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, get_worker_info

from ocl_msf._host import require_host
from ocl_msf.data._pipe import Pipe
from ocl_msf.data._randomness import random_state, seed_all, set_random_state, with_own_rng
from ocl_msf.data._workers import WORKER_TIMEOUT, SentByValue, WorkerLoader
from ocl_msf.data.datamodule import check_batch, find_files
from ocl_msf.data.datamodule import rank_and_count as _rank
from ocl_msf.data.lmdb import LMDBFile
from ocl_msf.data.summary import SPLITS

with require_host():
    from ocl.datasets import collate_with_autopadding, collate_with_batch_size
    from ocl.transforms import DuplicateFields, Map, SampleConsecutive, SimpleTransform

ONE_TO_ONE = (DuplicateFields, Map, SampleConsecutive, SimpleTransform)  # transforms that keep the number of samples

log = logging.getLogger(__name__)


class LMDBDataModule(LightningDataModule):
    """A data set that `ocl-msf convert --format lmdb` wrote.

    Training samples are permuted anew in every epoch by `seed` and the number of the epoch, all of them, the
    same on every rank. A rank gets every n-th, equally many, and its batches do not depend on `num_workers` as
    long as transforms keep the number of samples and draw nothing. Each evaluation sample is read once over all
    ranks. What transforms draw follows from `seed`, epoch, rank and worker alone. A checkpoint remembers epoch,
    batch and all random states: training continues as if it had not stopped.

    Args:
        prefix, name, train_transforms, eval_transforms: those of `ShardDataModule`.
        batch_size, eval_batch_size, num_workers, use_autopadding: the same; `batch_size` is that of a rank.
        shuffle_train: permute training samples.
        seed: of everything random; 0 where None.
        worker_timeout: seconds that a worker may take for a batch before the run ends with an error; 0 for no limit.

    Raises:
        ValueError: `prefix` is not set, or the data are missing, unfinished or cut off.
    """

    def __init__(
        self,
        prefix: Optional[str],
        name: str,
        train_transforms: Optional[Dict[str, Any]] = None,
        eval_transforms: Optional[Dict[str, Any]] = None,
        batch_size: int = 32,
        eval_batch_size: Optional[int] = None,
        num_workers: int = 2,
        shuffle_train: bool = True,
        use_autopadding: bool = False,
        seed: Optional[int] = 0,
        worker_timeout: float = WORKER_TIMEOUT,
    ) -> None:
        super().__init__()
        self.splits = find_files(prefix, name, ".lmdb")
        self.train_transforms = dict(train_transforms or {})
        self.eval_transforms = dict(eval_transforms or {})
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        self.shuffle_train = shuffle_train
        self.use_autopadding = use_autopadding
        self.seed = seed or 0
        self.worker_timeout = worker_timeout
        self._epoch = -1  # number of the current pass over the training data
        self._resumed: Optional[Dict[str, Any]] = None  # where the next pass begins after an interruption
        for split in SPLITS:
            setattr(self, f"{split}_size", self.splits[split]["samples"] if split in self.splits else None)

    def train_dataloader(self) -> DataLoader:
        """Batches of the training split, in another order each time."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation split."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        """Batches of the test split."""
        return self._loader("test")

    def _loader(self, split: str) -> DataLoader:
        if split not in self.splits:
            raise ValueError(f"This data set has no {split} split, only {', '.join(self.splits)}.")
        if self.splits[split]["empty"]:
            raise ValueError(self.splits[split]["empty"])
        is_train = split == "train"
        transforms = self.train_transforms if is_train else self.eval_transforms
        batches = _Batches(
            LMDBFile(Path(self.splits[split]["paths"][0])),
            self.splits[split]["samples"],
            [transforms[name] for name in sorted(transforms)],
            self.batch_size if is_train else self.eval_batch_size,
            collate_with_autopadding if self.use_autopadding else collate_with_batch_size,
            is_train,
            is_train and self.shuffle_train,
            self.seed,
        )
        if is_train and not batches.unsure:
            check_batch(batches.samples, self.batch_size, _rank()[1])
        loader = _Loader(batches, batch_size=None, num_workers=self.num_workers, worker_init_fn=_seed_worker)
        loader.worker_timeout = self.worker_timeout
        loader.begin_pass = self.begin_pass if is_train else _first_pass
        return loader

    def begin_pass(self) -> Tuple[int, int]:
        """The number of the next pass over the training data, and how many of its batches are done."""
        state = self._resumed
        if state is None or self.trainer.global_step != state["step"]:
            self._epoch, self._resumed = self._epoch + 1, None
            return self._epoch, 0
        # Lightning may begin a pass only to find that its epoch was at its end, and then begin the next.
        set_random_state(state["random"][_rank()[0] % len(state["random"])])
        self._epoch = state["epoch"]
        return self._epoch, state["batches"]

    def state_dict(self) -> Dict[str, Any]:
        """The current epoch, how many of its batches training has seen, and the random states of all ranks."""
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        at_end = progress.is_last_batch
        return {
            "step": self.trainer.global_step,
            "epoch": self._epoch + 1 if at_end else max(self._epoch, 0),
            "batches": 0 if at_end else progress.current.ready,
            "random": _of_all_ranks(random_state()),
        }

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Go on where the state was taken."""
        # Lightning looks for such a state in the loader, and finds none there.
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch")
        self._resumed = state_dict


def _first_pass() -> Tuple[int, int]:
    return 0, 0


def _seed_worker(number: int) -> None:
    """Let NumPy and Python draw differently in each worker and epoch, as torch does."""
    seed_all(torch.initial_seed())


class _Loader(WorkerLoader):
    """Begins passes in the process that knows the rank; what they draw leaves its generators as they are."""

    begin_pass: Callable[[], Tuple[int, int]]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        epoch, done = self.begin_pass()
        seed = self.dataset.begin(epoch)  # type: ignore[attr-defined]
        self.generator = torch.Generator().manual_seed(seed)  # gives the workers their seeds
        batches: Iterator[Any] = super().__iter__()
        if self.num_workers == 0:
            batches = with_own_rng(batches, seed)
        if done:
            log.info("Reading over the %d batches of this epoch that are done", done)
        return itertools.islice(self._some(batches), done, None)

    def _some(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Batches, at least one."""
        batch = None
        for batch in batches:
            yield batch
        if batch is None:
            size, samples = self.dataset.batch_size, len(self.dataset.indices)  # type: ignore[attr-defined]
            raise ValueError(
                f"There is no batch of {size} samples: this process has {samples}, of which the transforms keep too "
                "few. Set a smaller batch size or fewer devices, or convert more data."
            )


class _Batches(SentByValue):
    """Collated batches of one rank; each worker makes every n-th."""

    def __init__(
        self,
        file: LMDBFile,
        samples: int,
        transforms: List[Any],
        batch_size: int,
        collate: Any,
        is_train: bool,
        shuffle: bool,
        seed: int,
    ) -> None:
        self.file, self.samples, self.batch_size = file, samples, batch_size
        self.is_train, self.shuffle, self.seed = is_train, shuffle, seed
        self.fields = tuple(field for transform in transforms for field in transform.fields)
        self.on_samples = [transform for transform in transforms if not transform.is_batch_transform]
        self.on_batches = [transform for transform in transforms if transform.is_batch_transform]
        self.unsure = ", ".join(type(x).__name__ for x in transforms if not isinstance(x, ONE_TO_ONE))
        self.collate = collate
        self.indices = np.arange(0)

    def begin(self, epoch: int) -> int:
        """Choose this rank's samples of a pass; returns the seed of what is random in it.

        Raises:
            ValueError: ranks could get different numbers of training batches, and wait for each other for ever.
        """
        rank, ranks = _rank()
        if self.is_train and ranks > 1 and self.unsure:
            raise ValueError(f"Train on one device: {self.unsure} may change the number of samples, so of batches.")
        order = np.arange(self.samples)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        self.indices = order[rank : self._end(ranks) : ranks]
        return int(np.random.SeedSequence([self.seed, epoch, rank]).generate_state(1)[0])

    def _end(self, ranks: int) -> int:
        """Samples that are read over all ranks: in training, each has as many."""
        return self.samples // ranks * ranks if self.is_train else self.samples

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        pipe = Pipe(self._read())  # not before the first batch is asked for, and the generators are seeded
        for transform in self.on_samples:
            pipe = transform(pipe)
        pipe = pipe.batch(self.batch_size, drop_last=self.is_train).collate(self.collate)
        for transform in self.on_batches:
            pipe = transform(pipe)
        yield from pipe

    def __len__(self) -> int:
        if self.unsure:
            raise TypeError(f"{self.unsure} may change the number of samples, so that of batches is not known.")
        rank, ranks = _rank()
        count = len(range(rank, self._end(ranks), ranks))
        return (count if self.is_train else count + self.batch_size - 1) // self.batch_size

    def _read(self) -> Iterator[Dict[str, Any]]:
        keys, info = self.file.keys(), get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        for start in range(first * self.batch_size, len(self.indices), step * self.batch_size):
            for index in self.indices[start : start + self.batch_size]:
                yield self.file.read(keys[index], self.fields)


def _of_all_ranks(content: Any) -> List[Any]:
    """Collect an object from each rank; all ranks have to call this."""
    _, ranks = _rank()
    contents = [content] * ranks
    if ranks > 1:
        torch.distributed.all_gather_object(contents, content)
    return contents
