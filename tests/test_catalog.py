from argparse import Namespace

import pytest

from ocl_msf.data.catalog import ARGUMENTS, OCLF_LAYOUTS, conversion_command
from ocl_msf.data.raw import clevrtex, coco, movi, openimages, voc

CONVERTERS = {"clevrtex": clevrtex, "coco": coco, "movi": movi, "openimages": openimages, "voc": voc}


def test_the_table_names_what_the_converters_make():
    names = {}
    for dataset, converter in CONVERTERS.items():
        for variant in getattr(converter, "VARIANTS", [None]):
            names.setdefault(converter.folder_name(Namespace(variant=variant)), []).append((dataset, variant))
    for name, arguments in ARGUMENTS.items():
        dataset, *variant = arguments.split(" --variant ")
        assert any(dataset == made[0] and variant in ([], [made[1]]) for made in names[name])
    assert set(names) == set(ARGUMENTS) >= set(OCLF_LAYOUTS)


@pytest.mark.parametrize(
    "name, command",
    [
        ("clevrtex", "ocl-msf convert clevrtex RAW data"),
        ("clevrtex_outd", "ocl-msf convert clevrtex RAW data --variant outd"),
        ("coco2017", "ocl-msf convert coco RAW data --oclf-layout"),
        ("voc2012", "ocl-msf convert voc RAW data --variant trainaug --oclf-layout"),
        ("other", "ocl-msf convert DATASET RAW data --name other"),
    ],
)
def test_the_command_that_makes_a_data_set(name, command):
    assert conversion_command(name, "data") == command
