"""What the scores of slots are worth: measured beside them in every evaluation of stage 2.

Two traps give scores without objects: colours and places. So each score is also computed for two segmentations of the
same samples that know nothing of objects (`ocl_msf.results.trivial`), and with the masks of another sample, which a
model that had learnt places alone would not notice.
"""

import dataclasses
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from hydra.utils import to_absolute_path
from pytorch_lightning import Trainer
from torch import nn

from ocl_msf.experiments.honest_rows import INSTRUMENTS, SCORES, text_table, verdict
from ocl_msf.experiments.runs import Scores, defined
from ocl_msf.results.trivial import ColourClusters, blind_grid
from ocl_msf.training.callbacks import at_validation_end, gather

Order = Tuple[int, str]  # as if by chance, but the same in every evaluation


class Batch(NamedTuple):
    """Samples of a batch; maps of segments are packed, which takes a fiftieth of the memory.

    Attributes:
        orders: where each sample stands among all of the split.
        shape: of the maps, (b, h, w) or (b, t, h, w).
        sizes: k and n, the numbers of slots and of true masks.
        segments: the slot of every pixel, by sample.
        colours: likewise the cluster of colours.
        true: the number of the true mask of every pixel, from 1, 0 for none, of the whole batch.
        ignored: where pixels do not count, or None.
        area: (b, n), of true masks, where a metric scores by size, or None.
    """

    orders: List[Order]
    shape: Tuple[int, ...]
    sizes: Tuple[int, int]
    segments: List[bytes]
    colours: List[bytes]
    true: bytes
    ignored: Optional[bytes]
    area: Optional[torch.Tensor]

    @property
    def grid(self) -> List[bytes]:
        """The blind grid for every sample."""
        grid = np.broadcast_to(blind_grid(*self.shape[-2:], self.sizes[0]), self.shape[1:])
        return [_pack(torch.from_numpy(grid.copy()))] * self.shape[0]

    def one_hot(self, segments: Sequence[bytes]) -> torch.Tensor:
        """Packed segments of b samples as masks (b, k, h, w) or (b, t, k, h, w), bool."""
        numbers = torch.stack([_unpack(one, self.shape[1:]) for one in segments])
        return numbers.unsqueeze(-3) == torch.arange(self.sizes[0]).view(-1, 1, 1)

    def tree(self, segments: Sequence[bytes], device: torch.device) -> Dict[str, Any]:
        """What metrics read, with these segments as the model's."""
        true = _unpack(self.true, self.shape).unsqueeze(-3) == torch.arange(1, self.sizes[1] + 1).view(-1, 1, 1)
        data = {"mask": true.float().to(device)}
        if self.ignored is not None:
            data["void"] = _unpack(self.ignored, self.shape).unsqueeze(-3).to(device)
        if self.area is not None:
            data["area"] = self.area.to(device)
        return {"masks": self.one_hot(segments).float().to(device), "input": data}


