"""Upsampling of the masks of objects by features at several sizes."""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ocl.utils.routing import RoutableMixin


class FeaturePyramidDecoder(nn.Module, RoutableMixin):
    """Refine masks on a grid of 14x14 patches to masks of 224x224 pixels, with a pyramid made of the features.

    Args:
        slot_dim: channels of the objects, a multiple of 128.
        feature_dim: channels of the features, a multiple of 8.
        mask_path: where to find `mask`, like the following arguments.
        slots_path: where to find `slots`.
        features_path: where to find `features`.
    """

    def __init__(
        self,
        slot_dim: int,
        feature_dim: int,
        mask_path: Optional[str] = None,
        slots_path: Optional[str] = None,
        features_path: Optional[str] = None,
    ):
        nn.Module.__init__(self)
        RoutableMixin.__init__(self, {"slots": slots_path, "mask": mask_path, "features": features_path})
        dims = [slot_dim // 2**level for level in range(5)]
        for level, (in_dim, out_dim) in enumerate(zip([slot_dim, *dims], dims), start=1):
            layer = nn.Conv3d(in_dim, out_dim, (1, 3, 3), padding=(0, 1, 1))
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.get_parameter("bias"))
            self.add_module(f"lay{level}", layer)
            self.add_module(f"gn{level}", nn.GroupNorm(8, out_dim))
        self.out_lay = nn.ConvTranspose3d(dims[-1], 1, (1, 3, 3), (1, 2, 2), (0, 1, 1), (0, 1, 1))
        self.upsampling = nn.ConvTranspose2d(feature_dim, feature_dim // 8, kernel_size=8, stride=8)
        for level, dim in enumerate(dims[:4], start=1):
            self.add_module(f"adapter{level}", nn.Conv2d(feature_dim // 8, dim, 5, 2 ** (4 - level), padding=2))

    @RoutableMixin.route
    def forward(self, slots: Tensor, mask: Tensor, features: Tensor) -> Tensor:
        """Refine masks.

        Args:
            slots: (b, k, slot_dim).
            mask: (b, k, 196).
            features: (b, 196, feature_dim).

        Returns:
            (b, k, 224, 224), summing to 1 over k.
        """
        finest = self.upsampling(features.transpose(1, 2).unflatten(-1, (14, 14)))  # b d/8 112 112
        maps = slots.transpose(1, 2)[..., None, None] * mask.unflatten(-1, (14, 14)).unsqueeze(1)  # b d k 14 14
        # The first size has two layers, and their features come behind the first.
        maps = self._run_layer(1, maps, self.get_submodule("adapter1")(finest))
        maps = self._run_layer(2, maps)
        for level in (2, 3, 4):
            guide = self.get_submodule(f"adapter{level}")(finest).unsqueeze(2)
            maps = guide + F.interpolate(maps, size=(maps.shape[2], *guide.shape[-2:]), mode="nearest")
            maps = self._run_layer(level + 1, maps)
        return self.out_lay(maps).squeeze(1).softmax(dim=1)

    def _run_layer(self, level: int, maps: Tensor, guide: Optional[Tensor] = None) -> Tensor:
        maps = self.get_submodule(f"lay{level}")(maps)
        maps = maps if guide is None else maps + guide.unsqueeze(2)
        return torch.relu(self.get_submodule(f"gn{level}")(maps))
