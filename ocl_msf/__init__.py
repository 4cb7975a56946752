"""Multi-Scale Fusion (MSF, ICLR 2025) for the Object-Centric Learning Framework (OCLF).

A VQ-VAE encodes an image at several scales and fuses its codes across them; what it has learned guides slot
attention in SLATE, STEVE and SlotDiffusion. The modules are named after those of the framework they extend
(`ocl.decoding` and `ocl_msf.decoding`), and the Hydra configs `experiment/msf/*` put them together.

Shapes are written with one letter per axis, everywhere the same:

| letter | axis |
|---|---|
| `b` | batch |
| `t` | frames of a video |
| `c` | channels of an image |
| `d` | channels of a feature map |
| `h w` | rows and columns of a grid |
| `n` | tokens, `h * w` |
| `k` | slots |
| `s` | scales |
| `m` | codes of a codebook |

Feature maps are `b d h w`, tokens `b n d`, slots `b k d` and masks `b k h w`.

`ocl_msf.load(PATH)` loads a trained model; see `ocl_msf.inference.loading.load`.
"""

from typing import TYPE_CHECKING, Any

from ocl_msf import _renamed  # noqa: F401  old names fail with the new one

if TYPE_CHECKING:
    from ocl_msf.inference.loading import load  # noqa: F401

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load`, imported when it is first asked for: it needs a host and PyTorch."""
    if name == "load":
        from ocl_msf.inference.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