class SlotInstruments(nn.Module):
    """Evaluation module that measures what a run of stage 2 owes to the image, and logs it beside its scores.

    For each score of the run that is named, such as `ari`, it logs

    * `image_gain_ari`: the score minus the same score with another sample's masks. The other sample is the next one in
      an order of all keys that looks random; it depends neither on batches nor on the number of ranks;
    * `grid_ari` and `colour_ari`: the score of `blind_grid` and of `ColourClusters`, with as many segments as slots.

    And, as far as the model has what they need,

    * `slot_overlap`: the mean IoU of a slot's mask with its mask in that other sample, over slots that have a pixel in
      one of them, 0 to 1. Near 1, slots are places;
    * `slot_gain`: by how much the loss of the decoders grows with the slots of another sample, the one before; the
      first one of each rank has none and is left out. At 0 the decoder does not ask the slots;
    * `attention_entropy`: of the attention over slots at a position, divided by its maximum, the mean over positions,
      0 to 1. At 1, all slots look everywhere.

    When the split has been evaluated, it prints the rows as a table. It does nothing where there are no masks.

    Args:
        folder: keeps colour clusters where the folder of the data cannot.
        prefix: folder of all data sets, relative to the launch directory.
        name: folder of the data below it; colour clusters of the split are kept there, if it exists.
        scores: names of metrics of the run that compare `masks` with `input.mask`; those that it lacks are left out.
    """

    def __init__(
        self,
        folder: str,
        prefix: Optional[str] = None,
        name: Optional[str] = None,
        scores: Sequence[str] = tuple(SCORES),
    ):
        super().__init__()
        data = [Path(to_absolute_path(prefix), name)] if prefix and name else []
        self.clusters = ColourClusters([*filter(Path.is_dir, data), Path(folder)])
        self.names = list(scores)
        self._begin()

    def _begin(self) -> None:
        self.batches: List[Batch] = []
        self.last: Dict[str, torch.Tensor] = {}  # slots of the sample before
        self.sums: Dict[str, np.ndarray] = {}  # by instrument: total and count

    @torch.no_grad()
    def forward(self, inputs: Dict[str, Any]) -> int:
        """Take what the model has made of a batch.

        Args:
            inputs: all outputs of the model, by name: `masks` (b, k, h, w) or (b, t, k, h, w), `input` with `mask`
                (b, n, h, w) or (b, t, n, h, w), `image`, `__key__` and perhaps `void` and `area`;
                `perceptual_grouping`, `model`.

        Returns:
            How many batches of the split this rank has taken.
        """
        if "masks" not in inputs or "mask" not in inputs["input"]:
            return 0
        model, grouping = inputs["model"], inputs.get("perceptual_grouping")
        at_validation_end(model.trainer, self._finish, may_log=True)
        self.batches.append(self._packed(inputs["masks"], inputs["input"]))
        if getattr(grouping, "feature_attributions", None) is not None:
            self._add("attention_entropy", *attention_entropy(grouping.feature_attributions))
        if getattr(grouping, "objects", None) is not None and len(model.losses):
            self._add_slot_gain(inputs, len(inputs["masks"]))
        return len(self.batches)

    def _packed(self, masks: torch.Tensor, data: Mapping[str, Any]) -> Batch:
        true, void, count = data["mask"] > 0, data.get("void"), masks.shape[-3]
        numbers = true * torch.arange(1, true.shape[-3] + 1, device=true.device).view(-1, 1, 1)  # b (t) n h w
        segments = masks.argmax(-3)  # b (t) h w
        pictures = data["image"].movedim(-3, -1).float().cpu().numpy()  # b (t) h w 3
        return Batch(
            [(zlib.crc32(name.encode()), name) for name in data["__key__"]],
            tuple(segments.shape),
            (count, true.shape[-3]),
            [_pack(one) for one in segments],
            [_pack(torch.from_numpy(self.clusters.segment(picture, count))) for picture in pictures],
            _pack(numbers.amax(-3)),
            None if void is None else _pack(void.squeeze(-3) > 0),
            data["area"].cpu() if "area" in data else None,
        )

    def _add(self, name: str, total: float, count: float) -> None:
        self.sums[name] = self.sums.get(name, np.zeros(2)) + (total, count)

    def _add_slot_gain(self, inputs: Dict[str, Any], samples: int) -> None:
        """Run the decoders again, each sample with the slots of the one before, or of its same frame."""
        grouping, model, counted = inputs["perceptual_grouping"], inputs["model"], samples - (not self.last)
        fields = {name: getattr(grouping, name, None) for name in ("objects", "is_empty")}
        others = {name: self._before(name, x, samples) for name, x in fields.items() if x is not None}
        tree = {**inputs, "perceptual_grouping": dataclasses.replace(grouping, **others)}
        for name, module in model.models.items():
            if name.startswith("decoder"):
                tree[name] = module(inputs=tree)
        own, other = (sum(_value(loss(inputs=its)) for loss in model.losses.values()) for its in (inputs, tree))
        self._add("slot_gain", samples * (other - own), counted)

    def _before(self, name: str, values: torch.Tensor, samples: int) -> torch.Tensor:
        """Values of the sample before, (b, ...) or (b*t, ...); the first one of all keeps its own."""
        each = len(values) // samples
        first = self.last.get(name, values[:each])
        self.last[name] = values[-each:]
        return torch.cat([first, values[:-each]])

    def _finish(self, trainer: Trainer) -> None:
        """Compute, log and print when the samples of all ranks are there."""
        if not self.batches:
            return
        model = trainer.lightning_module
        metrics = {name: model.evaluation_metrics[name] for name in self.names if name in model.evaluation_metrics}
        scores = {name: float(metric.compute()) for name, metric in metrics.items()}
        maps = {order: one for its in gather(self._maps()) for order, one in its.items()}
        values = {**self._rows(scores, metrics, maps), **self._instruments()}
        for name, value in values.items():
            model.log(f"val/{name}", value, batch_size=1, sync_dist=True)
        new = gather(self.clusters.new)
        if trainer.is_global_zero:
            self.clusters.save(new)
            print("\n".join(["", *_table({**scores, **values}, self.batches[0].sizes[0]), ""]), flush=True)
        self._begin()

    def _maps(self) -> Dict[Order, bytes]:
        return {order: one for batch in self.batches for order, one in zip(batch.orders, batch.segments)}

    def _rows(self, scores: Scores, metrics: Mapping[str, Any], maps: Mapping[Order, bytes]) -> Scores:
        """The rows beside scores, by <row>_<score>; `maps` has the segments of all samples of all ranks."""
        ring = sorted(maps)
        following = {order: maps[other] for order, other in zip(ring, ring[1:] + ring[:1])}
        values = {f"grid_{name}": x for name, x in self._score(metrics, lambda batch: batch.grid).items()}
        values.update({f"colour_{name}": x for name, x in self._score(metrics, lambda batch: batch.colours).items()})
        if len(ring) > 1:
            for batch in self.batches:
                others = [following[order] for order in batch.orders]
                self._add("slot_overlap", *_overlap(batch.one_hot(batch.segments), batch.one_hot(others)))
            others_scores = self._score(metrics, lambda batch: [following[order] for order in batch.orders])
            values.update({f"image_gain_{name}": scores[name] - x for name, x in others_scores.items()})
        return values

    def _score(self, metrics: Mapping[str, Any], predict: Callable[[Batch], Any]) -> Scores:
        """The scores of other segments: packed ones of each sample of a batch."""
        copies = {name: metric.clone() for name, metric in metrics.items()}
        for copy in copies.values():
            copy.reset()
        for batch in self.batches:
            for copy in copies.values():
                copy.update(**batch.tree(predict(batch), copy.device))
        return {name: float(copy.compute()) for name, copy in copies.items()}

    def _instruments(self) -> Scores:
        """The means over all ranks."""
        sums = gather(self.sums)
        names = [name for name in INSTRUMENTS if any(name in its for its in sums)]
        totals = {name: sum(its.get(name, np.zeros(2)) for its in sums) for name in names}
        return {name: float(total / count) if count else float("nan") for name, (total, count) in totals.items()}


