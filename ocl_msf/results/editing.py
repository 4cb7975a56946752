"""Swap or drop slots of two images, and decode what is left; the command is `ocl-msf edit`."""

from pathlib import Path
from typing import List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from hydra.utils import instantiate
from matplotlib import rc_context
from omegaconf import DictConfig
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn

from ocl_msf._host import require_host
from ocl_msf.data.pictures import to_rgb
from ocl_msf.experiments.checkpoints import read_weights
from ocl_msf.experiments.runs import Run
from ocl_msf.files import DataError
from ocl_msf.results.style import STYLE, enlarge, paint_segments, picture_grid, save, to_pixels
from ocl_msf.results.visualizations import reconstruct

with require_host():
    from ocl.cli.train import build_model_from_config


class Edit(NamedTuple):
    """Two images, decoded before and after an edit.

    Attributes:
        masks: slot numbers of the pixels (2, h, w), int64.
        before: images decoded from the original slots (2, 3, h, w) in [-1, 1].
        after: images decoded from the edited slots, of the same shape.
    """

    masks: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor


def edit_slots(
    slots: torch.Tensor, swaps: Sequence[Tuple[int, int]] = (), drops: Sequence[int] = ()
) -> List[torch.Tensor]:
    """Exchange slots of two images, then drop slots of the first.

    Args:
        slots: (2, k, d).
        swaps: (slot of the first image, slot of the second) each, counted from 0.
        drops: slots of the first image.

    Returns:
        The slots of both images, (k - dropped, d) and (k, d).

    Raises:
        ValueError: there is no such slot, it is swapped twice, or none would be left.
    """
    count = slots.shape[1]
    for slot in [*drops, *(slot for pair in swaps for slot in pair)]:
        if not 0 <= slot < count:
            raise ValueError(f"There is no slot {slot}: this model's slots are 0 to {count - 1}.")
    for side in zip(*swaps):
        if len(set(side)) < len(side):
            raise ValueError("A slot can be swapped only once.")
    kept = [slot for slot in range(count) if slot not in drops]
    if not kept:
        raise ValueError(f"All {count} slots would be dropped: keep one.")
    first, second = slots[0].clone(), slots[1].clone()
    for a, b in swaps:
        first[a], second[b] = slots[1, b], slots[0, a]
    return [first[kept], second]


@torch.no_grad()
def edit(
    model: nn.Module, images: torch.Tensor, swaps: Sequence[Tuple[int, int]] = (), drops: Sequence[int] = ()
) -> Edit:
    """Edit the slots of two images and decode both.

    Args:
        model: of stage 2, with the parts `perceptual_grouping`, `masks`, `decoder` and `guidance`.
        images: (2, 3, h, w) in [-1, 1].
        swaps, drops: see `edit_slots`.

    Raises:
        ValueError: see `edit_slots`.
    """
    model.eval()
    outputs = model({"image": images, "batch_size": len(images)})
    slots, parts = outputs["perceptual_grouping"].objects, model.models
    edited = edit_slots(slots, swaps, drops)
    before = reconstruct(slots, parts["decoder"], parts["guidance"])
    after = torch.cat([reconstruct(one[None], parts["decoder"], parts["guidance"]) for one in edited])
    return Edit(outputs["masks"].argmax(1), before, after)


def load_model(path: Path) -> Tuple[nn.Module, DictConfig]:
    """Build the model of a run folder, or of one of its checkpoints, with its weights: model and training config.

    Raises:
        DataError: there is no run of stage 2, or it has no checkpoint.
        FileNotFoundError, ValueError: the checkpoint cannot be read.
    """
    run = Run.open(path)
    checkpoint = path if path.suffix == ".ckpt" else run.checkpoint
    if checkpoint is None or run.stage != 2:
        raise DataError(
            f"{path} has no checkpoint of stage 2. Give the folder of a finished run, such as "
            "outputs/msf/slate_<data>/<time>, or a checkpoint in it."
        )
    model = build_model_from_config(run.config)
    model.models.load_state_dict(read_weights(checkpoint, "models"))
    return model, run.config


def load_images(paths: Sequence[Path], config: DictConfig) -> torch.Tensor:
    """Read pictures as viewers show them, crop their central squares and prepare them as in training.

    Returns:
        (b, 3, size, size) in [-1, 1].

    Raises:
        DataError: a file does not exist or is no picture.
    """
    prepare = instantiate(config.experiment.image_transform)
    images = []
    for path in paths:
        try:
            image = to_rgb(ImageOps.exif_transpose(Image.open(path)))
        except (OSError, ValueError, UnidentifiedImageError) as error:
            raise DataError(f"{path} cannot be read as a picture: {error}") from error
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        images.append(prepare(image.crop((left, top, left + side, top + side))))
    return torch.stack(images)


@rc_context(STYLE)
def draw(images: torch.Tensor, edited: Edit, path: Path) -> None:
    """Write a picture with a column for each image: input, numbered slots, decoded before and after the edit.

    Raises:
        DataError: the file cannot be written.
    """
    masks = [enlarge(mask, 256) for mask in edited.masks.cpu().numpy()]
    pictures = {
        "input": list(map(to_pixels, images)),
        "slots": list(map(paint_segments, masks)),
        "from slots": list(map(to_pixels, edited.before)),
        "edited": list(map(to_pixels, edited.after)),
    }
    figure, axes = picture_grid(pictures, 2.5, 2.5)
    for axis, mask in zip(axes[1], masks):
        for slot in np.unique(mask):
            pixels = np.argwhere(mask == slot)
            y, x = pixels[np.abs(pixels - pixels.mean(0)).sum(1).argmin()]  # the pixel next to the centre
            axis.text(x, y, str(slot), ha="center", va="center", color="white", bbox={"facecolor": "black"})
    save(figure, path)


def edit_pictures(
    run: Path,
    pictures: Sequence[Path],
    swaps: Sequence[Tuple[int, int]] = (),
    drops: Sequence[int] = (),
    out: Path = Path("edit.png"),
) -> int:
    """Edit the slots of two pictures by the model of a run, and draw what its decoder makes of them.

    Args:
        run: folder of a run of stage 2, or a checkpoint in it.
        pictures: two files.
        swaps, drops: see `edit_slots`.
        out: the PNG.

    Returns:
        The side of the model's images in pixels.

    Raises:
        DataError, ValueError: see `load_model`, `load_images`, `edit_slots` and `draw`.
    """
    model, config = load_model(run)
    images = load_images(pictures, config)
    draw(images, edit(model, images, swaps, drops), out)
    return images.shape[-1]
