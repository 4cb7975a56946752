import numpy as np
import pytest
import torch
from PIL import Image

from ocl_msf.autoencoder import VQVAE, Decoder, Encoder
from ocl_msf.decoding import TokenDecoder
from ocl_msf.diffusion import DiffusionDecoder
from ocl_msf.fusion import MultiScaleFusion
from ocl_msf.guidance import FrozenGuidance
from ocl_msf.results.style import match_segments, paint_segments
from ocl_msf.results.visualizations import Reconstruction, SceneSheet, reconstruct

pytestmark = pytest.mark.needs_host


@pytest.fixture
def models():
    torch.manual_seed(0)
    vae = VQVAE(Encoder(8, 16), Decoder(8, 16), MultiScaleFusion(8, 16, 3), 3)
    guidance = FrozenGuidance(vae)
    guidance.load(vae.state_dict())
    decoder = TokenDecoder(6, 8, [16, 16], size=4, dim=16, num_layers=1, num_heads=2)
    decoder.lookup = guidance.lookup
    return {"decoder": decoder, "guidance": guidance}


def test_reconstructions_come_from_slots_alone_and_leave_the_decoder_as_it_was(models):
    slots = torch.randn(2, 3, 6)
    models["decoder"].train()
    first, second = reconstruct(slots, **models), reconstruct(slots, **models)
    assert models["decoder"].training
    assert torch.equal(first, second)
    assert first.shape == (2, 3, 16, 16) and first.abs().max() <= 1


def test_slots_that_are_off_are_not_drawn(models):
    slots, off = torch.randn(2, 3, 6), torch.tensor([[False, False, True]] * 2)
    noisy = slots.clone()
    noisy[:, 2] = 50 * torch.randn(2, 6)
    assert torch.equal(reconstruct(slots, **models, slot_mask=off), reconstruct(noisy, **models, slot_mask=off))
    assert not torch.equal(reconstruct(slots, **models), reconstruct(noisy, **models))


def test_features_that_a_decoder_draws_are_decoded_as_they_are(models):
    guidance, slots = models["guidance"], torch.randn(2, 3, 6)
    decoder = DiffusionDecoder(6, 8, size=4, channels=[8], num_layers=1, num_heads=2)
    made = reconstruct(slots, decoder.train(), guidance)
    assert made.shape == (2, 3, 16, 16) and decoder.training
    torch.testing.assert_close(made, guidance.decode(decoder.eval().generate(slots)).clamp(-1, 1))


def test_a_picture_has_the_images_above_their_reconstructions(models):
    image = torch.rand(3, 3, 16, 16) * 2 - 1
    picture = Reconstruction(n_instances=2)(image, torch.randn(3, 3, 6), **models).img_tensor
    assert picture.shape == (3, 32, 32)
    torch.testing.assert_close(picture[:, :16, 16:], (image[1] + 1) / 2)


def test_the_sheet_holds_the_wanted_number_of_scenes(models, tmp_path):
    sheet = SceneSheet(str(tmp_path / "new"), num_scenes=3)
    image, masks, slots = torch.rand(2, 3, 16, 16), torch.rand(2, 4, 16, 16), torch.randn(2, 3, 6)
    taken = [sheet(image, masks, masks[:, :3], slots, **models) for _ in range(3)]
    assert taken == [2, 3, 3]
    width, height = Image.open(tmp_path / "new" / "scenes.png").size
    assert width / 3 == pytest.approx(height / 4, rel=0.05)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["scenes.png"]


def test_segments_take_the_numbers_of_those_that_they_are_matched_to():
    reference = np.repeat([[0, 1, 2, 3]], 4, 0)
    renamed = match_segments((reference + 2) % 4 + 5, reference)
    assert np.array_equal(renamed, reference)
    split = match_segments(np.array([[0, 0, 0, 1]]), np.array([[0, 0, 0, 0]]))
    assert split[0, 0] == 0 and split[0, 3] != 0


def test_segments_are_told_apart_by_colour():
    colours = paint_segments(np.arange(12)[None].repeat(12, 0), size=36)[1, 1::3] / 255
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 9 * np.eye(12)
    assert distance.min() > 0.15 and not np.any(np.all(colours == 1, -1))
