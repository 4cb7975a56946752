"""Masks and slots of an evaluation on disk: written while it runs, read one sample at a time.

Layout of a folder, one for each split; every entry has the key of its sample:

    masks-<rank>-<number>.npz           (h, w) uint8, the slot of every pixel; soft: (k, h, w) float16, scores
    slots-<rank>-<number>.safetensors   (k, d) float32
    image-<rank>-<number>.npz           (h, w, 3) uint8, if asked for
    true_masks-<rank>-<number>.npz      (h, w) uint8, the true segment of every pixel, if asked for

Videos have a leading axis t. Files of the same rank and number hold the same samples. The folder appears when the
evaluation of its split has ended, so it is complete or absent.
"""

import shutil
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import safetensors.numpy
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn

from ocl_msf.files import replacing
from ocl_msf.training.callbacks import at_validation_end

Sample = Dict[str, np.ndarray]


class SaveOutputs(nn.Module):
    """Evaluation module that saves masks and slots of all samples below `<folder>/<split>`; layout: see the module.

    It holds at most one shard in memory. Each rank writes its own files into the same folder.

    Args:
        folder: holds a folder for each split; the value of rank 0 is used.
        splits: whether each split is evaluated, in the order of the evaluation.
        num_samples: how many samples each rank saves; by default all.
        soft: save mask scores instead of the slot with the highest score.
        shard_size: samples in a file.

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(
        self,
        folder: str,
        splits: Mapping[str, bool],
        num_samples: Optional[int] = None,
        soft: bool = False,
        shard_size: int = 256,
    ):
        super().__init__()
        if shard_size < 1 or (num_samples is not None and num_samples < 1):
            raise ValueError(f"shard_size and num_samples must be positive, got {shard_size} and {num_samples}.")
        self.folder = Path(folder)
        self.splits = [name for name, wanted in splits.items() if wanted]
        self.num_samples = num_samples
        self.soft = soft
        self.shard_size = shard_size
        self.samples: Dict[str, Sample] = {}  # of the next shard
        self.seen: set = set()
        self.shards = 0

    def forward(
        self,
        keys: Sequence[str],
        masks: torch.Tensor,
        slots: torch.Tensor,
        model: LightningModule,
        image: Optional[torch.Tensor] = None,
        true_masks: Optional[torch.Tensor] = None,
    ) -> int:
        """Save the samples of a batch.

        Args:
            keys: b different names.
            masks: scores (b, k, h, w) or (b, t, k, h, w).
            slots: (b, k, d) or (b, t, k, d), or (b*t, k, d).
            model: its trainer signals the end of the evaluation.
            image: (b, 3, h, w) or (b, t, 3, h, w) in [-1, 1].
            true_masks: (b, n, h, w) or (b, t, n, h, w), one-hot.

        Returns:
            How many samples of this split this rank has saved.

        Raises:
            ValueError: two samples have the same key.
        """
        if not self.seen:
            self._begin(model.trainer)
        batch = {"masks": masks.half() if self.soft else _segments(masks)}
        batch["slots"] = slots.float().reshape(len(keys), *masks.shape[1:-3], *slots.shape[-2:])
        if image is not None:
            batch["image"] = ((image.float() + 1) * 127.5).round().clamp(0, 255).byte().movedim(-3, -1)
        if true_masks is not None:
            batch["true_masks"] = _segments(true_masks)
        arrays = {name: values.detach().cpu().numpy() for name, values in batch.items()}
        for index, key in enumerate(keys):
            if self.num_samples is not None and len(self.seen) >= self.num_samples:
                break
            if key in self.seen:
                raise ValueError(f"Two samples have the key {key!r}: outputs cannot be saved by key.")
            self.seen.add(key)
            self.samples[key] = {name: values[index] for name, values in arrays.items()}
            if len(self.samples) == self.shard_size:
                self._write()
        return len(self.seen)

    @property
    def _partial(self) -> Path:
        return self.folder / f"{self.splits[0]}.partial"

    def _begin(self, trainer: Trainer) -> None:
        at_validation_end(trainer, self._finish)
        self.rank = trainer.global_rank
        self.folder = trainer.strategy.broadcast(self.folder)
        if trainer.is_global_zero:
            shutil.rmtree(self._partial, ignore_errors=True)  # of an evaluation that was interrupted
            self._partial.mkdir(parents=True)
        trainer.strategy.barrier()

    def _write(self) -> None:
        for name in next(iter(self.samples.values())):
            arrays = {key: sample[name] for key, sample in self.samples.items()}
            kind = "safetensors" if name == "slots" else "npz"
            with replacing(self._partial / f"{name}-{self.rank}-{self.shards:05d}.{kind}") as file:
                if kind == "npz":
                    np.savez_compressed(file, **arrays)
                else:
                    file.write(safetensors.numpy.save({key: np.ascontiguousarray(x) for key, x in arrays.items()}))
        self.samples = {}
        self.shards += 1

    def _finish(self, trainer: Trainer) -> None:
        """Give the folder of the split its final name, and prepare for the next split."""
        if self.samples:
            self._write()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            done = self.folder / self.splits[0]
            shutil.rmtree(done, ignore_errors=True)
            self._partial.replace(done)
        trainer.strategy.barrier()
        self.splits = self.splits[1:]
        self.seen, self.shards = set(), 0


def _segments(masks: torch.Tensor) -> torch.Tensor:
    """Scores (..., k, h, w) -> the number of the highest, (..., h, w), uint8."""
    return masks.argmax(-3).byte()


def read_outputs(folder: Path) -> Iterator[Tuple[str, Sample]]:
    """Read the files of `SaveOutputs`, shard by shard.

    Args:
        folder: of a split.

    Yields:
        The key of a sample, and its arrays by name: masks, slots, and image and true_masks if they were saved.

    Raises:
        FileNotFoundError: there are no outputs; the message says how to make some.
    """
    shards: List[str] = sorted(path.name[len("masks-") : -len(".npz")] for path in folder.glob("masks-*.npz"))
    if not shards:
        raise FileNotFoundError(f"There are no outputs in {folder}. Make some: ocl_eval ... +msf/save=outputs")
    for shard in shards:
        arrays: Dict[str, Mapping[str, np.ndarray]] = {}
        for path in sorted(folder.glob(f"*-{shard}.*")):
            name = path.name[: -len(f"-{shard}{path.suffix}")]
            if path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as file:
                    arrays[name] = {key: file[key] for key in file.files}
            else:
                arrays[name] = safetensors.numpy.load_file(path)
        for key in arrays["masks"]:
            yield key, {name: values[key] for name, values in arrays.items()}
