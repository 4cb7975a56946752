"""Data modules."""

import functools
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from ocl._loader.collate import collate_with_autopadding, collate_with_batch_size
from ocl._loader.loaders import Batches, EvaluationLoader, PlainLoader, TrainingLoader, too_few_samples
from ocl._loader.pipe import Pipe
from ocl._loader.random_samples import RandomSamples
from ocl._loader.random_state import draw_seed, get_random_state, set_random_state
from ocl._loader.ranks import gather, share_of_rank
from ocl._loader.shards import Damage, ShardReader, Shards, expand_shards, explain_missing_fields
from ocl._loader.workers import WORKER_TIMEOUT
from ocl.data_decoding import decode_samples
from ocl.errors import ShardError
from ocl.transforms import Transform

__all__ = [
    "DummyDataModule",
    "ShardError",
    "WebdatasetDataModule",
    "collate_with_autopadding",
    "collate_with_batch_size",
]

Transforms = Optional[Mapping[str, Transform]]

log = logging.getLogger(__name__)


class _SplitDataModule(pl.LightningDataModule, ABC):
    """Data module whose splits are handled alike by `_samples(split)` and `_loader(split)`.

    Checkpoints hold the position in the training data and the random states of all ranks: a resumed training continues
    with the next batch, and with the same random numbers as without the interruption.
    """

    def __init__(
        self,
        batch_size: int,
        eval_batch_size: Optional[int],
        train_transforms: Transforms,
        eval_transforms: Transforms,
        sizes: Sequence[Optional[int]],
    ):
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.train_transforms = dict(train_transforms or {})
        self.eval_transforms = dict(eval_transforms or {})
        self.train_size, self.val_size, self.test_size = sizes
        self._seed: Optional[int] = None  # of the current pass over the training data
        self._n_batches_before = 0
        self._resumed: Optional[dict[str, Any]] = None

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training data, and the random states."""
        trainer: Any = self.trainer
        is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        return {
            "step": trainer.global_step,
            "seed": self._seed,
            "n_batches": 0 if is_last else self._count_batches() - self._n_batches_before,
            "random_states": gather(get_random_state()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        # Lightning looks for this in the state of the loader.
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch")
        self._resumed = state_dict

    def _begin_pass(self) -> tuple[int, int]:
        """Return the seed of the next pass over the training data, and how many of its batches are done."""
        trainer, resumed, n_batches = self.trainer, self._resumed, 0
        if trainer is not None and resumed is not None and trainer.global_step == resumed["step"]:  # no step since
            states = resumed["random_states"]
            set_random_state(states[trainer.global_rank % len(states)])
            n_batches = resumed["n_batches"]
        self._seed = seed = resumed["seed"] if resumed and n_batches else draw_seed()
        self._n_batches_before = self._count_batches() - n_batches
        return seed, n_batches

    def _count_batches(self) -> int:
        """Return the number of batches since training began, over all passes."""
        return 0 if self.trainer is None else self.trainer.fit_loop.epoch_loop.batch_progress.total.ready

    def train_data_iterator(self) -> Pipe:
        """Return the transformed training samples, re-iterable."""
        return self._samples("train")

    def val_data_iterator(self) -> Pipe:
        """Return the transformed validation samples, re-iterable."""
        return self._samples("val")

    def test_data_iterator(self) -> Pipe:
        """Return the transformed test samples, re-iterable."""
        return self._samples("test")

    def train_dataloader(self) -> DataLoader:
        """Return the loader of training batches."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        """Return the loader of validation batches."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        """Return the loader of test batches."""
        return self._loader("test")

    @abstractmethod
    def _samples(self, split: str) -> Pipe:
        """The transformed samples of a split, re-iterable."""

    @abstractmethod
    def _loader(self, split: str) -> DataLoader:
        """The loader of the batches of a split."""

    def _size(self, split: str) -> Any:  # int, or None if it is not declared
        return getattr(self, f"{split}_size")

    def _batch_size(self, split: str) -> int:
        return self.batch_size if split == "train" else self.eval_batch_size

    def _transforms(self, split: str) -> list[Transform]:
        transforms = self.train_transforms if split == "train" else self.eval_transforms
        return [transforms[name] for name in sorted(transforms)]

    def _transformed(self, pipe: Pipe, split: str, batch: bool = False) -> Pipe:
        for transform in self._transforms(split):
            if bool(transform.is_batch_transform) == batch:
                pipe = transform(pipe)
        return pipe


class WebdatasetDataModule(_SplitDataModule):
    """Samples from tar files in the webdataset format.

    Consecutive files `<key>.<field>.<extension>` form a sample. A sample has the fields whose stored names
    start with a field of any transform, decoded by extension (see `ocl.data_decoding`), and its `__key__`. A
    batch has the fields stacked, the keys as a list and its `batch_size`.

    Args:
        train_shards: local paths or URLs, with braces: `"train-{000000..000009}.tar"`.
        val_shards: likewise.
        test_shards: likewise.
        batch_size: samples in a training batch, per rank.
        eval_batch_size: samples in a validation or test batch; `batch_size` by default.
        train_transforms: transforms by name for training, applied in the order of their names.
        eval_transforms: the same for validation and test.
        num_workers: number of worker processes per rank.
        train_size: number of samples after the transforms; without it the loader has no length.
        val_size: likewise.
        test_size: likewise.
        shuffle_train: shuffle training samples, not only shards.
        shuffle_buffer_size: number of samples to shuffle among; `4 * batch_size` by default.
        use_autopadding: pad fields of different shape with zeros.
        on_error: what to do about a damaged shard or sample: `raise` an error that names it, or `skip` it
            and the rest of the shard, with a warning that counts and a last one in the end.
        worker_timeout: Seconds that a worker may take for a batch before training ends with an error; 0 for no limit.

    Raises:
        ValueError: if there are no shards at all, or `on_error` is unknown.
    """

    def __init__(
        self,
        train_shards: Optional[Shards] = None,
        val_shards: Optional[Shards] = None,
        test_shards: Optional[Shards] = None,
        batch_size: int = 32,
        eval_batch_size: Optional[int] = None,
        train_transforms: Transforms = None,
        eval_transforms: Transforms = None,
        num_workers: int = 2,
        train_size: Optional[int] = None,
        val_size: Optional[int] = None,
        test_size: Optional[int] = None,
        shuffle_train: bool = True,
        shuffle_buffer_size: Optional[int] = None,
        use_autopadding: bool = False,
        on_error: str = "raise",
        worker_timeout: float = WORKER_TIMEOUT,
    ):
        sizes = (train_size, val_size, test_size)
        super().__init__(batch_size, eval_batch_size, train_transforms, eval_transforms, sizes)
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is either raise or skip, not {on_error!r}.")
        if train_shards is None and val_shards is None and test_shards is None:
            raise ValueError("Set at least one of train_shards, val_shards and test_shards.")
        self.train_shards, self.val_shards, self.test_shards = train_shards, val_shards, test_shards
        self.num_workers, self.use_autopadding = num_workers, use_autopadding
        self.shuffle_train = shuffle_train
        self.shuffle_buffer_size = 4 * batch_size if shuffle_buffer_size is None else shuffle_buffer_size
        self.on_error, self.n_damaged, self.worker_timeout = on_error, 0, worker_timeout

    def teardown(self, stage: Optional[str] = None) -> None:
        """Report how many damaged shards and samples were skipped."""
        if self.n_damaged:
            log.warning("%d damaged shards or samples were skipped in total.", self.n_damaged)

    def on_exception(self, exception: BaseException) -> None:
        """Report, because Lightning does not call `teardown` after an error or a signal."""
        self.teardown("fit")

    def _report(self, damage: Damage) -> None:
        self.n_damaged += 1
        log.warning("Skipped, number %d: %s", self.n_damaged, damage)

    def _samples(self, split: str) -> Pipe:
        shards = getattr(self, f"{split}_shards")
        if shards is None:
            raise ValueError(f"This dataset has no {split} split: {split}_shards is not set.")
        fields = [field for transform in self._transforms(split) for field in transform.fields]
        reader = ShardReader(expand_shards(shards), fields, self.on_error == "skip")
        pipe = Pipe(reader)
        if split == "train" and self.shuffle_train:
            pipe = pipe.shuffle(self.shuffle_buffer_size)
        pipe = pipe.then(functools.partial(decode_samples, reader=reader))
        pipe = self._transformed(pipe, split).then(functools.partial(explain_missing_fields, reader=reader))
        return pipe.with_size(self._size(split))

    def _loader(self, split: str) -> DataLoader:
        finish = Pipe().collate(collate_with_autopadding if self.use_autopadding else collate_with_batch_size)
        finish = self._transformed(finish, split, batch=True)
        batches = Batches(self._samples(split), finish, self._batch_size(split), keep_partial=split != "train")
        size = self._size(split)
        options: dict[str, Any] = dict(size=size, num_workers=self.num_workers, on_damage=self._report)
        options["worker_timeout"] = self.worker_timeout
        # Lightning would take a loader of length 0 for nothing to do.
        if split != "train":
            if size == 0:
                raise ShardError(f"There is no sample to evaluate: {split}_size is 0.")
            return EvaluationLoader(batches, **options)
        loader = TrainingLoader(batches, begin_pass=self._begin_pass, **options)
        if size is not None and not len(loader):
            raise too_few_samples(size, self.batch_size)
        return loader


class DummyDataModule(_SplitDataModule):
    """Random samples, to try out a model without data.

    Element transforms are applied; batch transforms, shards and `num_workers` are accepted and ignored.

    Args:
        data_shapes: shape by field.
        data_types: type by field: `image` (uint8), `binary` (bool), `uniform` (float32 in [0, 1)),
            `categorical_{n}` or `categorical_{low}_{high}` (integers below n or high), `mask` (uint8 one-hot
            over the first of the axes k, h, w, 1).
        batch_size: samples in a training batch.
        eval_batch_size: samples in a validation or test batch; `batch_size` by default.
        train_transforms: transforms by name for training, applied in the order of their names.
        eval_transforms: the same for validation and test.
        train_size: number of training samples; three batches and one sample by default.
        val_size: number of validation samples; two batches by default.
        test_size: likewise.
        train_shards: ignored.
        val_shards: ignored.
        test_shards: ignored.
        num_workers: ignored.
    """

    def __init__(
        self,
        data_shapes: Mapping[str, Sequence[int]],
        data_types: Mapping[str, str],
        batch_size: int = 4,
        eval_batch_size: Optional[int] = None,
        train_transforms: Transforms = None,
        eval_transforms: Transforms = None,
        train_size: Optional[int] = None,
        val_size: Optional[int] = None,
        test_size: Optional[int] = None,
        train_shards: Any = None,
        val_shards: Any = None,
        test_shards: Any = None,
        num_workers: Any = None,
    ):
        defaults = (3 * batch_size + 1, 2 * batch_size, 2 * batch_size)
        sizes = [d if size is None else size for d, size in zip(defaults, (train_size, val_size, test_size))]
        super().__init__(batch_size, eval_batch_size, train_transforms, eval_transforms, sizes)
        self.data_shapes = {field: tuple(shape) for field, shape in data_shapes.items()}
        self.data_types = dict(data_types)

    def _samples(self, split: str) -> Pipe:
        size = self._size(split)
        samples = RandomSamples(self.data_shapes, self.data_types, size)
        return self._transformed(Pipe(samples), split).with_size(size)

    def _loader(self, split: str) -> DataLoader:
        samples = self._samples(split) if split == "train" else self._samples(split).then(share_of_rank)
        batches = samples.batch(self._batch_size(split)).collate(collate_with_autopadding)
        n_batches = -(-self._size(split) // self._batch_size(split))
        return PlainLoader(batches.with_size(n_batches), self._begin_pass if split == "train" else None)
