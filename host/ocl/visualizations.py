"""Visualizations of inputs and outputs of models."""

import abc
import colorsys
import math
from typing import Callable, Optional, Union

import torch
from torchvision.utils import make_grid

from ocl import visualization_types

Denormalization = Callable[[torch.Tensor], torch.Tensor]


class VisualizationMethod(abc.ABC):
    """Turns tensors into visualizations."""

    @abc.abstractmethod
    def __call__(self, *args, **kwargs):
        """Return a visualization, a dict of them, or None if there is nothing to see."""


def _first(tensor: torch.Tensor, n_instances: int) -> torch.Tensor:
    """Bring the first instances to the CPU, in a type that image libraries know."""
    tensor = tensor[:n_instances].detach().cpu()
    return tensor.float() if tensor.is_floating_point() else tensor


def _first_denormalized(
    tensor: torch.Tensor, n_instances: int, denormalization: Optional[Denormalization]
) -> torch.Tensor:
    tensor = tensor[:n_instances]
    return _first(tensor if denormalization is None else denormalization(tensor), n_instances)


def _grid_of_objects(objects: torch.Tensor) -> torch.Tensor:
    """Arrange (B, K, C, H, W) as one image with a row per instance."""
    return make_grid(objects.flatten(0, 1), nrow=objects.shape[1])


def _grid_video(video: torch.Tensor, make_frame: Callable[[torch.Tensor], torch.Tensor], fps: int):
    """Turn every frame (B, ...) of a video (B, T, ...) into one image."""
    frames = [make_frame(frame) for frame in video.unbind(1)]
    return visualization_types.Video(torch.stack(frames).unsqueeze(0), fps=fps)


class Image(VisualizationMethod):
    """Show images.

    Args:
        n_instances: Number of images to show.
        n_row: Number of images in a row.
        denormalization: Brings values to [0, 1].
        as_grid: Show one large image instead of several.
    """

    def __init__(
        self,
        n_instances: int = 8,
        n_row: int = 8,
        denormalization: Optional[Denormalization] = None,
        as_grid: bool = True,
    ):
        self.n_instances = n_instances
        self.n_row = n_row
        self.denormalization = denormalization
        self.as_grid = as_grid

    def __call__(self, image: torch.Tensor) -> Union[visualization_types.Image, visualization_types.Images]:
        """Show images (B, C, H, W)."""
        return self._show(_first_denormalized(image, self.n_instances, self.denormalization))

    def _show(self, images: torch.Tensor):
        if self.as_grid:
            return visualization_types.Image(make_grid(images, nrow=self.n_row))
        return visualization_types.Images(images)


class Video(VisualizationMethod):
    """Show videos.

    Args:
        n_instances: Number of videos to show.
        n_row: Number of videos in a row.
        denormalization: Brings values to [0, 1].
        as_grid: Show one large video instead of several.
        fps: Frames per second.
    """

    def __init__(
        self,
        n_instances: int = 8,
        n_row: int = 8,
        denormalization: Optional[Denormalization] = None,
        as_grid: bool = True,
        fps: int = 10,
    ):
        self.n_instances = n_instances
        self.n_row = n_row
        self.denormalization = denormalization
        self.as_grid = as_grid
        self.fps = fps

    def __call__(self, video: torch.Tensor) -> visualization_types.Video:
        """Show videos (B, T, C, H, W)."""
        video = _first_denormalized(video, self.n_instances, self.denormalization)
        if not self.as_grid:
            return visualization_types.Video(video, fps=self.fps)
        return _grid_video(video, lambda frame: make_grid(frame, nrow=self.n_row), self.fps)


class Mask(VisualizationMethod):
    """Show the masks of every instance in a row, dark on white.

    Args:
        n_instances: Number of instances to show.
        fps: Frames per second of videos.
    """

    def __init__(self, n_instances: int = 8, fps: int = 10):
        self.n_instances = n_instances
        self.fps = fps

    def __call__(self, mask: torch.Tensor) -> Union[visualization_types.Image, visualization_types.Video]:
        """Show masks (B, K, H, W) or (B, T, K, H, W) with values in [0, 1].

        Raises:
            RuntimeError: If the masks have another number of axes.
        """
        if mask.dim() not in (4, 5):
            raise RuntimeError(
                f"Expected masks (B, K, H, W) or (B, T, K, H, W), got shape {tuple(mask.shape)}."
            )
        inverted = 1 - _first(mask, self.n_instances).float().unsqueeze(-3)
        if mask.dim() == 5:
            return _grid_video(inverted, _grid_of_objects, self.fps)
        return visualization_types.Image(_grid_of_objects(inverted))


