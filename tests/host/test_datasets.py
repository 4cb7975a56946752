import gzip
import io
import itertools
import pickle
import random
import sys
import tarfile
import types

import fsspec
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from ocl._loader.ranks import Pass
from ocl._loader.shards import share_of_reader
from ocl.data_decoding import decode_field
from ocl.datasets import (
    DummyDataModule,
    ShardError,
    WebdatasetDataModule,
    collate_with_autopadding,
    collate_with_batch_size,
)
from ocl.transforms import (
    DecodeRandomStridedWindow,
    Filter,
    Map,
    SampleConsecutive,
    SampleSlices,
    SimpleTransform,
    SplitConsecutive,
    VideoDecoder,
)
from PIL import Image


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_shards(folder, counts):
    """Write shards with the given numbers of samples, keys count up from 0; return their brace expression."""
    key = 0
    for shard, count in enumerate(counts):
        files = {f"{key + i:04d}.x.npy": npy(np.full(2, key + i)) for i in range(count)}
        (folder / f"shard-{shard:06d}.tar").write_bytes(tar(files))
        key += count
    return str(folder / f"shard-{{000000..{len(counts) - 1:06d}}}.tar")


def same(sample):
    return sample


def data_module(shards, fields=("x",), transforms=(), **options):
    named = {str(index): transform for index, transform in enumerate(transforms)}
    named["z"] = Map(same, fields=fields, batch_transform=False)
    options = {"num_workers": 0, "train_transforms": named, "eval_transforms": named, **options}
    return WebdatasetDataModule(train_shards=shards, val_shards=shards, **options)


def keys_of(batches):
    return [key for batch in batches for key in batch["__key__"]]


def transformed(tmp_path, samples, *transforms):
    """Send samples (dicts of arrays) through transforms."""
    files = {f"{key}.{field}.npy": npy(v) for key, s in samples.items() for field, v in s.items()}
    (tmp_path / "samples.tar").write_bytes(tar(files))
    fields = {field for sample in samples.values() for field in sample}
    return list(data_module(str(tmp_path / "samples.tar"), fields, transforms).val_data_iterator())