def attention_entropy(attention: torch.Tensor) -> Tuple[float, float]:
    """The entropy of the attention over slots at each position, divided by its maximum.

    Args:
        attention: (b, k, n), not negative; it is normalised over slots. Slots that get nothing at any position are off.

    Returns:
        The sum over samples of their mean, each 0 to 1, and the number of samples; those with one slot have none.
    """
    attention = attention.double()
    active = (attention.amax(-1) > 1e-6).sum(-1)  # b
    shares = attention / attention.sum(1, keepdim=True).clamp(min=1e-12)  # b k n
    entropy = torch.special.entr(shares).sum(1).mean(-1)  # b
    counted = active > 1
    return float((entropy[counted] / active[counted].double().log()).sum()), int(counted.sum())


def _overlap(own: torch.Tensor, other: torch.Tensor) -> Tuple[float, int]:
    """IoU of slots in two samples, bool (b, k, h, w) or (b, t, k, h, w): the sum, and how many slots have a pixel."""
    first, second = (masks.movedim(-3, 1).flatten(2) for masks in (own, other))  # b k p
    common, union = (first & second).sum(-1), (first | second).sum(-1)  # b k
    return float((common.double() / union.clamp(min=1)).sum()), int((union > 0).sum())


def _value(loss: Any) -> float:
    return float(loss[0] if isinstance(loss, tuple) else loss)


def _pack(segments: torch.Tensor) -> bytes:
    return zlib.compress(segments.byte().cpu().numpy().tobytes(), 1)


def _unpack(packed: bytes, shape: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape).copy())


def _table(scores: Scores, segments: int) -> List[str]:
    """What is printed: rows, instruments, and where the model stands."""
    known = defined(scores)
    instruments = [f"{label} {known[name]:.3g}" for name, label in INSTRUMENTS.items() if name in known]
    lines = text_table(f"percent, {segments} segments", {"model": known})
    return [*lines, *filter(None, [", ".join(instruments), verdict(known)])]
