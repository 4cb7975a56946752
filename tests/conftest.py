import pytest


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """DATASET_PREFIX with a ClevrTex of 12 little scenes: 4 to validate, 8 to train."""
    from ocl_msf.data.convert import main
    from ocl_msf.data.synthetic.scenes import make_scenes

    folder = tmp_path_factory.mktemp("shards")
    make_scenes(folder / "raw", 12, size=(96, 72), workers=1)
    raw = str(folder / "raw" / "clevrtex_full")
    main(["clevrtex", raw, str(folder), "--splits", "val=0:4", "train=4:", "--size", "64", "--workers", "1"])
    return folder