class VisualObject(VisualizationMethod):
    """Show the reconstructions and the masks of objects, one row per instance.

    Args:
        n_instances: Number of instances to show.
        denormalization: Brings colors to [0, 1].
        fps: Frames per second of videos.
    """

    def __init__(
        self, n_instances: int = 8, denormalization: Optional[Denormalization] = None, fps: int = 10
    ):
        self.n_instances = n_instances
        self.denormalization = denormalization
        self.fps = fps
        self.show_mask = Mask(n_instances, fps)

    def __call__(
        self, object: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, visualization_types.Visualization]:
        """Show objects.

        Args:
            object: Colors (B, K, C, H, W) or (B, T, K, C, H, W).
            mask: (B, K, H, W) or (B, T, K, H, W) in [0, 1].

        Returns:
            `reconstruction`, in images with the mask as opacity, in videos on white ground; and `mask`.

        Raises:
            RuntimeError: If the objects have another number of axes.
        """
        if object.dim() not in (5, 6):
            raise RuntimeError(
                f"Expected objects (B, K, C, H, W) or (B, T, K, C, H, W), got shape {tuple(object.shape)}."
            )
        colors = _first_denormalized(object, self.n_instances, self.denormalization)
        alpha = _first(mask, self.n_instances).unsqueeze(-3)
        if object.dim() == 6:
            shown = _grid_video(colors * alpha + (1 - alpha), _grid_of_objects, self.fps)
        else:
            shown = visualization_types.Image(_grid_of_objects(torch.cat([colors, alpha], dim=-3)))
        return {"reconstruction": shown, "mask": self.show_mask(mask)}


def _distinct_colors(count: int) -> torch.Tensor:
    """Return (count, 3) colors in [0, 255]; steps of the golden ratio keep neighbours apart."""
    golden_ratio = (math.sqrt(5) - 1) / 2
    colors = [colorsys.hsv_to_rgb(index * golden_ratio % 1, 0.9, 1.0) for index in range(count)]
    return 255 * torch.tensor(colors)


class Segmentation(VisualizationMethod):
    """Show which object every pixel belongs to, by color on the image.

    Args:
        n_instances: Number of images to show.
        denormalization: Brings values of the image to [0, 1].
    """

    def __init__(self, n_instances: int = 8, denormalization: Optional[Denormalization] = None):
        self.n_instances = n_instances
        self.denormalization = denormalization

    def __call__(self, image: torch.Tensor, mask: torch.Tensor) -> Optional[visualization_types.Image]:
        """Show the objects of images (B, C, H, W) with masks (B, K, H, W); videos are not shown."""
        if image.dim() != 4:
            return None
        image = _first_denormalized(image, self.n_instances, self.denormalization).clamp(0, 1)
        ids = _first(mask, self.n_instances).argmax(dim=1)
        colors = _distinct_colors(mask.shape[1])[ids].movedim(-1, 1)
        blended = 0.3 * 255 * image + 0.7 * colors
        return visualization_types.Image(make_grid(blended.round().to(torch.uint8)))


class Flow(Image):
    """Show optical flow: the color is its direction, the saturation its speed, white stands still."""

    def __call__(self, flow: torch.Tensor) -> Union[visualization_types.Image, visualization_types.Images]:
        """Show flows (B, 2, H, W); saturation is relative to the fastest pixel shown."""
        flow = _first_denormalized(flow, self.n_instances, self.denormalization)
        horizontal, vertical = flow.unbind(1)
        hue = torch.atan2(vertical, horizontal) / (2 * math.pi) % 1
        speed = flow.norm(dim=1)
        return self._show(_hue_and_saturation_to_rgb(hue, speed / speed.max().clamp(min=1e-8)))


def _hue_and_saturation_to_rgb(hue: torch.Tensor, saturation: torch.Tensor) -> torch.Tensor:
    """Convert (B, H, W) in [0, 1] to colors (B, 3, H, W) of full value."""
    offsets = torch.tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    sector = (offsets + 6 * hue.unsqueeze(1)) % 6
    return 1 - saturation.unsqueeze(1) * torch.minimum(sector, 4 - sector).clamp(0, 1)
