"""The documentation: the site that is made of it, its Python, and the notebook."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
import yaml
from matplotlib import pyplot
from mkdocs.commands.build import build
from mkdocs.config import load_config
from PIL import Image
from typer.main import get_command

from ocl_msf.cli import app, main
from ocl_msf.data import open_dataset

pytestmark = [pytest.mark.needs_host, pytest.mark.needs_new_torch]
ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs/slots.ipynb"
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if "```python" in page.read_text(encoding="utf-8")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")  # of the theme, on its future
        build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return folder


def text_of(page):
    return page.read_text(encoding="utf-8")


def test_a_page_of_the_site_loads_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert {"index.html", "tutorial.html", "changelog.html"} <= {page.name for page in pages}
    for page in pages:
        loaded = re.findall(r"<(?:script|img|iframe)[^>]+src=\"?([^\s\">]+)", text_of(page))
        loaded += re.findall(r"<link rel=\"?(?:stylesheet|preconnect|icon)\"?[^>]*href=\"?([^\s\">]+)", text_of(page))
        assert len(loaded) > 2
        assert not [address for address in loaded if "//" in address], page
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//[^)]*|@import[^;]*//[^;]*", text_of(style)), style


def test_links_lead_to_the_pages_that_are_files_elsewhere(site):
    page = text_of(site / "tutorial.html")
    assert 'href="index.html#install"' in page and 'href="slots.ipynb"' in page
    assert (site / "slots.ipynb").read_bytes() == NOTEBOOK.read_bytes()
    assert 'src="scenes.png"' in text_of(site / "index.html") and (site / "scenes.png").is_file()


def test_the_reference_has_every_command_with_its_options(site):
    page = text_of(site / "reference/commands.html")

    def check(command, name):
        assert f">{name}<" in page, name
        for option in (word for parameter in command.params for word in parameter.opts if word.startswith("--")):
            assert option in page
        for part in getattr(command, "commands", {}).values():
            check(part, f"{name} {part.name}")

    check(get_command(app), "ocl-msf")


def test_the_reference_has_every_config_with_its_comment(site):
    page = text_of(site / "reference/configs.html")
    paths = sorted((ROOT / "configs").rglob("*.yaml"))
    for path in paths:
        group = path.parent.relative_to(ROOT / "configs").as_posix().replace("/", "-")
        assert f'id="{group}-{path.stem}"' in page
    assert "Finite scalar quantisation (Mentzer et al., 2024): one scale, no codebook, 8 * 8 * 8 * 8" in page
    assert "msf/variant=NAME</code>; by default <code>msf" in page and "+msf/preset=NAME" in page
    assert page.count("<details") == len(paths)


def test_the_reference_has_what_is_public(site):
    """All parts of models, and of each module that it lists the classes and functions."""
    pages = "".join(text_of(site / f"reference/{name}.html") for name in ("python", "parts", "tools"))
    listed = re.findall(r"^::: ocl_msf\.([\w.]+)$", "".join(map(text_of, (ROOT / "docs/reference").glob("*.md"))), re.M)
    parts = {path.stem for path in (ROOT / "ocl_msf").glob("[!_]*.py")} - {"demo"}
    assert not parts - set(listed), "list them in docs/reference/parts.md"
    for module in listed:
        path = ROOT / "ocl_msf" / f"{module.replace('.', '/')}.py"
        if not path.is_file():  # a class or function, which the build has found
            continue
        definitions = [x for x in ast.parse(text_of(path)).body if isinstance(x, (ast.ClassDef, ast.FunctionDef))]
        names = [definition.name for definition in definitions if not definition.name.startswith("_")]
        assert names and not [name for name in names if f'id="ocl_msf.{module}.{name}"' not in pages], module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cat.jpg", "dog.jpg"):
        Image.new("RGB", (50, 40), (200, 100, 50)).save(name)
    names = {"__name__": "__main__"}
    for block in re.findall(r"^```python\n(.*?)^```", text_of(page), flags=re.DOTALL | re.MULTILINE):
        exec(compile(block, str(page), "exec"), names)


def test_data_written_as_the_page_says_are_read(tmp_path, monkeypatch, capsys):
    test_the_python_of_a_page_runs_from_top_to_bottom(ROOT / "docs/own_data.md", tmp_path, monkeypatch)
    main(["inspect", "data/mine"])
    assert "40 samples" in capsys.readouterr().out and (tmp_path / "data/mine/samples.png").is_file()
    data = open_dataset("data", "mine", batch_size=4, num_workers=0)
    assert (data.train_size, data.val_size) == (40, 20)
    assert next(iter(data.train_dataloader()))


def test_the_config_of_the_page_on_oclf_is_composed(tmp_path, run_program):
    (config,) = re.findall(r"^```yaml\n(.*?)^```", text_of(ROOT / "docs/oclf.md"), flags=re.DOTALL | re.MULTILINE)
    (command,) = re.findall(r"^# ocl_train (.*)$", config, flags=re.MULTILINE)
    folder = tmp_path / "mine/experiment"
    folder.mkdir(parents=True)
    (folder / "guided.yaml").write_text(config)
    printed = run_program("ocl.cli.train", *command.split(), "--cfg", "job", cwd=tmp_path, DATASET_PREFIX="data")
    assert printed.returncode == 0, printed.stderr
    composed = yaml.safe_load(printed.stdout)["experiment"]
    assert composed["variant"] == "gdr" and composed["n_slots"] == 7 and composed["data"] == "movi_c"


def test_the_cells_of_the_notebook_run(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(pyplot.gcf().axes) or pyplot.close())
    names = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            exec(compile(cell.source, cell.id, "exec"), names)
    assert [len(axes) for axes in shown] == [4, 12, 4, 4]
    before, after = names["drawn"][0], names["dropped"].reconstruct()[0]
    changed, where = (before - after).abs().sum(0), names["result"].scores[0, names["first"]] > 0.5
    assert changed[where].mean() > changed[~where].mean()  # the object is gone, and little else


def test_the_notebook_names_no_address_that_does_not_exist():
    assert "github.com" not in text_of(NOTEBOOK) and "OWNER" not in text_of(NOTEBOOK).replace("HOST/OWNER", "")
