"""Instruments of stage 1: what codes know of segments, what the vote loses, and what the confidence of Eq. 1 measures.

`observe` turns a batch into sums, `Instrument` adds them up over batches and processes, and one function for each
measure turns the totals into a number, so that no number depends on the size of batches or the number of processes.
Measures are called `<measure>/<codes>/scale_<n>`, scale 1 the finest. Codes are `group_<g>`, the codes that the VAE
takes (in MSF group 1 is scale-invariant, group 2 scale-variant), and `before_vote`, those of group 1 that the scale
itself matches, where there is a vote (Eq. 4).

    ami         adjusted mutual information of codes and segments, the mean over images with two segments or more
    between     share of the variance of X_n that is between segments; it has no codes
    confidence  correlation of the confidence of a match (Eq. 1) with minus the distance to the nearest code
    equal_left  share of super-pixels whose code is that of their left neighbour
    missed      share of the variance of the scale's own U_n that its codes miss
    perplexity  perplexity of the codes, divided by the size of their codebook

What a VAE does not have, such as a vote or the confidence of finite scalars, is NaN; reports say null.
"""

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union, cast

import numpy as np
import torch
import torchmetrics
from einops import rearrange
from hydra.utils import get_class
from sklearn.metrics import adjusted_mutual_info_score
from torch.nn import functional as F

from ocl_msf.autoencoder import VQVAE
from ocl_msf.codebook import Codebook
from ocl_msf.fusion import Vote
from ocl_msf.quantization import CodebookQuantizer, Quantizer


class Observation(NamedTuple):
    """What `observe` has seen in a batch of b images.

    Attributes:
        sums: float64, by name, of which `Instrument` makes numbers.
        matches: (b, n, 2), confidence and minus the distance to the nearest code of the n super-pixels, by
            `<codes>/scale_<n>`.
    """

    sums: Dict[str, torch.Tensor]
    matches: Dict[str, torch.Tensor]


@torch.no_grad()
def observe(
    vae: VQVAE, image: torch.Tensor, masks: Optional[torch.Tensor] = None, ignore: Optional[torch.Tensor] = None
) -> Observation:
    """Measure the codes of some images.

    Args:
        vae: in evaluation mode.
        image: (b, 3, h, w) in [-1, 1].
        masks: true masks (b, k, h, w), one-hot; without them nothing is said of segments.
        ignore: (b, 1, h, w), positive where pixels belong to no segment.
    """
    maps = [vae.encoder(level).float() for level in vae.pyramid(image)]  # N x (b, d, h_n, w_n)
    output, quantizer = vae.quantizer(maps), cast(CodebookQuantizer, vae.quantizer)
    wanted = _wanted(vae.quantizer, maps)  # g x N x (b, h_n, w_n, c); none of a quantizer without codebooks
    voted = output.diagnostics["unfused"] if isinstance(getattr(quantizer, "inter_scale", None), Vote) else ()
    sums: Dict[str, torch.Tensor] = {}
    matches: Dict[str, torch.Tensor] = {}
    for scale, quantized in enumerate(output.quantized):
        place = f"scale_{scale + 1}"
        segments = None if masks is None else segments_at(masks, ignore, quantized.shape[-2:])  # (b, h_n, w_n)
        if segments is not None:
            sums[f"between/{place}"] = sum_variances(quantized, segments)
        codes = [(f"group_{g + 1}/{place}", g, indices) for g, indices in enumerate(output.indices[scale].unbind(1))]
        codes += [(f"before_vote/{place}", 0, voted[scale])] if voted else []
        for name, group, indices in codes:
            size = quantizer.describe_codebook(scale, group)[1]
            sums[f"perplexity/{name}"] = torch.bincount(indices.flatten(), minlength=size).double()
            sums[f"equal_left/{name}"] = sum_ratio(indices[:, :, 1:] == indices[:, :, :-1])
            if segments is not None:
                sums[f"ami/{name}"] = sum_information(indices, segments)
            if wanted:
                book = quantizer.codebook_of(scale, group)
                sums[f"missed/{name}"] = sum_errors(wanted[group][scale], book(indices))
        for group, features in enumerate(wanted):
            pairs = _matches(quantizer.codebook_of(scale, group), features[scale])  # (b, n, 2)
            matches[f"group_{group + 1}/{place}"] = pairs
            sums[f"confidence/group_{group + 1}/{place}"] = sum_moments(pairs)
    for group in range(len(wanted)):
        parts = [value for name, value in sums.items() if name.startswith(f"confidence/group_{group + 1}/")]
        sums[f"confidence/group_{group + 1}/all_scales"] = torch.stack(parts).sum(0)
    return Observation(sums, matches)


