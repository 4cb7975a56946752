import pytest

from ocl_msf.data.catalog import ARGUMENTS, OCLF_LAYOUTS, conversion_command
from ocl_msf.data.convert import DATASETS


def test_the_table_names_what_the_converters_make():
    names = {}
    for dataset, converter in DATASETS.items():
        for variant in getattr(converter, "VARIANTS", [""]):
            command = f"{dataset} --variant {variant}" if variant else dataset
            names[command] = converter.folder_name(*[variant] if variant else [])
    for name, arguments in ARGUMENTS.items():
        assert name in [made for command, made in names.items() if command.startswith(arguments)]
        assert "--variant" not in arguments or names[arguments] == name
    assert set(names.values()) == set(ARGUMENTS), "ARGUMENTS of ocl_msf/data/catalog.py names all that is made"
    assert set(ARGUMENTS) >= set(OCLF_LAYOUTS)


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
