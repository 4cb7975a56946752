"""Trainings whose frozen parts look at each image once: the same losses, and no entry of another model or image."""

import hydra
import numpy as np
import pytest
import torch
from hydra import initialize_config_module
from ocl.cli.train import build_model_from_config
from ocl.cli.train import train as train_config
from ocl.combined_model import CombinedModel

import ocl_msf
from ocl_msf.cli import main
from ocl_msf.data import cache
from ocl_msf.data.lmdb import write_lmdb
from ocl_msf.data.shards import Conversion, encode_array
from ocl_msf.data.synthetic.scenes import make_scenes
from ocl_msf.guidance import FrozenGuidance

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]

TINY = [
    "+msf/preset=cpu",
    "dataset.batch_size=2",
    "dataset.num_workers=0",
    "experiment.pretraining={steps:1,warmup_steps:0,anneal_steps:1,validate_every:1,learning_rate:1e-3,clip_norm:1}",
    "experiment.training={steps:4,warmup_steps:0,validate_every:4,learning_rate:1e-3,clip_norm:0.02}",
    "experiment.vae={dim:8,hidden_dim:8}",
    "experiment.slots={number:3,dim:8}",
    "experiment.encoder.dim=4",
    "experiment.decoder={dim:16,num_layers:1,num_heads:2}",
    "experiment.image_size=32",
    "trainer.num_sanity_val_steps=0",
    "+trainer.logger=false",
    "trainer.limit_val_batches=1",
    "seed=0",
]
TENSOR = "{_target_:torchvision.transforms.ToTensor},{_target_:torchvision.transforms.Normalize,mean:[0.5],std:[0.5]}"


def behind(transform):
    """The override that puts a transform of torchvision behind those of images."""
    added = f"{{_target_:torchvision.transforms.{transform}}}"
    return f"experiment.image_transform.transforms=[{TENSOR},{added}]"


FLIP = behind("RandomHorizontalFlip")


