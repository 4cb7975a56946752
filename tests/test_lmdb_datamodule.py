import subprocess
import sys

import numpy as np
import pytest
import torch
from ocl.transforms import Filter, Map, SimpleTransform

from ocl_msf.data import LMDBDataModule, ShardDataModule
from ocl_msf.data.convert import main
from ocl_msf.data.scenes import make_scenes


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """23 scenes to train and 7 to validate, in both formats."""
    folder = tmp_path_factory.mktemp("prefix")
    make_scenes(folder / "raw", 30, size=(32, 24), workers=1)
    options = ["--splits", "train=:23", "val=23:", "--size", "8", "--workers", "1"]
    for form in ("lmdb", "webdataset"):
        main(["clevrtex", str(folder / "raw"), str(folder), *options, "--format", form])
    return str(folder)


def as_they_are(sample):
    return sample


def identity(value):
    return value


def transforms():
    fields = ("image", "mask", "visibility")
    return {"all": Map(as_they_are, fields=fields, batch_transform=False)}


def module(prefix, cls=LMDBDataModule, **options):
    name = "clevrtex_lmdb" if cls is LMDBDataModule else "clevrtex"
    options = {"batch_size": 4, "num_workers": 0, **options}
    return cls(prefix, name, transforms(), transforms(), **options)


def keys(loader):
    return [batch["__key__"] for batch in loader]


def test_both_formats_hold_the_same(prefix):
    ours, theirs = (
        {
            key: {field: batch[field][i] for field in ("image", "mask", "visibility")}
            for batch in module(prefix, cls).val_dataloader()
            for i, key in enumerate(batch["__key__"])
        }
        for cls in (LMDBDataModule, ShardDataModule)
    )
    assert set(ours) == set(theirs) == {f"{i:06d}" for i in range(23, 30)}
    for key, sample in ours.items():
        for field, value in sample.items():
            assert value.dtype == theirs[key][field].dtype and torch.equal(value, theirs[key][field])


def test_batches_have_the_layout_of_the_hosts(prefix):
    batches = list(module(prefix).val_dataloader())
    assert [batch["batch_size"] for batch in batches] == [4, 3] and len(module(prefix).val_dataloader()) == 2
    assert batches[1]["image"].shape == (3, 8, 8, 3) and batches[1]["image"].dtype == torch.uint8
    assert batches[1]["mask"].shape == (3, 11, 8, 8, 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(prefix, workers):
    alone, many = (module(prefix, num_workers=n) for n in (0, workers))
    assert keys(alone.val_dataloader()) == keys(many.val_dataloader())
    ours, theirs = alone.train_dataloader(), many.train_dataloader()
    for _ in range(2):
        assert keys(ours) == keys(theirs)
    assert len(ours) == 5


def test_an_epoch_is_a_permutation_of_seed_and_number(prefix):
    loader = module(prefix, batch_size=1).train_dataloader()
    first, second = (sum(keys(loader), []) for _ in range(2))
    assert sorted(first) == sorted(second) == [f"{i:06d}" for i in range(23)]
    assert first != second and first != sorted(first)
    again = module(prefix, batch_size=1).train_dataloader()
    assert [sum(keys(again), []) for _ in range(2)] == [first, second]
    assert sum(keys(module(prefix, batch_size=1, seed=1).train_dataloader()), []) != first
    assert sum(keys(module(prefix, batch_size=1, shuffle_train=False).train_dataloader()), []) == sorted(first)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_samples(prefix, monkeypatch, ranks):
    train, evaluation = [], []
    for rank in range(ranks):
        monkeypatch.setattr("ocl_msf.data.lmdb_datamodule._rank", lambda rank=rank: (rank, ranks))
        data = module(prefix, batch_size=1)
        train.append(sum(keys(data.train_dataloader()), []))
        evaluation += sum(keys(data.val_dataloader()), [])
        assert len(data.train_dataloader()) == len(train[-1]) == 23 // ranks
    assert len(set(sum(train, []))) == len(sum(train, [])) == 23 // ranks * ranks
    assert sorted(evaluation) == [f"{i:06d}" for i in range(23, 30)]


def test_a_pass_goes_on_after_the_batches_that_were_done(prefix):
    data = module(prefix)
    first, second = (keys(data.train_dataloader()) for _ in range(2))
    resumed = module(prefix)
    resumed.load_state_dict({"epoch": 0, "batches": 2})
    loader = resumed.train_dataloader()
    assert keys(loader) == first[2:]
    assert keys(loader) == second


def bright(image):
    return image.mean() > 110


def test_transforms_run_in_the_order_of_their_names_and_may_filter(prefix):
    double = SimpleTransform({"image": _double}, batch_transform=False)
    flip = SimpleTransform({"image": torch.Tensor.float}, batch_transform=True)
    chosen = {"1": Filter(bright, ["image"]), "2": double, "0": flip}
    data = LMDBDataModule(prefix, "clevrtex_lmdb", None, chosen, num_workers=0)
    same = {"a": SimpleTransform({"image": identity}, False)}
    plain = LMDBDataModule(prefix, "clevrtex_lmdb", None, same, num_workers=0)
    (images,) = [batch["image"] for batch in plain.val_dataloader()]
    kept = torch.stack([image for image in images if image.float().mean() > 110])
    assert 0 < len(kept) < len(images)
    (batch,) = data.val_dataloader()
    assert set(batch) == {"__key__", "image", "batch_size"} and batch["image"].dtype == torch.float32
    assert torch.equal(batch["image"], 2 * kept.float())
    with pytest.raises(TypeError):
        len(data.val_dataloader())


def _double(image):
    return image.astype(np.int32) * 2


def test_errors_say_what_to_do(prefix, tmp_path):
    with pytest.raises(ValueError, match="DATASET_PREFIX is not set"):
        LMDBDataModule(None, "clevrtex_lmdb")
    with pytest.raises(ValueError, match=r"convert clevrtex RAW .* --format lmdb"):
        LMDBDataModule(str(tmp_path), "clevrtex_lmdb")
    with pytest.raises(ValueError, match=r"not a \.lmdb file"):
        LMDBDataModule(prefix, "clevrtex")
    with pytest.raises(ValueError, match="no test split, only train, val"):
        module(prefix).test_dataloader()
    depth = {"a": SimpleTransform({"depth": identity}, False)}
    missing = LMDBDataModule(prefix, "clevrtex_lmdb", None, depth, num_workers=0)
    with pytest.raises(KeyError, match="has no depth"):
        list(missing.val_dataloader())


def test_the_package_itself_imports_nothing_heavy():
    script = "import sys, ocl_msf.data; assert not {'torch', 'lmdb', 'numpy', 'ocl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
