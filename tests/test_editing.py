import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import ocl_msf
from ocl_msf.cli import main
from ocl_msf.files import DataError
from ocl_msf.inference.generation import Sampling
from ocl_msf.inference.inputs import read_picture
from ocl_msf.perceptual_grouping import BlockSlotAttentionGrouping
from ocl_msf.results.editing import draw, edit

pytestmark = pytest.mark.needs_host


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def result(slate_run, images):
    return ocl_msf.load(slate_run)(images)


def test_swapped_slots_change_places_and_dropped_ones_are_off(result):
    edited = edit(result, swaps=[(2, 3), (0, 2)], drops=[1])
    first, second = result.slots
    assert torch.equal(edited.slots[0], torch.stack([second[2], first[1], second[3], first[3]]))
    assert torch.equal(edited.slots[1], torch.stack([second[0], second[1], first[0], first[2]]))
    assert edited.parts["is_empty"].tolist() == [[False, True, False, False], [False] * 4]
    assert torch.equal(edit(result).slots, result.slots)


def test_a_swapped_slot_may_be_dropped(result):
    edited = edit(result, swaps=[(0, 1)], drops=[0])
    assert edited.parts["is_empty"][0].tolist() == [True, False, False, False]
    assert torch.equal(edited.slots[1, 1], result.slots[0, 0])


@pytest.mark.parametrize(
    "swaps, drops, message",
    [
        ([(0, 4)], [], "no slot 4: this model's slots are 0 to 3"),
        ([], [-1], "no slot -1"),
        ([(0, 1), (0, 2)], [], "only once"),
        ([], [0, 1, 2, 3], "All 4 slots"),
    ],
)
def test_impossible_edits_are_named(result, swaps, drops, message):
    with pytest.raises(ValueError, match=message):
        edit(result, swaps, drops)


def test_diffusion_draws_an_edited_image_from_the_noise_of_the_original(make_run, images):
    """So only slots make a difference: none swapped changes nothing, all swapped exchanges the images."""
    result = ocl_msf.load(make_run("slotdiffusion_clevrtex", "experiment.vae.dim=4"))(images)
    before = result.reconstruct()
    assert before.shape == (2, 3, 32, 32) and (before[0] - before[1]).abs().max() > 1e-4
    exchanged = edit(result, swaps=[(slot, slot) for slot in range(4)]).reconstruct()
    torch.testing.assert_close(exchanged, before.flip(0), rtol=0, atol=1e-4)
    edited = edit(result, swaps=[(1, 2)], drops=[0])
    left = torch.stack([result.slots[1, 2], *result.slots[0, 2:]])[None]
    expected = result.model.decode({"objects": left}, Sampling())
    torch.testing.assert_close(edited.reconstruct()[:1], expected, rtol=0, atol=1e-4)
    assert not torch.equal(result.reconstruct(seed=1), before)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, 8, 3)])
def test_the_picture_appears_whole(result, sampling, tmp_path):
    draw(result, edit(result, drops=[1]), tmp_path / "new" / "edit.png", sampling)
    width, height = Image.open(tmp_path / "new" / "edit.png").size
    assert width / 5 == pytest.approx(height / 10)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["edit.png"]


def test_how_codes_are_chosen_is_said(result):
    decoder = result.model.models["decoder"]
    assert Sampling().describe(decoder) == "most probable codes"
    assert Sampling(0.5, 8, 3).describe(decoder) == "sampled codes, temperature 0.5, top 8, seed 3"
    assert Sampling(seed=2).describe(torch.nn.Identity()) == "diffusion, seed 2"


def test_pictures_are_read_as_viewers_show_them(tmp_path):
    """Turned by EXIF data as by Pillow; grey values of 16 bits are not white."""
    noise = Image.effect_noise((9, 7), 90).convert("RGB")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        noise.save(tmp_path / "turned.png", exif=exif)
        ImageOps.exif_transpose(Image.open(tmp_path / "turned.png")).save(tmp_path / "upright.png", exif=b"")
        assert np.array_equal(read_picture(tmp_path / "turned.png"), read_picture(tmp_path / "upright.png"))
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "deep.png"), np.stack([ramp] * 3, -1))
    Image.new("F", (4, 4)).save(tmp_path / "fractions.tiff")
    with pytest.raises(DataError, match="fractions.tiff cannot be read as a picture: pixels have 32 bits"):
        read_picture(tmp_path / "fractions.tiff")


@pytest.mark.parametrize("swap", ["2", "2:x", "1:2:3"])
def test_a_swap_that_is_no_pair_is_explained(swap, capsys):
    with pytest.raises(SystemExit):
        main(["edit", "run", "a.png", "b.png", "--swap", swap])
    assert "such as 2:3" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="error: .*holds no model. Give the folder of a run"):
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
    model = ocl_msf.load(run)
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
    same, other = ocl_msf.load(checkpoint)(paths), model(paths)
    assert torch.equal(same.reconstruct(), other.reconstruct()) and torch.equal(same.scores, other.scores)


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
