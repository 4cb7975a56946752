import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageOps

from ocl_msf.autoencoder import VQVAE, Decoder, Encoder
from ocl_msf.cli import main
from ocl_msf.diffusion import DiffusionDecoder
from ocl_msf.files import DataError
from ocl_msf.fusion import MultiScaleFusion
from ocl_msf.guidance import FrozenGuidance
from ocl_msf.perceptual_grouping import BlockSlotAttentionGrouping
from ocl_msf.results.editing import Edit, draw, edit, edit_slots, load_images, load_model
from ocl_msf.results.visualizations import reconstruct

pytestmark = pytest.mark.needs_host


class Stand(torch.nn.Module):
    """A model of stage 2 small enough to reckon with: slots are mean colours of vertical stripes, and paint them."""

    class Grouping:
        def __init__(self, objects):
            self.objects = objects

    class Decoder(torch.nn.Module):
        def generate(self, slots, size=None, slot_mask=None):
            return slots.sum(1)[..., None, None].expand(-1, -1, 4, 6)

    class Guidance(torch.nn.Module):
        def decode(self, features):
            return features

    def __init__(self):
        super().__init__()
        self.models = torch.nn.ModuleDict({"decoder": self.Decoder(), "guidance": self.Guidance()})

    def forward(self, batch):
        slots = batch["image"].unflatten(3, (3, 2)).mean((2, 4)).transpose(1, 2) / 3
        masks = torch.eye(3).repeat_interleave(2, 1)[None, :, None].expand(2, 3, 4, 6)
        return {"perceptual_grouping": self.Grouping(slots), "masks": masks}


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(2, 3, 4, 6) * 2 - 1


def test_swapped_slots_change_places_and_dropped_ones_are_gone():
    slots = torch.arange(2 * 4 * 3.0).view(2, 4, 3)
    first, second = edit_slots(slots, swaps=[(2, 3), (0, 2)], drops=[1])
    assert torch.equal(first, torch.stack([slots[1, 2], slots[1, 3], slots[0, 3]]))
    assert torch.equal(second, torch.stack([slots[1, 0], slots[1, 1], slots[0, 0], slots[0, 2]]))
    first, second = edit_slots(slots)
    assert torch.equal(first, slots[0]) and torch.equal(second, slots[1])


def test_a_swapped_slot_may_be_dropped():
    slots = torch.randn(2, 3, 5)
    first, second = edit_slots(slots, swaps=[(0, 1)], drops=[0])
    assert torch.equal(first, slots[0, 1:]) and torch.equal(second[1], slots[0, 0])


@pytest.mark.parametrize(
    "swaps, drops, message",
    [
        ([(0, 4)], [], "no slot 4: this model's slots are 0 to 3"),
        ([], [-1], "no slot -1"),
        ([(0, 1), (0, 2)], [], "only once"),
        ([], [0, 1, 2, 3], "All 4 slots"),
    ],
)
def test_impossible_edits_are_named(swaps, drops, message):
    with pytest.raises(ValueError, match=message):
        edit_slots(torch.randn(2, 4, 5), swaps, drops)


def test_the_decoder_writes_what_the_edited_slots_say(images):
    stripes = images.unflatten(3, (3, 2)).mean((2, 4)).transpose(1, 2) / 3
    edited = edit(Stand(), images, swaps=[(1, 2)], drops=[0])
    assert edited.masks.shape == (2, 4, 6) and edited.masks[1, 0].tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(edited.before[..., 0, 0], stripes.sum(1))
    torch.testing.assert_close(edited.after[0, :, 0, 0], stripes[0, 2] + stripes[1, 2])
    torch.testing.assert_close(edited.after[1, :, 0, 0], stripes[1, 0] + stripes[1, 1] + stripes[0, 1])


