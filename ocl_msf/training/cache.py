"""A first pass over training images, after which the frozen parts of stage 2 need not look at them again."""

import copy
import hashlib
import itertools
import json
import logging
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence

import numpy as np
import torch
from hydra.utils import to_absolute_path
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from tqdm import tqdm

from ocl_msf._host import require_host
from ocl_msf.data.cache import AddCached, CacheWriter, bytes_left, digest, finish, is_complete, record_type
from ocl_msf.files import DataError

with require_host():
    from ocl.transforms import Map, SampleConsecutive

log = logging.getLogger(__name__)


class CacheFrozen(Callback):
    """Run frozen parts of the model once for each training image, and give their results to the training.

    Before the first step, a pass over the training data writes what the parts make of every image, and of every frame
    of a video; all ranks take part, and an interrupted pass is continued. The cache lies in a folder of its own for
    the parts' weights, the data and the transforms, so that later trainings with the same ones only read it. Images
    are found by their content. Random flips are cached both ways, other random transforms are refused. Validation runs
    the parts themselves.

    Args:
        parts: by the name of the sample's new field, the dotted path of a `Frozen` among the models, which has its
            weights: this callback stands behind those that load them.
        folder: for all caches, relative to the launch directory; ranks share it.
        settings: what the results depend on beside weights and data, as text: the configs of transforms and parts.
        image: name of the field that the parts look at.
    """

    def __init__(self, parts: Mapping[str, str], folder: str, settings: Sequence[str], image: str = "image"):
        self.parts, self.folder, self.settings, self.image = dict(parts), folder, list(settings), image

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the cache, unless there is one, and let training samples take from it.

        Raises:
            ValueError: images differ from epoch to epoch, the disk is too small, or there is nothing to cache.
        """
        models = pl_module.models
        frozen = {name: _at(models, path) for name, path in self.parts.items()}
        missing = [path for name, path in self.parts.items() if frozen[name] is None]
        if missing:
            raise ValueError(f"This experiment has no {', '.join(missing)} to cache: take +msf/cache=codes.")
        data = trainer.datamodule  # type: ignore[attr-defined]
        folder = self._folder(frozen, data, trainer)
        with isolate_rng(), torch.no_grad():  # training draws what it would without
            if not trainer.strategy.broadcast(is_complete(folder)):  # one rank looks, all agree
                try:
                    self._fill(folder, frozen, data, trainer, pl_module)
                except DataError as error:
                    raise ValueError(str(error)) from error
        _append(data, Map(AddCached(folder, self.image), [self.image], batch_transform=False))

    def _folder(self, frozen: Mapping[str, Any], data: Any, trainer: Trainer) -> Path:
        """The folder for these parts, data and settings, and the precision that the parts are computed in."""
        weights = {name: part.fingerprint() for name, part in frozen.items()}
        state = json.dumps([weights, _files(data), self.settings, str(trainer.precision)], sort_keys=True)
        key = hashlib.sha256(state.encode()).hexdigest()[:16]
        return Path(to_absolute_path(self.folder)) / f"{'-'.join(sorted(frozen))}-{key}"

    def _fill(
        self, folder: Path, frozen: Mapping[str, Any], data: Any, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Write what is missing in a cache; every rank reads its share."""
        passes = _orientations(data.train_transforms)
        writer = None
        for transforms in passes:
            for images in tqdm(self._read(data, transforms), desc="cache", unit="batch", mininterval=10):
                if writer is None:
                    count = len(passes) * (data.train_size or 0) * (len(images[0]) if images.ndim == 5 else 1)
                    writer = self._begin(folder, frozen, images.flatten(0, -4)[:1], count, trainer, pl_module)
                self._add(writer, images.flatten(0, -4), frozen, trainer, pl_module)
        if writer is None:
            raise ValueError("There are no training images to cache.")
        writer.flush()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            finish(folder)
        trainer.strategy.barrier()

    def _begin(
        self,
        folder: Path,
        frozen: Mapping[str, Any],
        image: torch.Tensor,
        count: int,
        trainer: Trainer,
        pl_module: LightningModule,
    ) -> CacheWriter:
        """Say how large the cache will be, and make sure that the disk has room for the rest of it."""
        results = self._compact(image, frozen, trainer, pl_module)
        writer = CacheWriter(folder, record_type({name: (x.dtype.str, x.shape[1:]) for name, x in results.items()}))
        size, free = writer.record.itemsize, bytes_left(folder)
        log.info(
            "The cache %s takes %.1f MiB, %d bytes for each of %s images, of which %d are there; %.1f MiB are free",
            folder, size * count / 2**20, size, count or "an unknown number of", len(writer.known), free / 2**20,
        )  # fmt: skip
        if size * (count - len(writer.known)) > free:
            raise ValueError(
                f"The cache {folder} would take {size * count / 2**20:.1f} MiB, but only {free / 2**20:.1f} MiB are "
                "free there. Set experiment.cache_folder to a larger disk, or leave +msf/cache out."
            )
        return writer

    def _add(
        self,
        writer: CacheWriter,
        images: torch.Tensor,
        frozen: Mapping[str, Any],
        trainer: Trainer,
        pl_module: LightningModule,
    ) -> None:
        """Write what the parts make of those images (b, 3, h, w) that the cache has not."""
        new = {name: row for row, name in enumerate(map(digest, images)) if name not in writer.known}
        if new:
            writer.add([*new], self._compact(images[[*new.values()]], frozen, trainer, pl_module))

    def _compact(
        self, images: torch.Tensor, frozen: Mapping[str, Any], trainer: Trainer, pl_module: LightningModule
    ) -> Dict[str, np.ndarray]:
        images = images.to(pl_module.device)
        with trainer.precision_plugin.forward_context():
            results = {name: part.compact(images) for name, part in frozen.items()}
        return {name: x.cpu().numpy().astype(kind) for name, (x, kind) in results.items()}

    def _read(self, data: Any, transforms: Any) -> Iterator[torch.Tensor]:
        """This rank's share of the training images, in batches, each once: read like those of a validation."""
        once = copy.copy(data)
        if hasattr(data, "splits"):  # LMDB
            once.splits = {"val": data.splits["train"]}
        else:
            once.val_shards, once.val_size = data.train_shards, data.train_size
        once.eval_transforms, once.eval_batch_size = transforms, data.batch_size
        return (batch[self.image] for batch in once.val_dataloader())


