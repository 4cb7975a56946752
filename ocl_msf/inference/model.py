"""A trained model as its users see it: pictures or videos in, slots and masks out."""

from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

import numpy as np
import torch
from hydra.utils import instantiate
from torch import nn

from ocl_msf._host import require_host
from ocl_msf.chunks import in_chunks
from ocl_msf.files import DataError
from ocl_msf.inference.description import Description
from ocl_msf.inference.generation import Sampling, reconstruct
from ocl_msf.inference.inputs import Place, as_arrays, box_grid, find_place, in_windows, to_segments, to_square

with require_host():
    from ocl.utils.routing import Combined

GROUP = 32  # pictures at a time, or frames of a stream

Slots = Tuple[int, int]  # number of a picture, and of a slot in it
State = Mapping[str, torch.Tensor]  # of a video: `queries` (1, k, d) of the next frame, and what comes with them


@dataclass(frozen=True)
class Result:
    """Slots of pictures or videos, and where they are.

    Attributes:
        model: it made them, and decodes them.
        parts: all that there is of every slot by its name in the grouping's output, such as `objects` (b, k, d) and
            `is_empty` (b, k), bool, True where a slot is off; (b, t, k, ...) of videos.
        scores: how much of a pixel belongs to each slot, (b, k, s, s) of the square that the model was shown; of
            videos (b, t, k, s, s).
        inputs: that square, (b, 3, s, s) or (b, t, 3, s, s) in [0, 1].
        places: where it is in each picture.
        state: of a model of videos, what it goes on with in the next frames, see `Model.track`.
    """

    model: "Model"
    parts: Mapping[str, torch.Tensor]
    scores: torch.Tensor
    inputs: torch.Tensor
    places: Tuple[Place, ...]
    state: Optional[State] = None

    @property
    def slots(self) -> torch.Tensor:
        """(b, k, d), or of videos (b, t, k, d)."""
        return self.parts["objects"]

    @cached_property
    def masks(self) -> List[torch.Tensor]:
        """The slot of every pixel, for each picture in its own size.

        (h, w) or (t, h, w) each, uint8; 255 where the model has not been shown the picture. In the size of the square
        they are those that an evaluation saves.
        """
        return [to_segments(scores, place) for scores, place in zip(self.scores, self.places)]

    def reconstruct(self, temperature: float = 0.0, top_k: Optional[int] = None, seed: int = 0) -> torch.Tensor:
        """What the decoder makes of the slots alone.

        Args:
            temperature, top_k, seed: see `ocl_msf.inference.generation.Sampling`.

        Returns:
            (b, 3, s, s) or (b, t, 3, s, s) in [0, 1].

        Raises:
            DataError: the model reconstructs features, not images.
            ValueError: a number is out of its range.
        """
        return self.model.decode(self.parts, Sampling(temperature, top_k, seed))

    def swap(self, first: Slots, second: Slots) -> "Result":
        """Exchange two slots with all that belongs to them, `(picture, slot)` each; of videos in all frames.

        Raises:
            ValueError: there is no such picture or slot.
        """
        for picture, slot in (first, second):
            self._check(slot, picture)

        def swapped(x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            a, b = (self._of_slot(x, *which) for which in (first, second))
            kept = a.clone()
            a.copy_(b)
            b.copy_(kept)
            return x

        parts = {name: swapped(x) for name, x in self.parts.items()}
        return replace(self, parts=parts, scores=swapped(self.scores))

    def drop(self, *slots: int, picture: Optional[int] = None) -> "Result":
        """Turn slots off, in all pictures or in one; the others keep their numbers, and masks go to these.

        Raises:
            ValueError: there is no such picture or slot, or no slot would be left.
        """
        off = (
            self.parts["is_empty"].clone() if "is_empty" in self.parts else self.slots.new_zeros(self.slots.shape[:-1])
        )
        off, scores = off.bool(), self.scores.clone()
        for number in range(len(off)) if picture is None else [picture]:
            for slot in slots:
                self._check(slot, number)
                self._of_slot(off, number, slot).fill_(True)
                self._of_slot(scores, number, slot).zero_()
        if off.all(-1).any():
            raise ValueError(f"All {off.shape[-1]} slots of a picture would be dropped: keep one.")
        return replace(self, parts={**self.parts, "is_empty": off}, scores=scores)

    def _of_slot(self, x: torch.Tensor, picture: int, slot: int) -> torch.Tensor:
        """What belongs to a slot in (b, k, ...) or (b, t, k, ...): a view."""
        return x[picture].select(self.slots.ndim - 3, slot)

    def _check(self, slot: int, picture: int) -> None:
        count = self.slots.shape[-2]
        if not 0 <= slot < count:
            raise ValueError(f"There is no slot {slot}: this model's slots are 0 to {count - 1}.")
        if not 0 <= picture < len(self.slots):
            raise ValueError(f"There is no picture {picture}: these are 0 to {len(self.slots) - 1}.")


class Model(nn.Module):
    """A trained model of stage 2. `ocl_msf.load` makes it; it is a module, so that `.to(device)` moves it.

    Example:
        ```python
        model = ocl_msf.load("outputs/msf/slate_clevrtex/TIME")
        result = model(["cat.jpg", "dog.jpg"])
        result.slots  # (2, k, d)
        result.masks[0]  # (h, w), the slot of every pixel of cat.jpg
        result.scores  # (2, k, s, s), soft masks of the square that the model was shown
        result.reconstruct()  # (2, 3, s, s), what the decoder makes of the slots
        result.swap((0, 2), (1, 3)).drop(1, picture=0).reconstruct()
        ```

    Args:
        description: what it is made of.

    Attributes:
        description: the same.
        precision: Lightning's name of that in which it computes: "32-true", "16-mixed" or "bf16-mixed".
        models: its parts by name.
    """

    def __init__(self, description: Description):
        super().__init__()
        self.description = description
        self.precision = description.precision
        built = instantiate(description.models, _convert_="all")
        self.models: Any = built if isinstance(built, nn.Module) else Combined(**built)
        self.prepare = instantiate(description.image_transform, _convert_="all")
        if "masks" not in self.models or "perceptual_grouping" not in self.models:
            raise DataError("This model has no slots with masks (no parts `perceptual_grouping` and `masks`).")
        self.eval()

    def forward(self, images: Any, fit: str = "crop", boxes: Optional[torch.Tensor] = None) -> Result:
        """Find the slots of pictures, or of videos if the model was trained on videos.

        Args:
            images: one or several paths, PIL images, arrays (h, w, 3) or tensors (3, h, w) of any size, uint8 or
                floats in [0, 1]. Videos, all of the same length, have their frames in front; several pictures for a
                model of videos are the frames of one.
            fit: the model is shown a square: "crop", the central one, as in training; or "stretch", all of the picture
                with its longer side shortened, so that every pixel gets a slot.
            boxes: for models of videos whose slots start at boxes, those of the objects in the first frame, (b, n, 4):
                corners x, y, x, y as shares of the square; all zero where there is none. By default a regular grid,
                which the model was not trained with.

        Raises:
            DataError: a file cannot be read.
            ValueError: these are no pictures, or of the wrong kind for this model.
        """
        if boxes is not None and self.description.number_of_boxes is None:
            raise ValueError("The slots of this model start without boxes.")
        arrays = as_arrays(images, self.description.video)
        places = tuple(find_place(array, fit) for array in arrays)
        squares = [to_square(array, place, self.prepare) for array, place in zip(arrays, places)]
        if len({square.shape for square in squares}) > 1:
            raise ValueError("Videos of one call must have the same number of frames.")
        if self.description.video:
            groups = [self._find(torch.stack(squares), boxes)[:3]]
        else:
            chunks = [squares[start : start + GROUP] for start in range(0, len(squares), GROUP)]
            groups = [self._find(torch.stack(chunk))[:3] for chunk in chunks]
        parts = {name: torch.cat([group[0][name] for group in groups]) for name in groups[0][0]}
        scores, inputs = (torch.cat([group[i] for group in groups]) for i in (1, 2))  # type: ignore[misc]
        return Result(self, parts, scores, inputs, places)

    def track(
        self,
        frames: Iterable[np.ndarray],
        fit: str = "crop",
        boxes: Optional[torch.Tensor] = None,
        state: Optional[State] = None,
    ) -> Iterator[Result]:
        """Find the slots of a video of any length in bounded memory.

        Slots go on from frame to frame if the model was trained on videos, otherwise each frame is a picture by itself.

        Args:
            frames: (h, w, 3) each, see `forward`.
            fit, boxes: see `forward`; boxes (1, n, 4).
            state: of an earlier result, to go on with the frames after it.

        Yields:
            The result of every `GROUP` frames; of a model of videos, with b = 1.

        Raises:
            ValueError: for a model of videos, frames have different sizes.
        """
        video = self.description.video

        def prepared() -> Iterator[Tuple[torch.Tensor, Place]]:
            for frame in frames:  # one by one: they can be large
                (array,) = as_arrays(frame, video)
                place = find_place(array, fit)
                yield to_square(array, place, self.prepare), place

        for window in in_windows(prepared(), GROUP):
            squares, places = zip(*window)
            if not video:
                parts, scores, inputs, _ = self._find(torch.stack(squares))
                yield Result(self, parts, scores, inputs, places)
                continue
            if len(set(places)) > 1:
                raise ValueError("The frames of a video must all have the same size.")
            parts, scores, inputs, state = self._find(torch.cat(squares)[None], boxes, state)
            yield Result(self, parts, scores, inputs, places[:1], state)

    def decode(self, parts: Mapping[str, torch.Tensor], sampling: Sampling) -> torch.Tensor:
        """Decode slots; arguments and result as of `Result.reconstruct`."""
        if not all(name in self.models for name in ("decoder", "guidance")):
            raise DataError(f"A model of {self.description.model} reconstructs features, not images.")
        decoder, guidance = self.models["decoder"], self.models["guidance"]
        inputs = self.description.decoder_inputs
        given = {argument: parts[name] for argument, name in inputs.items() if name in parts}
        lead = parts["objects"].shape[:-2]
        flat = {argument: x.reshape(-1, *x.shape[len(lead) :]) for argument, x in given.items()}

        def generate(**its: torch.Tensor) -> torch.Tensor:
            return reconstruct(**its, decoder=decoder, guidance=guidance, sampling=sampling)  # type: ignore[arg-type]

        with torch.inference_mode(), self._autocast():
            made = in_chunks(generate, GROUP, **flat)
        return ((made.float() + 1) / 2).reshape(*lead, *made.shape[1:]).clone()

    def _find(
        self, squares: torch.Tensor, boxes: Optional[torch.Tensor] = None, state: Optional[State] = None
    ) -> Tuple[Dict[str, torch.Tensor], torch.Tensor, torch.Tensor, Optional[State]]:
        """Slots of squares (b, 3, s, s) or (b, t, 3, s, s): parts, scores, inputs, and the state for the next frames.

        Only what slots and masks need is run: neither guidance nor, if masks are attention, the decoder.
        """
        device = next(self.models.parameters()).device
        batch: Dict[str, Any] = {
            "image": squares.to(device),
            "batch_size": len(squares),
            "boxes": self._boxes(boxes, squares, device),
        }
        names = list(self.models)
        needed = {name: self.models[name] for name in names[: names.index("masks") + 1]}
        if state is not None:
            needed["conditioning"] = _Given(SimpleNamespace(**{name: x.to(device) for name, x in state.items()}))
        with torch.inference_mode(), self._autocast():
            outputs = Combined(**needed)(inputs={"input": batch, "model": self})
        grouping, scores = outputs["perceptual_grouping"], outputs["masks"]
        lead = scores.shape[:-3]  # b, or b t
        count = scores.shape[-3]
        parts = {
            name: x.reshape(*lead, *x.shape[1:]).clone()  # no longer of inference mode: features to train with
            for name, x in vars(grouping).items()
            if isinstance(x, torch.Tensor) and x.ndim > 1 and x.shape[1] == count and name != "feature_attributions"
        }
        following: Optional[State] = None
        if "recurrence" in outputs:
            its = {**vars(outputs["conditioning"]), "queries": outputs["recurrence"]["predictor"][:, -1]}
            following = {name: x.clone() for name, x in its.items()}
        return parts, scores.float().clone(), (batch["image"] + 1) / 2, following

    def _boxes(self, boxes: Any, squares: torch.Tensor, device: torch.device) -> Optional[torch.Tensor]:
        number = self.description.number_of_boxes
        if number is None:
            return None
        boxes = box_grid(number).expand(len(squares), -1, -1) if boxes is None else torch.as_tensor(boxes).float()
        if boxes.ndim != 3 or boxes.shape[-1] != 4 or len(boxes) != len(squares):
            shape = f"({len(squares)}, n, 4)"
            raise ValueError(f"Boxes must be {shape}, those of the first frame, but they are {tuple(boxes.shape)}.")
        return boxes[:, None].to(device)  # b 1 n 4

    def _autocast(self) -> torch.autocast:
        device = next(self.models.parameters()).device.type
        half = {"16-mixed": torch.bfloat16 if device == "cpu" else torch.float16, "bf16-mixed": torch.bfloat16}
        return torch.autocast(device, half.get(self.precision, torch.bfloat16), enabled=self.precision in half)


class _Given(nn.Module):
    """Stands where a part of the model was, with its output."""

    def __init__(self, output: Any):
        super().__init__()
        self.output = output

    def forward(self, inputs: Any) -> Any:
        return self.output