@pytest.fixture
def diffusing():
    """The same grouping, with SlotDiffusion's decoder and a VAE as they start."""
    torch.manual_seed(0)
    vae = VQVAE(Encoder(4, 8), Decoder(4, 8), MultiScaleFusion(4, 16, 3), 3)
    guidance = FrozenGuidance(vae)
    guidance.load(vae.state_dict())
    decoder = DiffusionDecoder(3, 4, size=8, channels=[8, 16], num_layers=1, num_heads=2)
    model = Stand()
    model.models = torch.nn.ModuleDict({"decoder": decoder, "guidance": guidance})
    return model


def test_diffusion_draws_an_edited_image_from_the_noise_of_the_original(diffusing, images):
    """So only slots make a difference: none swapped changes nothing, all swapped exchanges the images."""
    same = edit(diffusing, images)
    assert same.before.shape == (2, 3, 32, 32) and (same.before[0] - same.before[1]).abs().max() > 1e-3
    torch.testing.assert_close(same.after, same.before, rtol=0, atol=1e-4)
    exchanged = edit(diffusing, images, swaps=[(0, 0), (1, 1), (2, 2)])
    torch.testing.assert_close(exchanged.after, same.before.flip(0), rtol=0, atol=1e-4)


def test_diffusion_draws_from_the_slots_that_are_left(diffusing, images):
    edited = edit(diffusing, images, swaps=[(1, 2)], drops=[0])
    slots = diffusing({"image": images})["perceptual_grouping"].objects
    left = torch.stack([slots[1, 2], slots[0, 2]])[None]
    expected = reconstruct(left, diffusing.models["decoder"], diffusing.models["guidance"])
    torch.testing.assert_close(edited.after[:1], expected, rtol=0, atol=1e-4)
    assert (edited.after - edited.before).abs().amax((1, 2, 3)).min() > 1e-4


def test_the_picture_appears_whole(images, tmp_path):
    draw(images, Edit(torch.randint(3, (2, 4, 6)), images, -images), tmp_path / "new" / "edit.png")
    width, height = Image.open(tmp_path / "new" / "edit.png").size
    assert width / 5 == pytest.approx(height / 10)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["edit.png"]


def test_pictures_are_cut_to_their_central_square(tmp_path):
    wide = Image.new("RGB", (30, 10), (255, 0, 0))
    wide.paste((0, 255, 0), (10, 0, 20, 10))
    wide.save(tmp_path / "wide.png")
    transform = {"_target_": "torchvision.transforms.ToTensor"}
    (image,) = load_images([tmp_path / "wide.png"], OmegaConf.create({"experiment": {"image_transform": transform}}))
    assert image.shape == (3, 10, 10) and (image[1] == 1).all() and (image[0] == 0).all()


def test_pictures_are_read_as_viewers_show_them(tmp_path):
    """Turned by EXIF data as by Pillow; grey values of 16 bits are not white."""
    config = OmegaConf.create({"experiment": {"image_transform": {"_target_": "torchvision.transforms.PILToTensor"}}})
    noise = Image.effect_noise((9, 7), 90).convert("RGB")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        noise.save(tmp_path / "turned.png", exif=exif)
        ImageOps.exif_transpose(Image.open(tmp_path / "turned.png")).save(tmp_path / "upright.png", exif=b"")
        turned, upright = load_images([tmp_path / "turned.png", tmp_path / "upright.png"], config)
        assert torch.equal(turned, upright)
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp * 257).save(tmp_path / "deep.png")
    (image,) = load_images([tmp_path / "deep.png"], config)
    np.testing.assert_array_equal(image, np.stack([ramp] * 3))
    Image.new("F", (4, 4)).save(tmp_path / "fractions.tiff")
    with pytest.raises(DataError, match="fractions.tiff cannot be read as a picture: pixels have 32 bits"):
        load_images([tmp_path / "fractions.tiff"], config)


