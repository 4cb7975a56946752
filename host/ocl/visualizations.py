"""Visualizations of inputs and outputs of models."""

import abc
from typing import Any, Callable, Optional, Union

import torch
from PIL import ImageColor
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, flow_to_image, make_grid

from ocl import visualization_types as types
from ocl.errors import require
from ocl.metrics.utils import masks_to_bboxes

Denormalization = Callable[[Tensor], Tensor]


class VisualizationMethod(abc.ABC):
    """Turns tensors into visualizations."""

    @abc.abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return a visualization, a dict of them, or None if there is nothing to see."""


def _first(tensor: Tensor, n_instances: int, denormalization: Optional[Denormalization] = None) -> Tensor:
    """Bring the first instances to the CPU, in a type that image libraries know."""
    tensor = tensor[:n_instances]
    tensor = (tensor if denormalization is None else denormalization(tensor)).detach().cpu()
    return tensor.float() if tensor.is_floating_point() else tensor


def _grid_of_videos(videos: Tensor, n_row: int, fps: int) -> types.Video:
    """Arrange videos (n, t, c, h, w) as one."""
    frames = [make_grid(frame, n_row) for frame in videos.unbind(1)]
    return types.Video(torch.stack(frames).unsqueeze(0), fps)


def _rows_of_objects(objects: Tensor, fps: int) -> Union[types.Image, types.Video]:
    """Arrange objects (b, k, c, h, w) or (b, t, k, c, h, w) with a row per instance."""
    if objects.dim() == 5:
        return types.Image(make_grid(objects.flatten(0, 1), objects.shape[1]))
    return _grid_of_videos(objects.movedim(1, 2).flatten(0, 1), objects.shape[2], fps)


def _color(index: int) -> tuple[int, ...]:
    """Return red, green and blue; steps of the golden ratio keep the hues of neighbours apart."""
    return ImageColor.getrgb(f"hsv({index * 222.5 % 360}, 90%, 100%)")


class Image(VisualizationMethod):
    """Show images.

    Args:
        n_instances: number of images to show.
        n_row: number of images in a row.
        denormalization: brings values to [0, 1].
        as_grid: show one large image instead of several.
    """

    def __init__(
        self,
        n_instances: int = 8,
        n_row: int = 8,
        denormalization: Optional[Denormalization] = None,
        as_grid: bool = True,
    ):
        self.n_instances, self.n_row, self.denormalization, self.as_grid = n_instances, n_row, denormalization, as_grid

    def __call__(self, image: Tensor) -> Union[types.Image, types.Images]:
        """Show images (b, c, h, w)."""
        return self._show(_first(image, self.n_instances, self.denormalization))

    def _show(self, images: Tensor) -> Union[types.Image, types.Images]:
        return types.Image(make_grid(images, self.n_row)) if self.as_grid else types.Images(images)


class Flow(Image):
    """Show optical flow: the color is its direction, the saturation its speed, white stands still."""

    def __call__(self, flow: Tensor) -> Union[types.Image, types.Images]:
        """Show flows (b, 2, h, w); saturation is relative to the fastest pixel shown."""
        return self._show(flow_to_image(_first(flow, self.n_instances, self.denormalization)) / 255)


class Video(VisualizationMethod):
    """Show videos.

    Args:
        n_instances: number of videos to show.
        n_row: number of videos in a row.
        denormalization: brings values to [0, 1].
        as_grid: show one large video instead of several.
        fps: frames per second.
    """

    def __init__(
        self,
        n_instances: int = 8,
        n_row: int = 8,
        denormalization: Optional[Denormalization] = None,
        as_grid: bool = True,
        fps: int = 10,
    ):
        self.n_instances, self.n_row, self.denormalization = n_instances, n_row, denormalization
        self.as_grid, self.fps = as_grid, fps

    def __call__(self, video: Tensor) -> types.Video:
        """Show videos (b, t, c, h, w)."""
        video = _first(video, self.n_instances, self.denormalization)
        return _grid_of_videos(video, self.n_row, self.fps) if self.as_grid else types.Video(video, self.fps)


class Mask(VisualizationMethod):
    """Show the masks of every instance in a row, dark on white.

    Args:
        n_instances: number of instances to show.
        fps: frames per second of videos.
    """

    def __init__(self, n_instances: int = 8, fps: int = 10):
        self.n_instances, self.fps = n_instances, fps

    def __call__(self, mask: Tensor) -> Union[types.Image, types.Video]:
        """Show masks (b, k, h, w) or (b, t, k, h, w) with values in [0, 1].

        Raises:
            RuntimeError: if the masks have another number of axes.
        """
        if mask.dim() not in (4, 5):
            raise RuntimeError(f"Expected masks (b, k, h, w) or (b, t, k, h, w), got shape {tuple(mask.shape)}.")
        return _rows_of_objects(1 - _first(mask, self.n_instances).float().unsqueeze(-3), self.fps)


class VisualObject(VisualizationMethod):
    """Show the reconstructions and the masks of objects, one row per instance.

    Args:
        n_instances: number of instances to show.
        denormalization: brings colors to [0, 1].
        fps: frames per second of videos.
    """

    def __init__(self, n_instances: int = 8, denormalization: Optional[Denormalization] = None, fps: int = 10):
        self.n_instances, self.denormalization, self.fps = n_instances, denormalization, fps

    def __call__(self, object: Tensor, mask: Tensor) -> dict[str, types.Visualization]:
        """Show objects.

        Args:
            object: colors (b, k, c, h, w) or (b, t, k, c, h, w).
            mask: (b, k, h, w) or (b, t, k, h, w) in [0, 1].

        Returns:
            `reconstruction`, in images with the mask as opacity, in videos on white ground; and `mask`.

        Raises:
            RuntimeError: if the objects have another number of axes.
        """
        if object.dim() not in (5, 6):
            raise RuntimeError(
                f"Expected objects (b, k, c, h, w) or (b, t, k, c, h, w), got shape {tuple(object.shape)}."
            )
        colors = _first(object, self.n_instances, self.denormalization)
        alpha = _first(mask, self.n_instances).unsqueeze(-3)
        shown = torch.cat([colors, alpha], -3) if object.dim() == 5 else colors * alpha + (1 - alpha)
        return {"reconstruction": _rows_of_objects(shown, self.fps), "mask": Mask(self.n_instances, self.fps)(mask)}


class Segmentation(VisualizationMethod):
    """Show which object every pixel belongs to, by color on the image.

    Args:
        n_instances: number of images to show.
        denormalization: brings values of the image to [0, 1].
    """

    def __init__(self, n_instances: int = 8, denormalization: Optional[Denormalization] = None):
        self.n_instances, self.denormalization = n_instances, denormalization

    def __call__(self, image: Tensor, mask: Tensor) -> Optional[types.Image]:
        """Show the objects of images (b, c, h, w) with masks (b, k, h, w); videos are not shown."""
        if image.dim() != 4:
            return None
        images = _first(image, self.n_instances, self.denormalization).clamp(0, 1)
        colors = [_color(index) for index in range(mask.shape[1])]
        painted = torch.tensor(colors)[_first(mask, self.n_instances).argmax(1)].movedim(-1, 1)
        return types.Image(make_grid((0.3 * 255 * images + 0.7 * painted).round().byte()))


class TrackedObject(VisualizationMethod):
    """Show the boxes of objects in videos, each object in its own color.

    Args:
        n_clips: number of videos to show.
        n_row: number of videos in a row.
        denormalization: brings colors to [0, 1].
        fps: frames per second.
    """

    def __init__(
        self, n_clips: int = 3, n_row: int = 8, denormalization: Optional[Denormalization] = None, fps: int = 10
    ):
        self.n_clips, self.n_row, self.denormalization, self.fps = n_clips, n_row, denormalization, fps

    def __call__(self, video: Tensor, bbox: Tensor, idx: Tensor) -> types.Video:
        """Show videos (b, t, 3, h, w) with boxes x1, y1, x2, y2 (b, t, k, 4) of objects (b, t, k), where -1 is none."""
        frames = (255 * _first(video, self.n_clips, self.denormalization).clamp(0, 1)).round().byte()
        boxes, ids = bbox[: self.n_clips].detach().cpu().float(), idx[: self.n_clips].detach().cpu().long()
        shown = [_draw_boxes(*frame) for frame in zip(frames.flatten(0, 1), boxes.flatten(0, 1), ids.flatten(0, 1))]
        return _grid_of_videos(torch.stack(shown).unflatten(0, frames.shape[:2]) / 255, self.n_row, self.fps)


def _draw_boxes(frame: Tensor, boxes: Tensor, ids: Tensor) -> Tensor:
    kept = ids >= 0
    colors = [_color(index) for index in ids[kept].tolist()]
    return draw_bounding_boxes(frame, boxes[kept], colors=colors) if colors else frame


class ObjectMOT(TrackedObject):
    """Show the boxes around the masks of objects in videos, each object in its own color; see `TrackedObject`."""

    largest = 1.0  # part of the image that a box may take

    def __call__(self, video: Tensor, mask: Tensor) -> types.Video:  # type: ignore[override]
        """Show videos (b, t, 3, h, w) with masks (b, t, k, h, w), whose boxes are around what is above 0.5."""
        masks = mask[: self.n_clips] > 0.5
        boxes = masks_to_bboxes(masks.flatten(0, 2)).unflatten(0, masks.shape[:3])
        areas = (boxes[..., 2:] - boxes[..., :2] + 1).prod(dim=-1)
        is_shown = masks.flatten(-2).any(dim=-1) & (areas <= self.largest * masks.shape[-2] * masks.shape[-1])
        ids = torch.arange(masks.shape[2], device=masks.device).expand(is_shown.shape)
        return super().__call__(video, boxes, ids.where(is_shown, -1))


class TrackedObject_from_Mask(ObjectMOT):  # noqa: N801  the name is OCLF's
    """Show the boxes around masks, without those over more than a fifth of the image; see `TrackedObject`."""

    largest = 0.2

    def __call__(self, video: Tensor, object_masks: Tensor) -> types.Video:  # type: ignore[override]
        """Show videos (b, t, 3, h, w) with masks (b, t, k, h, w), whose boxes are around what is above 0.5."""
        return super().__call__(video, object_masks)


class TextToImageMatching(VisualizationMethod):
    """Show a table of how alike texts and images are; needs matplotlib.

    Args:
        denormalization: brings colors to [0, 1].
        row_is_image: similarities have a row for each image, and not for each text.
        n_instances: number of images and of texts to show.
    """

    def __init__(
        self,
        denormalization: Optional[Denormalization] = None,
        row_is_image: bool = True,
        n_instances: Optional[int] = None,
    ):
        self.denormalization, self.row_is_image, self.n_instances = denormalization, row_is_image, n_instances

    def __call__(self, image: Tensor, text: list[str], similarities: Tensor) -> types.Figure:
        """Show images (b, 3, h, w) and texts with their similarities (b, b)."""
        figure = require("matplotlib.figure", "clip").Figure(figsize=(20, 14))
        count = self.n_instances or max(len(image), len(text))
        images, texts = _first(image, count, self.denormalization).clamp(0, 1).movedim(1, -1), list(text[:count])
        table = (similarities.T if self.row_is_image else similarities).detach().cpu()[: len(texts), : len(images)]
        axes = figure.subplots(2, len(images), gridspec_kw={"height_ratios": [1, 4]}, squeeze=False)
        for axis, picture in zip(axes[0], images):
            axis.imshow(picture.numpy())
            axis.set_axis_off()
        for axis in axes[1]:
            axis.remove()
        below = figure.add_subplot(axes[1, 0].get_gridspec()[1, :])
        below.imshow(table.numpy(), vmin=0.1, vmax=0.3, aspect="auto")
        below.set_yticks(range(len(texts)), texts, fontsize=18, wrap=True)
        below.set_xticks([])
        for row, column in torch.cartesian_prod(*(torch.arange(size) for size in table.shape)).tolist():
            below.text(column, row, f"{table[row, column]:.2f}", ha="center", va="center")
        return types.Figure(figure)
