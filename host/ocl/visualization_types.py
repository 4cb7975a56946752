"""What visualizations consist of, and how they reach a TensorBoard-like experiment."""

import dataclasses
from typing import Any, ClassVar

from torch import Tensor


@dataclasses.dataclass
class Visualization:
    """Something an experiment can show; its fields are the arguments of the experiment's method."""

    experiment_method: ClassVar[str]

    def add_to_experiment(self, experiment: Any, tag: str, global_step: int) -> None:
        """Add the visualization to an experiment under a tag."""
        getattr(experiment, self.experiment_method)(**vars(self), tag=tag, global_step=global_step)


@dataclasses.dataclass
class Image(Visualization):
    """One image."""

    experiment_method = "add_image"
    img_tensor: Tensor
    dataformats: str = "CHW"


@dataclasses.dataclass
class Images(Visualization):
    """Several images."""

    experiment_method = "add_images"
    img_tensor: Tensor
    dataformats: str = "NCHW"


@dataclasses.dataclass
class Video(Visualization):
    """Videos (n, t, c, h, w)."""

    experiment_method = "add_video"
    vid_tensor: Tensor
    fps: int = 4


@dataclasses.dataclass
class Figure(Visualization):
    """A matplotlib figure."""

    experiment_method = "add_figure"
    figure: Any
    close: bool = True