@pytest.mark.parametrize("swap", ["2", "2:x", "1:2:3"])
def test_a_swap_that_is_no_pair_is_explained(swap, capsys):
    with pytest.raises(SystemExit):
        main(["edit", "run", "a.png", "b.png", "--swap", swap])
    assert "such as 2:3" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="error: .*is no run: it has no config"):
        main(["edit", str(tmp_path), "a.png", "b.png"])


TINY = [
    "+msf/preset=cpu",
    "dataset.batch_size=4",
    "dataset.eval_batch_size=4",
    "dataset.num_workers=0",
    "experiment.pretraining={steps:1,warmup_steps:0,anneal_steps:1,validate_every:1,learning_rate:1e-3,clip_norm:1}",
    "experiment.training={steps:1,warmup_steps:0,validate_every:1,learning_rate:1e-3,clip_norm:1}",
    "experiment.vae={dim:8,hidden_dim:8}",
    "experiment.slots={number:3,dim:8}",
    "experiment.encoder.dim=4",
    "experiment.decoder={dim:16,num_layers:1,num_heads:2,dropout:0}",
    "experiment.image_size=32",
    "seed=0",
]


@pytest.fixture
def train(run_program, shards, tmp_path):
    """Train as a user does; returns the folder of the run."""

    def run(experiment, *overrides):
        command = [f"+experiment=msf/{experiment}", *TINY, *overrides]
        done = run_program("ocl.cli.train", *command, cwd=tmp_path, DATASET_PREFIX=str(shards))
        assert done.returncode == 0, done.stdout + done.stderr
        (folder,) = (tmp_path / "outputs" / "msf" / experiment).iterdir()
        return folder

    return run


@pytest.mark.slow
def test_block_slots_under_a_joint_head_are_trained_and_edited_as_a_user_does(train, tmp_path, capsys):
    train("vqvae_clevrtex")
    run = train("sysbinder_clevrtex", "+msf/heads=joint")
    model, config = load_model(run)
    assert isinstance(model.models["perceptual_grouping"], BlockSlotAttentionGrouping)
    assert [head.out_features for head in model.models["decoder"].heads] == [64 * 64]
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path in paths:
        Image.effect_noise((48, 40), 60).convert("RGB").save(path)
    out = tmp_path / "edit.png"
    main(["edit", str(run), *paths, "--swap", "0:1", "2:2", "--drop", "1", "--out", str(out)])
    assert Image.open(out).width > 200 and str(out) in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: There is no slot 3: this model's slots are 0 to 2"):
        main(["edit", str(run), *paths, "--drop", "3"])
    with pytest.raises(SystemExit, match="error: .*none.png cannot be read as a picture"):
        main(["edit", str(run), paths[0], str(tmp_path / "none.png")])
    (checkpoint,) = run.glob("lightning_logs/version_0/checkpoints/*.ckpt")
    images = load_images(paths, config)
    same, other = edit(load_model(checkpoint)[0], images), edit(model, images)
    assert torch.equal(same.before, other.before) and torch.equal(same.masks, other.masks)


@pytest.mark.slow
def test_a_run_of_slot_diffusion_is_edited_as_a_user_does(train, tmp_path, capsys):
    """Also one whose weights were averaged: the picture comes from the averages."""
    small = "experiment.diffusion={channels:[8,16],num_layers:1,num_heads:2}"
    train("vqvae_clevrtex_c4", "experiment.vae.dim=4")
    run = train("slotdiffusion_clevrtex", "experiment.vae.dim=4", small, "+msf/ema=diffusion")
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path in paths:
        Image.effect_noise((48, 40), 60).convert("RGB").save(path)
    main(["edit", str(run), *paths, "--swap", "0:1", "--drop", "1", "--out", str(tmp_path / "edit.png")])
    assert Image.open(tmp_path / "edit.png").width > 200
    (path,) = run.glob("lightning_logs/version_0/checkpoints/*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    assert set(checkpoint["averaging"]["weights"]) < set(checkpoint["state_dict"])
    assert not any(name.startswith("models.guidance") for name in checkpoint["averaging"]["weights"])