def _wanted(quantizer: Quantizer, maps: Sequence[torch.Tensor]) -> List[Sequence[torch.Tensor]]:
    """U_n of every group as its own scale has it, before any vote: g x N x (b, h_n, w_n, c); none without codebooks."""
    if not isinstance(quantizer, CodebookQuantizer):
        return []
    with torch.autocast(maps[0].device.type, enabled=False):
        groups, _ = quantizer.match([rearrange(m, "b d h w -> b h w d").contiguous() for m in maps])
    return [group.features if group.candidates is None else group.candidates for group in groups]


def _matches(book: Codebook, features: torch.Tensor) -> torch.Tensor:
    """Confidence and minus the distance to the nearest code: (b, h, w, c) -> (b, h * w, 2)."""
    match = book.match(features)
    quality = -(features - book(match.indices)).norm(dim=-1)
    return torch.stack([match.confidence, quality], -1).flatten(1, 2)


def segments_at(masks: torch.Tensor, ignore: Optional[torch.Tensor], grid: Sequence[int]) -> torch.Tensor:
    """Number of the segment in the middle of every super-pixel, -1 where it is ignored: (b, k, ...) -> (b, h, w)."""
    segments = F.interpolate(masks.float(), tuple(grid), mode="nearest-exact").argmax(1)  # (b, h, w)
    if ignore is None:
        return segments
    return segments.masked_fill(F.interpolate(ignore.float(), tuple(grid), mode="nearest-exact")[:, 0] > 0, -1)


def sum_ratio(found: torch.Tensor) -> torch.Tensor:
    """How often something is true, and how often it could be: (2,)."""
    return torch.stack([found.sum(), found.new_tensor(found.numel(), dtype=torch.int64)]).double()


def sum_information(indices: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Adjusted mutual information of two maps (b, h, w), summed over images with two segments or more: (2,).

    Its second entry is the number of these images.
    """
    scores = []
    for codes, names in zip(indices.flatten(1).cpu().numpy(), segments.flatten(1).cpu().numpy()):
        known = names >= 0
        if len(np.unique(names[known])) > 1:
            scores.append(adjusted_mutual_info_score(names[known], codes[known]))
    return torch.tensor([sum(scores), len(scores)], dtype=torch.float64)


def sum_variances(features: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Sum squares of features (b, d, h, w) within segments (b, h, w) and within images: (2, d + 1).

    The first row is about the means of segments, the second about those of images; last are degrees of freedom.
    """
    numbers = torch.arange(int(segments.max()) + 1, device=segments.device)
    inside = (segments.flatten(1).unsqueeze(1) == numbers[:, None]).double()  # (b, k, n)
    known = inside.sum(1).unsqueeze(-1)  # (b, n, 1)
    x = features.flatten(2).transpose(1, 2).double()  # (b, n, d)
    x = (x - (x * known).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)) * known
    pixels = inside.sum(-1, keepdim=True)  # (b, k, 1)
    total = x.square().sum((0, 1))  # (d,)
    within = total - ((inside @ x).square() / pixels.clamp(min=1)).sum((0, 1))  # (d,)
    freedom = known.sum() - (pixels > 0).sum(), known.sum() - (known.sum((1, 2)) > 0).sum()
    return torch.stack([torch.cat([s, f.view(1)]) for s, f in zip((within, total), freedom)])