# --------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("counts, workers", [((5, 4, 7), 0), ((5, 4, 7), 2), ((3,), 3)])
def test_evaluation_sees_every_sample_once(tmp_path, counts, workers):
    total = sum(counts)
    shards = write_shards(tmp_path, counts)
    loader = data_module(shards, batch_size=4, num_workers=workers, val_size=total).val_dataloader()
    batches = list(loader)
    assert sorted(keys_of(batches)) == [f"{i:04d}" for i in range(total)]
    assert len(batches) <= len(loader) <= -(-total // 4) + max(0, workers - 1)
    for batch in batches:
        assert batch["x"].tolist() == [[int(key)] * 2 for key in batch["__key__"]]


def test_training_has_as_many_full_batches_as_its_length_says(tmp_path):
    shards = write_shards(tmp_path, (5, 5, 5, 5))
    options = {"batch_size": 4, "train_size": 20}
    assert len(list(data_module(shards, **options).train_dataloader())) == 5
    loader = data_module(shards, num_workers=2, **options).train_dataloader()
    batches = list(loader)  # each worker has only two full batches, the rest of both makes the fifth
    assert [batch["batch_size"] for batch in batches] == [4] * 5 == [4] * len(loader)
    assert len(set(keys_of(batches))) == 20
    for size in (20, None):
        with pytest.raises(ShardError, match="no full batch of 21 training samples: there are 20"):
            list(data_module(shards, num_workers=2, batch_size=21, train_size=size).train_dataloader())


def test_training_needs_a_batch_for_every_rank(tmp_path, monkeypatch):
    options = {"batch_size": 8, "train_size": 15}
    shards = write_shards(tmp_path, (5, 5, 5))
    assert len(data_module(shards, **options).train_dataloader()) == 1
    for module in ("ocl._loader.ranks", "ocl._loader.loaders"):
        monkeypatch.setattr(f"{module}.world_size", lambda: 2)
    with pytest.raises(ShardError, match="8 training samples for each of 2 processes: there are 15"):
        data_module(shards, **options).train_dataloader()


def test_an_evaluation_of_nothing_is_an_error(tmp_path):
    shards = write_shards(tmp_path, (2,))
    with pytest.raises(ShardError, match="no sample to evaluate: val_size is 0"):
        data_module(shards, val_size=0).val_dataloader()
    for size in (2, None):
        loader = data_module(shards, transforms=[Filter(never, ["x"])], val_size=size).val_dataloader()
        with pytest.raises(ShardError, match="no sample to evaluate.*filters keep none"):
            list(loader)


def never(x):
    return False


def test_training_order_follows_the_seed(tmp_path):
    shards = write_shards(tmp_path, (6, 6, 6))

    def two_epochs(seed, **options):
        torch.manual_seed(seed)
        loader = data_module(shards, batch_size=3, **options).train_dataloader()
        return keys_of(loader), keys_of(loader)

    first, second = two_epochs(1)
    assert (first, second) == two_epochs(1) != two_epochs(2)
    assert sorted(first) == sorted(second) and first != second
    ordered, _ = two_epochs(1, shuffle_train=False)
    assert all(ordered[i : i + 6] == sorted(ordered[i : i + 6]) for i in range(0, 18, 6))


def test_declared_sizes_are_optional_and_missing_splits_are_not(tmp_path):
    module = data_module(write_shards(tmp_path, (3,)), batch_size=2)
    assert [batch["batch_size"] for batch in module.train_dataloader()] == [2]
    with pytest.raises(TypeError):
        len(module.train_dataloader())
    with pytest.raises(ValueError, match="test_shards"):
        module.test_dataloader()
    with pytest.raises(ValueError, match="train_shards"):
        WebdatasetDataModule()


def test_ranks_and_workers_share_all_samples():
    for n_shards in range(1, 9):
        for world_size, n_workers in [(1, 3), (2, 1), (2, 3), (4, 2)]:
            read = [[] for _ in range(world_size)]
            for rank, worker in itertools.product(range(world_size), range(n_workers)):
                current = Pass(seed=0, rank=rank, world_size=world_size)
                for shard, part, n_parts in share_of_reader(n_shards, current, worker, n_workers):
                    read[rank] += [(shard, sample) for sample in range(part, 10, n_parts)]
            assert sorted(sum(read, [])) == [(s, i) for s in range(n_shards) for i in range(10)]
            if world_size > 1:
                assert max(map(len, read)) - min(map(len, read)) <= 2 * n_workers


def test_lightning_runs_every_loop_on_the_loaders(tmp_path):
    class Keys(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.seen = {"train": [], "val": [], "predict": []}
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch, batch_idx):
            self.seen["train"] += batch["__key__"]
            return self.weight

        def validation_step(self, batch, batch_idx):
            self.seen["val"] += batch["__key__"]

        def predict_step(self, batch, batch_idx):
            self.seen["predict"] += batch["__key__"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = data_module(write_shards(tmp_path, (5, 5, 5, 5)), batch_size=4, train_size=20, val_size=20)
    module.num_workers = 2
    model = Keys()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
    )
    trainer.fit(model, datamodule=module)
    trainer.predict(model, dataloaders=module.val_dataloader())
    assert len(model.seen["train"]) == 20
    assert sorted(model.seen["val"]) == sorted(model.seen["predict"]) == [f"{i:04d}" for i in range(20)]


# ---------------------------------------------------------------------------------------------- damage


def test_a_shard_cut_off_anywhere_is_an_error_that_names_it(tmp_path):
    files = {f"{key}.{field}.npy": npy(np.arange(100)) for key in range(2) for field in ("x", "y")}
    whole, path = tar(files), tmp_path / "cut.tar"
    end = 4 * (512 + 1024)  # four files, each with a header; the end-of-archive mark follows
    samples = data_module(str(path)).val_data_iterator()
    for length in [*range(0, end + 1, 256), end + 511]:
        path.write_bytes(whole[:length])
        with pytest.raises(ShardError, match="cut.tar"):
            list(samples)
    path.write_bytes(whole[: end + 512])  # lacks nothing but padding
    assert len(list(samples)) == 2


@pytest.mark.parametrize("url", ["file", "memory"])
def test_streams_are_checked_like_files(tmp_path, url):
    whole = tar({f"{key}.x.npy": npy(np.arange(500)) for key in range(3)})
    root = tmp_path.as_uri() if url == "file" else "memory://stream"
    for name, data in [("whole", whole), ("cut", whole[:9000]), ("page", b"<html>" + b" " * 5000)]:
        with fsspec.open(f"{root}/{name}.tar", "wb") as file:
            file.write(data)
    assert len(list(data_module(f"{root}/whole.tar").val_data_iterator())) == 3
    for name in ("cut", "page"):
        with pytest.raises(ShardError, match=f"{name}.tar"):
            list(data_module(f"{root}/{name}.tar").val_data_iterator())
    with pytest.raises(FileNotFoundError, match="absent.tar"):
        list(data_module(f"{root}/absent.tar").val_data_iterator())


def test_joined_shards_and_repeated_keys_are_errors(tmp_path):
    shard = tar({"0.x.npy": npy(np.zeros(1))})
    (tmp_path / "joined.tar").write_bytes(shard + shard)
    with pytest.raises(ShardError, match="joined.tar.*after the end-of-archive"):
        list(data_module(str(tmp_path / "joined.tar")).val_data_iterator())
    (tmp_path / "twice.tar").write_bytes(tar({"a/0.x.npy": b"", "b/0.x.npy": b""}))
    with pytest.raises(ShardError, match="twice.tar.*`0.x.npy` occurs twice"):
        list(data_module(str(tmp_path / "twice.tar")).val_data_iterator())


DAMAGED = {
    "x.npy": npy(np.arange(9))[:-1],
    "x.npy.gz": gzip.compress(npy(np.arange(9)))[:-9],
    "x.png": png(np.zeros((40, 40, 3), np.uint8))[:60],
    "x.json": b"{",
    "x.pickle": pickle.dumps(3),
}


@pytest.mark.parametrize("name, workers", [("x.npy", 1), *((name, 0) for name in DAMAGED)])
def test_a_damaged_field_is_named_with_its_sample_and_shard(tmp_path, name, workers):
    (tmp_path / "bad.tar").write_bytes(tar({f"0042.{name}": DAMAGED[name]}))
    module = data_module(str(tmp_path / "bad.tar"), num_workers=workers, batch_size=1)
    with pytest.raises(ShardError, match=f"`{name}` of sample `0042` in shard `.*bad.tar`"):
        list(module.val_dataloader())


def test_missing_shards_are_reported_before_the_first_sample(tmp_path):
    shards = [write_shards(tmp_path, (3,)), str(tmp_path / "gone-{0..1}.tar")]
    with pytest.raises(FileNotFoundError, match="2 of 3 shards do not exist, .*gone-0.tar"):
        next(iter(data_module(shards).val_data_iterator()))


def exhausted(sample):
    return next(iter(()))


def test_a_function_cannot_end_the_epoch_by_accident(tmp_path):
    module = data_module(write_shards(tmp_path, (3,)), transforms=[SimpleTransform({"x": exhausted}, False)])
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(module.val_data_iterator())


# --------------------------------------------------------------------------------------------- samples


def test_fields_are_chosen_by_prefix_and_decoded_by_extension(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    tensor, arrays = io.BytesIO(), io.BytesIO()
    torch.save(torch.arange(2), tensor)
    np.savez(arrays, a=np.arange(3))
    files = {
        "dir/7.image.PNG": png(image),
        "dir/7.image_gray.png": png(image[..., 0]),
        "dir/7.box.xy.npy.gz": gzip.compress(npy(np.ones(2))),
        "dir/7.npz": arrays.getvalue(),
        "dir/7.label.cls": b"12",
        "dir/7.t.pt": tensor.getvalue(),
        "dir/7.clip.mp4": b"raw",
        "dir/7._note.txt": b"note",
        "dir/7.other.json": b"[1]",
        "dir/README": b"",
        "dir/8.label.cls": b"3",
    }
    (tmp_path / "s.tar").write_bytes(tar(files))
    fields = ("image", "box", "npz", "label", "t", "clip")
    sample, last = data_module(str(tmp_path / "s.tar"), fields).val_data_iterator()
    assert last == {"__key__": "8", "label": 3}
    assert np.array_equal(sample["image"], image) and sample["image_gray"].shape == (4, 5, 3)
    assert sample["box.xy"].tolist() == [1, 1] and sample["npz"]["a"].tolist() == [0, 1, 2]
    assert sample["label"] == 12 and sample["t"].tolist() == [0, 1]
    assert sample["clip.mp4"].read() == b"raw" and sample["_note.txt"] == "note"
    assert sample["__key__"] == "7" and "other" not in sample
    assert decode_field("x.txt.gz", gzip.compress(b"text")) == ("x", "text")


@pytest.mark.parametrize("extension", ["png", "pgm"])
def test_grey_pictures_of_16_bits_keep_their_upper_8(extension):
    """A ramp of them is one, not black and then white; those of a picture of 8 bits in 16 are the picture."""
    ramp = np.arange(65536).astype(np.uint16).reshape(256, 256)

    def decoded(pixels):
        header = f"P5 {pixels.shape[1]} {pixels.shape[0]} 65535\n".encode()
        content = png(pixels) if extension == "png" else header + pixels.astype(">u2").tobytes()
        return decode_field(f"x.{extension}", content)[1]

    np.testing.assert_array_equal(decoded(ramp), np.repeat(ramp[..., None] // 256, 3, -1))
    grey = np.arange(256, dtype=np.uint16)[None]
    for deep in (grey * 256, grey * 257):
        np.testing.assert_array_equal(decoded(deep), decode_field("x.png", png(grey.astype(np.uint8)))[1])
    fractions = io.BytesIO()
    Image.new("F", (2, 2)).save(fractions, "TIFF")
    with pytest.raises(ValueError, match="32 bits"):
        decode_field("x.png", fractions.getvalue())


def test_pictures_keep_the_pixels_as_they_are_stored():
    """Masks beside them are not turned either, whatever EXIF data say."""
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    for orientation in range(10):
        exif, file = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(file, "PNG", exif=exif)
        assert np.array_equal(decode_field("x.png", file.getvalue())[1], pixels)


def test_equal_keys_in_neighbouring_shards_stay_apart(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.tar").write_bytes(tar({"0.x.npy": npy(np.zeros(1))}))
    samples = list(data_module(str(tmp_path / "{a,b}.tar")).val_data_iterator())
    assert [sample["__key__"] for sample in samples] == ["0", "0"]


def test_pipelines_can_be_sent_to_new_processes(tmp_path):
    transforms = [SampleSlices(1, ["x"], shuffle_buffer_size=5), Filter(np.isfinite, fields=["x"])]
    module = data_module(write_shards(tmp_path, (6,)), transforms=transforms, batch_size=2)
    pipe = module.train_dataloader().dataset
    torch.manual_seed(0)
    expected = keys_of(pipe)
    torch.manual_seed(0)
    assert keys_of(pickle.loads(pickle.dumps(pipe))) == expected != []


def test_slices_depend_on_key_and_seed_only(tmp_path):
    videos = {key: {"x": np.arange(14).reshape(7, 2), "y": np.ones(7)} for key in ("3", "cat")}
    slices = transformed(tmp_path, videos, SampleSlices(2, ["x"], seed=5, shuffle_buffer_size=1))
    frames = random.Random(3 + 5).sample(range(7), 2)
    assert [s["__key__"] for s in slices[:2]] == [f"3_{frame}" for frame in frames]
    assert [s["x"].tolist() for s in slices[:2]] == [[2 * frame, 2 * frame + 1] for frame in frames]
    assert all(s["y"].shape == (7,) for s in slices)
    again = transformed(tmp_path, videos, SampleSlices(2, ["x"], seed=5, shuffle_buffer_size=9))
    assert sorted(s["__key__"] for s in again) == sorted(s["__key__"] for s in slices)
    with pytest.raises(ValueError, match="'3'.*only 7"):
        transformed(tmp_path, videos, SampleSlices(8, ["x"]))


def test_slices_per_epoch_go_round_all_frames(tmp_path, monkeypatch):
    transform = SampleSlices(3, ["x"], per_epoch=True, shuffle_buffer_size=1)
    videos = {"1": {"x": np.arange(7)}}
    monkeypatch.delenv("EPOCH", raising=False)
    with pytest.raises(RuntimeError, match="SetEpochEnvironmentVariable"):
        transformed(tmp_path, videos, transform)
    epochs = []
    for epoch in range(6):
        monkeypatch.setenv("EPOCH", str(epoch))
        epochs.append([int(s["x"]) for s in transformed(tmp_path, videos, transform)])
    for round_of_three in (epochs[:3], epochs[3:]):
        assert all(len(frames) == 3 for frames in epochs) and set(sum(round_of_three, [])) == set(range(7))
    assert epochs[:3] != epochs[3:]


def test_windows_of_videos(tmp_path):
    videos = {str(key): {"x": np.arange(9), "y": np.arange(9)} for key in range(30)}
    split = SplitConsecutive(4, ["x"], shuffle_buffer_size=1, drop_last=False)
    windows = transformed(tmp_path, videos, split)
    assert [(s["__key__"], s["x"].tolist()) for s in windows[:3]] == [
        ("0_0", [0, 1, 2, 3]),
        ("0_1", [4, 5, 6, 7]),
        ("0_2", [8]),
    ]
    clips = transformed(tmp_path, videos, SampleConsecutive(3, ["x", "y"]))
    assert {tuple(s["x"].tolist()) for s in clips} == {(0, 1, 2), (3, 4, 5), (6, 7, 8)}
    assert all(np.array_equal(s["x"], s["y"]) for s in clips) and len(clips) == 30
    with pytest.raises(ValueError, match="9 frames, too few"):
        transformed(tmp_path, videos, SampleConsecutive(10, ["x"]))


def test_encoded_videos_are_decoded_in_part(tmp_path, monkeypatch):
    class Reader:
        def __init__(self, stream):
            self.frames = np.frombuffer(stream.read(), np.uint8).reshape(-1, 1, 1, 3)

        def __len__(self):
            return len(self.frames)

        def get_batch(self, indices):
            return types.SimpleNamespace(asnumpy=lambda: self.frames[indices])

    monkeypatch.setitem(sys.modules, "decord", types.SimpleNamespace(VideoReader=Reader))
    frames = np.repeat(np.arange(11, dtype=np.uint8), 3)
    files = {f"{key}.clip.mp4": frames.tobytes() for key in range(20)}
    (tmp_path / "videos.tar").write_bytes(tar(files))

    def decode(transform):
        module = data_module(str(tmp_path / "videos.tar"), ("clip",), [transform])
        samples = module.val_data_iterator()
        return [(s["decoded_indices"].tolist(), s["clip"][:, 0, 0, 0].tolist()) for s in samples]

    assert decode(VideoDecoder(["clip.mp4"], stride=5)) == [([0, 5, 10], [0, 5, 10])] * 20
    windows = decode(DecodeRandomStridedWindow(2, ["clip.mp4"], stride=2))
    assert {tuple(indices) for indices, _ in windows} == {(0, 2), (4, 6), (8, 10)}
    assert all(indices == values for indices, values in windows)


# ------------------------------------------------------------------------------------------- collation


def test_autopadding_pads_at_the_end_of_every_axis():
    samples = [
        {"__key__": "a", "m": np.ones((2, 3), np.uint8), "nested": {"n": 1}, "pair": [1.5, "s"]},
        {"__key__": "b", "m": np.ones((1, 4), np.uint8), "nested": {"n": 2}, "pair": [2.5, "t"]},
    ]
    batch = collate_with_autopadding(samples)
    assert batch["__key__"] == ["a", "b"] and batch["batch_size"] == batch["nested"]["batch_size"] == 2
    assert batch["m"].shape == (2, 2, 4) and batch["m"].dtype == torch.uint8
    assert batch["m"].sum((1, 2)).tolist() == [6, 4] and batch["m"][0, :2, :3].all()
    assert batch["pair"][0].tolist() == [1.5, 2.5] and batch["pair"][1] == ["s", "t"]
    with pytest.raises(RuntimeError):
        collate_with_batch_size(samples)
    with pytest.raises(ValueError, match="'a' and 'b'.*only one of them has .*'extra'"):
        collate_with_autopadding([samples[0], {**samples[1], "extra": 1}])


def test_dummy_data_has_the_declared_types():
    shapes = {"image": (4, 5, 3), "mask": (3, 4, 5, 1), "id": (2,)}
    types_ = {"image": "image", "mask": "mask", "id": "categorical_300_400"}
    module = DummyDataModule(shapes, types_, batch_size=2, train_size=5)
    loader = module.train_dataloader()
    batches = list(loader)
    assert [batch["batch_size"] for batch in batches] == [2, 2, 1] and len(loader) == 3
    assert batches[0]["image"].dtype == torch.uint8 and batches[0]["image"].shape == (2, 4, 5, 3)
    assert batches[0]["mask"].sum(1).eq(1).all()
    assert batches[0]["id"].min() >= 300 and batches[0]["id"].max() < 400
    with pytest.raises(ValueError, match="four axes"):
        DummyDataModule({"m": (3, 4)}, {"m": "mask"}).train_dataloader()