def encode_video(number):
    """Noise, and boxes."""
    rng = np.random.default_rng(number)
    video = rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    arrays = {"video": video, "segmentations": np.zeros((9, 32, 32, 1), np.uint8)}
    arrays["instance_bbox"] = np.tile(np.float32([0.1, 0.1, 0.5, 0.5]), (9, 10, 1))
    return f"{number:07d}", {f"{name}.npy.gz": encode_array(array) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_scenes(folder / "raw", 8, size=(48, 36), workers=1)
    for name, form in (("clevrtex", "webdataset"), ("lmdb", "lmdb")):
        options = ["--splits", "train=:6", "val=6:", "--size", "32", "--workers", "1", "--format", form, "--name", name]
        main(["convert", "clevrtex", str(folder / "raw"), str(folder), *options])
    write_lmdb(folder / "movi_c", Conversion({}, {"train": range(4), "val": range(8, 10)}, encode_video), workers=1)
    return folder


@pytest.fixture
def train(prefix, tmp_path, monkeypatch):
    """Train; returns the losses of all steps, and how many images the guidance encoded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATASET_PREFIX", str(prefix))
    losses, encoded = [], []
    step, encode = CombinedModel.training_step, FrozenGuidance._encode

    def record_loss(self, *arguments):
        losses.append(step(self, *arguments))
        return losses[-1]

    def record_images(self, image):
        encoded.append(len(image))
        return encode(self, image)

    monkeypatch.setattr(CombinedModel, "training_step", record_loss)
    monkeypatch.setattr(FrozenGuidance, "_encode", record_images)

    def fit(leaf, *overrides):
        losses.clear(), encoded.clear()
        train_config(hydra.compose("training_config", overrides=[f"+experiment=msf/{leaf}", *TINY, *overrides]))
        return [x.item() for x in losses], sum(encoded)

    with initialize_config_module("configs", version_base="1.1"):
        yield fit


@pytest.fixture
def vae(train, tmp_path):
    """Makes a checkpoint of stage 1 with random weights."""

    def make(leaf, seed=0):
        config = hydra.compose("training_config", overrides=[f"+experiment=msf/{leaf}", *TINY])
        torch.manual_seed(seed)
        torch.save({"state_dict": build_model_from_config(config).state_dict()}, tmp_path / f"{seed}.pt")
        return f"experiment.vae_checkpoint={tmp_path}/{seed}.pt"

    return make


CACHE = ["+msf/cache=codes", "experiment.cache_folder=cache"]


@pytest.mark.parametrize("data, transforms", [("clevrtex", []), ("lmdb", [FLIP])])
def test_losses_are_those_without_a_cache(train, vae, data, transforms, tmp_path):
    """The first training encodes each image once, and once flipped, the second none but those of the validation."""
    chosen = [vae("vqvae_clevrtex"), f"dataset.name={data}", *transforms]
    expected, encoded = train("slate_clevrtex", *chosen)
    assert len(expected) == 4 and encoded == 4 * 2 + 2
    first, encoded = train("slate_clevrtex", *chosen, *CACHE)
    assert encoded == 1 + 6 * (1 + len(transforms)) + 2  # one tells how large the records are
    again, encoded = train("slate_clevrtex", *chosen, *CACHE)
    assert encoded == 2
    assert first == again
    np.testing.assert_allclose(first, expected, rtol=1e-6)
    assert len([*tmp_path.glob("cache/codes-*/index.npz")]) == 1


def test_frames_of_videos_are_found_in_any_window(train, vae):
    chosen = [vae("vqvae_movi_c"), "experiment.window=3"]
    expected, _ = train("steve_movi_c", *chosen)
    cached, encoded = train("steve_movi_c", *chosen, *CACHE)
    assert encoded == 1 + 4 * 9 + 2 * 9
    np.testing.assert_allclose(cached, expected, rtol=1e-6)


def test_a_changed_vae_never_meets_an_old_cache(train, vae, tmp_path):
    first = vae("vqvae_clevrtex")
    train("slate_clevrtex", first, *CACHE)
    second = vae("vqvae_clevrtex", 1)
    _, encoded = train("slate_clevrtex", second, *CACHE)
    assert encoded == 1 + 6 + 2
    train("slate_clevrtex", second, *CACHE, "experiment.quantizer.temperature=7.0")
    assert len([*tmp_path.glob("cache/*")]) == 3


def test_a_trained_model_needs_no_cache(make_run, monkeypatch):
    monkeypatch.delenv("DATASET_PREFIX", raising=False)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    slots = [ocl_msf.load(make_run("slate_clevrtex", *chosen))(image).slots for chosen in ([], ["+msf/cache=codes"])]
    assert torch.equal(*slots)


def test_an_interrupted_pass_goes_on(train, vae, monkeypatch):
    checkpoint = vae("vqvae_clevrtex")
    monkeypatch.setattr(cache, "ROWS", 2)
    with monkeypatch.context() as patch:
        compact, calls = FrozenGuidance.compact, []

        def interrupt(self, image):
            calls.append(image)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return compact(self, image)

        patch.setattr(FrozenGuidance, "compact", interrupt)
        with pytest.raises(BaseException):  # noqa: B017  Lightning makes an exit of it
            train("slate_clevrtex", checkpoint, *CACHE)
    _, encoded = train("slate_clevrtex", checkpoint, *CACHE)
    assert encoded == 1 + 2 + 2  # two of three batches were kept


def test_what_cannot_be_cached_is_refused(train, vae, monkeypatch, tmp_path):
    checkpoint = vae("vqvae_clevrtex")
    with pytest.raises(ValueError, match="RandomCrop makes other images"):
        train("slate_clevrtex", checkpoint, behind("RandomCrop,size:32,padding:4"), *CACHE)
    with pytest.raises(ValueError, match="random in another way than by flips"):
        train("slate_clevrtex", checkpoint, behind("ColorJitter,brightness:0.5"), *CACHE)
    with pytest.raises(ValueError, match="before quantisation"):
        train("slate_clevrtex", checkpoint, "models.guidance.quantized=false", *CACHE)
    with pytest.raises(ValueError, match=r"no feature_extractor.vit .* \+msf/cache=codes"):
        train("slate_clevrtex", checkpoint, "+msf/cache=features")
    monkeypatch.setattr("ocl_msf.training.cache.bytes_left", lambda folder: 100)
    with pytest.raises(ValueError, match="only 0.0 MiB are free .* experiment.cache_folder"):
        train("slate_clevrtex", checkpoint, *CACHE, "experiment.cache_folder=full")
    assert not (tmp_path / "full").exists()


def test_tokens_of_the_vit_are_kept_in_half_precision(train, vae):
    vit = ["experiment.encoder.vit=vit_tiny_patch16_224", "experiment.encoder.pretrained=false"]
    chosen = [vae("vqvae_clevrtex"), *vit]
    expected, _ = train("slate_clevrtex", *chosen)
    cached, _ = train("slate_clevrtex", *chosen, "+msf/cache=features", "experiment.cache_folder=cache")
    np.testing.assert_allclose(cached, expected, rtol=1e-3)


def test_an_image_is_found_by_its_content_alone(tmp_path):
    images = torch.rand(5, 3, 4, 4)
    writer = cache.CacheWriter(tmp_path, cache.record_type({"codes": ("uint16", (3,))}))
    codes = np.arange(15).reshape(5, 3) + 60000
    writer.add([cache.digest(x) for x in images[:2]], {"codes": codes[:2]})
    writer.flush()
    assert not cache.is_complete(tmp_path)
    writer.add([cache.digest(x) for x in images[2:]], {"codes": codes[2:]})
    writer.flush()
    cache.finish(tmp_path)
    assert cache.is_complete(tmp_path)
    add = cache.AddCached(tmp_path)
    for image, expected in zip(images, codes):
        assert add({"image": image, "__key__": "a"})["codes"].tolist() == expected.tolist()
    assert add({"image": images[[3, 1]], "__key__": "a"})["codes"].tolist() == codes[[3, 1]].tolist()
    with pytest.raises(ValueError, match="sample b is not in the cache"):
        add({"image": images[0].nextafter(torch.tensor(2.0)), "__key__": "b"})