def sum_errors(features: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Sums of squared distances to codes, of rows, of squares and of (b, h, w, c) itself: (c + 3,)."""
    rows, codes = features.flatten(0, -2).double(), codes.flatten(0, -2).double()
    sums = [(rows - codes).square().sum(), rows.new_tensor(len(rows)), rows.square().sum()]
    return torch.cat([torch.stack(sums), rows.sum(0)])


def sum_moments(pairs: torch.Tensor) -> torch.Tensor:
    """Sums over pairs (..., 2): of 1, x, y, x^2, y^2, x y: (6,)."""
    x, y = pairs.double().flatten(0, -2).unbind(-1)
    return torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y]).sum(-1)


def ratio(total: torch.Tensor) -> torch.Tensor:
    """The first sum divided by the second, NaN if both are 0."""
    return total[0] / total[1]


def between_share(total: torch.Tensor) -> torch.Tensor:
    """Share of variance between segments, the mean over channels that vary, corrected for chance as adjusted R^2 is.

    Standardised channels count alike. 1: segments are uniform; 0 on average for segments drawn at random (without the
    correction 11 segments would have 10/15 of the variance of 16 super-pixels).
    """
    (within, total), (left, all_freedom) = total[:, :-1], total[:, -1]
    varies = total > 0
    return 1 - (within[varies] / total[varies]).mean() * all_freedom / left


def missed_share(total: torch.Tensor) -> torch.Tensor:
    """Squared distance to the codes, divided by that to the mean: 0 is exact, above 1 the mean would serve better."""
    errors, rows, squares = total[:3]
    return errors / (squares - total[3:].square().sum() / rows)


def correlation(total: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation, -1 to 1; NaN if one of both does not vary."""
    n, x, y, xx, yy, xy = total
    spread = (n * xx - x * x).clamp(min=0) * (n * yy - y * y).clamp(min=0)
    return (n * xy - x * y) / spread.sqrt()


def perplexity_share(total: torch.Tensor) -> torch.Tensor:
    """Perplexity of counts (m,), divided by m: 1/m to 1."""
    share = total / total.sum()
    return torch.special.entr(share).sum().exp() / len(total)


MEASURES = {
    "ami": ratio,
    "between": between_share,
    "confidence": correlation,
    "equal_left": ratio,
    "missed": missed_share,
    "perplexity": perplexity_share,
}


class Instrument(torchmetrics.Metric):
    """One number of a stage-1 run, from the sums of `observe`.

    Args:
        name: of the number, as the module says.
        size: shape of its sums, if all codebooks are alike; where they halve per scale, or groups have fewer channels,
            it is that of the first batch.
    """

    full_state_update = False
    is_differentiable = False
    total: torch.Tensor

    def __init__(self, name: str, size: Union[int, Tuple[int, ...]]):
        super().__init__()
        self.name = name
        self.add_state("total", default=torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, sums: Optional[Mapping[str, torch.Tensor]] = None) -> None:
        """Add the sums of a batch; nothing, if it has none of this name."""
        if sums is not None and self.name in sums:
            found = sums[self.name].to(self.total.device)
            if found.shape != self.total.shape and not self.total.any():
                self.total = torch.zeros_like(found)  # the first batch says more than the config
            self.total += found

    def compute(self) -> torch.Tensor:
        """The number, float64; NaN if it is not defined."""
        return MEASURES[self.name.split("/")[0]](self.total)


def with_instruments(
    num_scales: Optional[int], codebook_sizes: Optional[Sequence[int]], dim: Optional[int], **metrics: Any
) -> Dict[str, Any]:
    """Add the instruments of a VAE to metrics; they read the output of a module called `instruments`.

    Args:
        num_scales: N. None, where no run is known, adds nothing.
        codebook_sizes: number of codes of each group.
        dim: c, channels of maps and codes.
        metrics: others, by name.
    """
    if num_scales is None or codebook_sizes is None or dim is None:
        return metrics
    sizes: Dict[str, Union[int, Tuple[int, ...]]] = {}
    for scale in range(1, 1 + num_scales):
        sizes[f"between/scale_{scale}"] = (2, dim + 1)
        groups = {f"group_{group}": size for group, size in enumerate(codebook_sizes, 1)}
        for codes, size in {**groups, "before_vote": codebook_sizes[0]}.items():
            shapes = {"ami": 2, "equal_left": 2, "missed": dim + 3, "perplexity": size}
            sizes.update({f"{measure}/{codes}/scale_{scale}": shape for measure, shape in shapes.items()})
        for codes in groups:
            sizes.update({f"confidence/{codes}/{place}": 6 for place in (f"scale_{scale}", "all_scales")})
    routed = get_class("routed.ocl_msf.instruments.Instrument")
    return {**metrics, **{name: routed(name, size, sums_path="instruments") for name, size in sorted(sizes.items())}}
