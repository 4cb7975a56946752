"""The instruments of stage 1 on VAEs whose codes are known, against numpy, scipy and scikit-learn."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import entropy, pearsonr
from sklearn.metrics import adjusted_mutual_info_score
from torch import nn

from ocl_msf.autoencoder import VQVAE
from ocl_msf.finite_scalar import FiniteScalarQuantizer
from ocl_msf.fusion import MultiScaleFusion, Separate, Sum
from ocl_msf.instruments import Instrument, observe, sum_variances, with_instruments
from ocl_msf.quantization import GroupedQuantizer, VectorQuantizer
from ocl_msf.results.figures import InstrumentSheet, draw_confidence, read_matches

pytestmark = pytest.mark.needs_host


class Pixels(nn.Identity):
    """An encoder whose features are the pixels."""

    stride = 1


def make_vae(quantizer, num_scales=1):
    return VQVAE(Pixels(), nn.Identity(), quantizer, num_scales).eval()


def measure(vae, sizes, *batches):
    """All numbers of a VAE of pixels with 3 channels, by name."""
    metrics = with_instruments(vae.pyramid.num_scales, sizes, 3)
    for batch in batches:
        sums = observe(vae, *batch).sums
        assert set(sums) <= set(metrics)
        for metric in metrics.values():
            metric.update(instruments=sums)
    return {name: metric.compute().item() for name, metric in metrics.items()}


def one_hot(segments, count):
    return nn.functional.one_hot(segments, count).movedim(-1, 1).float()


def draw(count, size, images=4, seed=0):
    return torch.randint(count, (images, size, size), generator=torch.Generator().manual_seed(seed))


def colours(*rows):
    """A plain quantizer with these codes."""
    quantizer = VectorQuantizer(3, len(rows))
    quantizer.codebook.weight.data = torch.tensor(rows)
    return quantizer


COLOURS = ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.5, 1.0))


def test_tokens_that_are_segments_know_all_of_them():
    segments = draw(4, 8)
    image = torch.tensor(COLOURS)[segments].movedim(-1, 1)
    found = measure(make_vae(colours(*COLOURS)), [4], (image, one_hot(segments, 4)))
    assert found["ami/group_1/scale_1"] == pytest.approx(1)
    assert found["between/scale_1"] == pytest.approx(1)
    assert found["missed/group_1/scale_1"] == pytest.approx(0, abs=1e-9)
    assert found["perplexity/group_1/scale_1"] == pytest.approx(math.exp(entropy(segments.flatten().bincount())) / 4)
    assert found["equal_left/group_1/scale_1"] == pytest.approx(
        (segments[..., 1:] == segments[..., :-1]).float().mean()
    )


def test_random_tokens_know_nothing_of_segments():
    """Also on coarse grids, where many segments share few super-pixels."""
    quantizer = colours(*COLOURS)
    for size, images in ((24, 4), (4, 256)):
        image = torch.tensor(COLOURS)[draw(4, size, images, seed=1)].movedim(-1, 1)
        segments = draw(11, size, images, seed=2)
        found = measure(make_vae(quantizer), [4], (image, one_hot(segments, 11)))
        assert found["ami/group_1/scale_1"] == pytest.approx(0, abs=0.03)
        assert found["between/scale_1"] == pytest.approx(0, abs=0.03)


def test_a_confidence_that_is_right_measures_quality():
    """Two codes a distance of 1 apart, pixels on the line between: P = 1 / (1 + exp(2 d - 1)) is nearly linear in d."""
    red = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    image = torch.cat([red, torch.zeros(2, 2, 8, 8)], 1)
    observed = observe(make_vae(colours(*COLOURS[:2])), image)
    confidence, quality = observed.matches["group_1/scale_1"].flatten(0, 1).double().T.numpy()
    distance = torch.minimum(red, 1 - red).flatten().double().numpy()
    assert quality == pytest.approx(-distance, abs=1e-6)
    assert confidence == pytest.approx(1 / (1 + np.exp(2 * distance - 1)), abs=1e-6)
    found = measure(make_vae(colours(*COLOURS[:2])), [2], (image,))
    assert found["confidence/group_1/scale_1"] == pytest.approx(pearsonr(confidence, quality)[0])
    assert found["confidence/group_1/scale_1"] == found["confidence/group_1/all_scales"] > 0.99
    assert math.isnan(found["ami/group_1/scale_1"]) and math.isnan(found["between/scale_1"]), "there are no masks"


@pytest.fixture
def fused():
    torch.manual_seed(0)
    vae = make_vae(MultiScaleFusion(3, 8, 3), 3)
    segments = draw(3, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)
    image = torch.tensor(COLOURS)[segments].movedim(-1, 1) + 0.5 * torch.randn(4, 3, 16, 16)
    return vae, image, segments


def test_what_the_vote_loses(fused):
    vae, image, segments = fused
    found = measure(vae, [8, 8], (image, one_hot(segments, 3)))
    with torch.no_grad():
        output = vae.encode(image)
        invariant, variant = vae.quantizer.project.up([x.movedim(1, -1) for x in vae.pyramid(image)])
    losses = []
    for scale, step in enumerate((1, 2, 4)):
        names = segments[:, step // 2 :: step, step // 2 :: step]
        own, book = output.diagnostics["unfused"][scale], vae.quantizer.codebooks[0].weight.detach()
        taken, others = output.indices[scale].unbind(1)
        cases = [("before_vote", own, invariant, book), ("group_1", taken, invariant, book)]
        cases += [("group_2", others, variant, vae.quantizer.codebooks[1 + scale].weight.detach())]
        for name, codes, features, weight in cases:
            place, rows = f"{name}/scale_{scale + 1}", features[scale].flatten(0, 2)
            scores = [adjusted_mutual_info_score(a.flatten(), b.flatten()) for a, b in zip(names, codes)]
            assert found[f"ami/{place}"] == pytest.approx(np.mean(scores))
            assert found[f"equal_left/{place}"] == pytest.approx((codes[..., 1:] == codes[..., :-1]).float().mean())
            perplexity = math.exp(entropy(codes.flatten().bincount()))
            assert found[f"perplexity/{place}"] == pytest.approx(perplexity / 8)
            missed, spread = rows - weight[codes.flatten()], rows - rows.mean(0)
            share = (missed.square().sum() / spread.square().sum()).item()
            assert found[f"missed/{place}"] == pytest.approx(share, rel=1e-4)
        losses.append(found[f"missed/group_1/scale_{scale + 1}"] - found[f"missed/before_vote/scale_{scale + 1}"])
    assert min(losses) >= 0 and max(losses) > 0, "no code is nearer than the scale's own"


def test_the_share_between_segments_is_that_of_standardised_channels():
    """Of one image: the mean over channels of adjusted R^2 of a regression on segments, whatever their units."""
    segments = draw(3, 8, images=1)
    features = torch.randn(1, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features[0, 0] += segments[0]
    names, shares = segments[0].numpy(), []
    for channel in features[0].numpy():
        within = sum(((channel[names == k] - channel[names == k].mean()) ** 2).sum() for k in range(3))
        total = ((channel - channel.mean()) ** 2).sum()
        shares.append(1 - within / total * (64 - 1) / (64 - 3))
    units = torch.tensor([1.0, 1e3]).view(2, 1, 1)
    dead = torch.full((1, 1, 8, 8), 0.3)
    instrument = Instrument("between/scale_1", (2, 4))
    instrument.update({"between/scale_1": sum_variances(torch.cat([features * units + 7, dead], 1), segments)})
    assert instrument.compute().item() == pytest.approx(np.mean(shares))


def test_ignored_pixels_belong_to_no_segment(fused):
    vae, image, segments = fused
    ignore = torch.zeros(4, 1, 16, 16)
    ignore[:, :, :, 8:] = 1
    spoiled = segments.clone()
    spoiled[..., 8:] = draw(3, 8, seed=5).repeat_interleave(2, 1)
    masks = [one_hot(names, 3) for names in (segments, spoiled)]
    first, second = (measure(vae, [8, 8], (image, its, ignore)) for its in masks)
    assert first == pytest.approx(second) and first != measure(vae, [8, 8], (image, masks[0]))
    ignore[2] = 1  # an image without any segment
    kept = torch.tensor([0, 1, 3])
    without = measure(vae, [8, 8], (image[kept], masks[0][kept], ignore[kept]))
    found = measure(vae, [8, 8], (image, masks[0], ignore))
    for name in ("ami/group_1/scale_1", "ami/before_vote/scale_2", "between/scale_1"):
        assert found[name] == pytest.approx(without[name])


def test_batches_do_not_matter(fused):
    vae, image, segments = fused
    masks = one_hot(segments, 3)
    whole = measure(vae, [8, 8], (image, masks))
    parts = [(image[part], masks[part]) for part in (slice(3, 4), slice(0, 2), slice(2, 3))]
    assert measure(vae, [8, 8], *parts) == pytest.approx(whole, rel=1e-5)
    assert all(map(math.isfinite, whole.values()))


@pytest.mark.parametrize("name", ["vq", "gdr", "separate", "sum", "fsq"])
def test_what_a_variant_does_not_have_is_not_defined(name):
    torch.manual_seed(0)
    quantizer, sizes, scales = {
        "vq": lambda: (VectorQuantizer(3, 8), [8], 1),
        "gdr": lambda: (GroupedQuantizer(3, 8, 2), [8, 8], 1),
        "separate": lambda: (MultiScaleFusion(3, 8, 2, inter_scale=Separate()), [8, 8], 2),
        "sum": lambda: (MultiScaleFusion(3, 8, 2, inter_scale=Sum()), [8, 8], 2),
        "fsq": lambda: (FiniteScalarQuantizer(3, [3, 3]), [9], 1),
    }[name]()
    segments = draw(3, 8)
    found = measure(make_vae(quantizer, scales), sizes, (torch.randn(4, 3, 8, 8), one_hot(segments, 3)))
    absent = {"before_vote"} | ({"confidence", "missed"} if name == "fsq" else set())
    for number, value in found.items():
        assert math.isnan(value) == bool(absent & set(number.split("/"))), number


class Evaluation:
    """What `InstrumentSheet` sees of one."""

    def __init__(self):
        self.trainer = SimpleNamespace(callbacks=[], is_global_zero=True)

    def end(self):
        for callback in self.trainer.callbacks:
            callback.on_validation_end(self.trainer, self)


def test_the_picture_depends_on_the_names_of_images_alone(fused, tmp_path):
    vae, image, segments = fused
    names = ["a", "b", "c", "d"]
    for folder, parts in (("whole", [[0, 1, 2, 3]]), ("parts", [[2], [3, 0], [1]])):
        sheet, evaluated = InstrumentSheet(str(tmp_path / folder), num_images=3), Evaluation()
        for part in parts:
            sums = sheet(image[part], vae, [names[n] for n in part], evaluated, one_hot(segments[part], 3))
            assert set(sums) == set(observe(vae, image[part], one_hot(segments[part], 3)).sums)
        evaluated.end()
    kept, other = (read_matches(tmp_path / folder / "confidence.npz") for folder in ("whole", "parts"))
    assert set(kept) == {f"group_{g}/scale_{n}" for g in (1, 2) for n in (1, 2, 3)}
    assert all(kept[place].shape == (3 * 256 // 4 ** (int(place[-1]) - 1), 2) for place in kept)
    assert all(np.allclose(kept[place], other[place], atol=1e-5) for place in kept)
    assert (tmp_path / "whole" / "confidence.png").is_file()
    for name in "ab":
        draw_confidence({"msf": kept, "vq": {"group_1/scale_1": np.ones((5, 2))}}, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_frames_of_videos_are_images_of_their_own(fused, tmp_path):
    vae, image, _ = fused
    sheet, evaluated = InstrumentSheet(str(tmp_path)), Evaluation()
    sheet(image, vae, ["video", "another"], evaluated)
    evaluated.end()
    assert len(read_matches(tmp_path / "confidence.npz")["group_1/scale_3"]) == 4 * 16


def test_without_confidence_there_is_no_picture(tmp_path):
    sheet, evaluated = InstrumentSheet(str(tmp_path)), Evaluation()
    sheet(torch.randn(1, 3, 8, 8), make_vae(FiniteScalarQuantizer(3, [3, 3])), ["a"], evaluated)
    evaluated.end()
    assert read_matches(tmp_path / "confidence.npz") == {} and not (tmp_path / "confidence.png").exists()