def _at(models: Any, path: str) -> Any:
    for name in path.split("."):
        models = getattr(models, name, None)
    return models


def _files(data: Any) -> List[Any]:
    """Names and sizes of the files with training data, the latter where they are on this machine."""
    if not hasattr(data, "splits") and getattr(data, "train_shards", None) is None:
        raise ValueError(f"+msf/cache needs a data set of shards or LMDB: that of {type(data).__name__} is none.")
    names = data.splits["train"]["paths"] if hasattr(data, "splits") else data.train_shards
    paths = [Path(name) for name in ([names] if isinstance(names, str) else names)]
    return [data.train_size, *((path.name, path.stat().st_size if path.is_file() else str(path)) for path in paths)]


def _append(data: Any, transform: Any) -> None:
    """Add a transform behind those of training samples; OCLF 0.1 has them in order, others by name."""
    before = data.train_transforms
    data.train_transforms = {**before, "zz_cache": transform} if isinstance(before, dict) else [*before, transform]


def _orientations(transforms: Any) -> List[Any]:
    """The transforms that together make all images of the training, without what cuts windows out of videos.

    Raises:
        ValueError: a transform makes other images in each epoch.
    """
    named = transforms if isinstance(transforms, dict) else {str(i): x for i, x in enumerate(transforms)}
    kept = {name: x for name, x in named.items() if not isinstance(x, SampleConsecutive)}
    names = [type(x).__name__ for x in _parts_of(kept) if getattr(x, "per_epoch", False)]
    names += [type(x).__name__ for x in _random(kept) if not re.fullmatch(r"Random\w+Flip", type(x).__name__)]
    if names:
        raise ValueError(
            f"+msf/cache keeps what frozen parts make of each training image, but {', '.join(names)} makes other "
            "images in each epoch. Leave +msf/cache out, or this transform; random flips are cached both ways."
        )
    copies = []
    for chances in itertools.product((0.0, 1.0), repeat=len(_random(kept))):
        fixed = copy.deepcopy(kept)
        for flip, chance in zip(_random(fixed), chances):
            flip.p = chance
        copies.append(fixed if isinstance(transforms, dict) else [*fixed.values()])
    return copies


def _random(transforms: Any) -> List[Any]:
    return [part for part in _parts_of(transforms) if re.match(r"Random\w", type(part).__name__)]


def _parts_of(value: Any, depth: int = 8) -> Iterator[Any]:
    """All objects that a transform is made of, in order."""
    if not depth:
        return
    if isinstance(value, dict):
        inner = list(value.values())
    elif isinstance(value, (list, tuple)):
        inner = list(value)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield value
        inner = list(vars(value).values())
    else:
        return
    for part in inner:
        yield from _parts_of(part, depth - 1)
