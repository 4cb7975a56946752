"""Figures: what they show, and that the same input gives the same bytes."""

import numpy as np
import pytest
import torch
from PIL import Image

from ocl_msf.autoencoder import VQVAE, Decoder, Encoder
from ocl_msf.figures import (
    GuidanceSheet,
    color_features,
    draw_curves,
    guidance_maps,
    read_curves,
    segmentation_grid,
)
from ocl_msf.fusion import MultiScaleFusion
from ocl_msf.quantization import VectorQuantizer


def make_vae(quantizer, scales):
    torch.manual_seed(0)
    return VQVAE(Encoder(8, 16), Decoder(8, 16), quantizer, scales).eval()


@pytest.fixture
def vae():
    return make_vae(MultiScaleFusion(8, 16, 3), 3)


IMAGE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_colours_are_the_principal_components():
    """Of a map that varies along one direction much more than along another, and along no third."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    features = torch.stack([10 * rows, columns, torch.zeros(4, 4)])
    colors = color_features(features)
    assert np.allclose(colors[..., 0], rows / 3) and np.allclose(colors[..., 1], columns / 3)
    assert np.all(colors[..., 2] == 0.5)
    assert np.allclose(color_features(5 + 3 * features), colors)
    assert np.all(color_features(torch.ones(2, 3, 3)) == 0.5)


def test_maps_of_a_fused_image(vae):
    pictures = guidance_maps(vae, IMAGE)
    assert list(pictures) == ["X^si before fusion", "X^si after fusion", "X^sv", "X", "winning scale"]
    assert all([p.shape for p in kind] == [(8, 8, 3), (4, 4, 3), (2, 2, 3)] for kind in pictures.values())
    winners = vae.encode(IMAGE.unsqueeze(0)).readouts["winners"][0][0].numpy()
    shades = {tuple(shade) for shade in pictures["winning scale"][0].reshape(-1, 3)}
    assert len(shades) == len(np.unique(winners))


def test_a_plain_vae_has_one_map():
    assert list(guidance_maps(make_vae(VectorQuantizer(8, 16), 1), IMAGE)) == ["X"]


def test_an_evaluation_draws_the_first_images_once(vae, tmp_path):
    sheet = GuidanceSheet(str(tmp_path / "a"), num_images=2)
    assert [sheet(IMAGE.expand(3, -1, -1, -1), vae) for _ in range(2)] == [2, 2]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["guidance_1.png", "guidance_2.png"]
    assert Image.open(tmp_path / "a" / "guidance_1.png").width > 600
    assert (tmp_path / "a" / "guidance_1.png").read_bytes() == (tmp_path / "a" / "guidance_2.png").read_bytes()


def test_models_side_by_side(tmp_path):
    true = torch.eye(3)[torch.arange(256).view(1, 16, 16) // 90].permute(0, 3, 1, 2)
    images = torch.zeros(1, 3, 16, 16)
    segmentation_grid(images, true, {"right": true}, tmp_path / "a.png")
    segmentation_grid(images, true, {"right": true[:, [2, 0, 1]]}, tmp_path / "b.png")
    segmentation_grid(images, true, {"right": true.roll(4, -2)}, tmp_path / "c.png")
    contents = [(tmp_path / name).read_bytes() for name in ("a.png", "b.png", "c.png")]
    assert contents[0] == contents[1] != contents[2]  # the order of slots does not show, their masks do
    with pytest.raises(ValueError, match="Masks of wrong"):
        segmentation_grid(images, true, {"wrong": true[..., :8]}, tmp_path / "d.png")


def log(folder, version, values):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "lightning_logs" / version)) as writer:
        for step, value in values.items():
            writer.add_scalar("val/ari_fg", value, step)


def test_curves_of_a_continued_run_are_one(tmp_path):
    log(tmp_path, "version_0", {1: 0.25, 2: 0.5, 3: 0.125})
    log(tmp_path, "version_1", {3: 0.75, 4: 1.0})
    assert read_curves(tmp_path) == {"val/ari_fg": [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]}
    for name in ("a.png", "b.png"):
        draw_curves({"msf": tmp_path}, ["val/ari_fg"], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(ValueError, match="val/ari_fg"):
        draw_curves({"msf": tmp_path}, ["val/miou"], tmp_path / "c.png")
