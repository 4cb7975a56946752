"""The rules of CONTRIBUTING.md that a machine can check."""

import ast
import importlib.util
import re
import shlex
import sys
import sysconfig
from pathlib import Path

import pytest
import typer
import yaml
from hydra_plugins.ocl_msf.components import COMPONENTS

from ocl_msf.cli import app

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ocl_msf"
MODULES = sorted(PACKAGE.rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "configs/experiment/msf").glob("[!_]*.yaml"))
BY_NAME = {(f"msf/{part.group}", part.name) for part in COMPONENTS}
TEXTS = sorted(
    path
    for folder in ("ocl_msf", "host", "configs", "scripts", "tests", "docs", ".ci", ".github")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {"", ".py", ".yaml", ".yml", ".md", ".toml", ".sh", ".ipynb"} and path.is_file()
    if not {".ruff_cache", "__pycache__"} & set(path.parts)
) + sorted([*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.yml")])
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

# What a module may import besides the standard library; a folder stands for all of its modules.
MATHS = {"torch", "einops"}
HOST = {"ocl", "ocl_msf._host"}
NETWORKS = MATHS | HOST | {"timm", "diffusers", "numpy"}
FRAMEWORK = MATHS | HOST | {"numpy", "pytorch_lightning"}
MAY_IMPORT = {
    "__init__": {"ocl_msf._renamed", "ocl_msf.inference"},
    "_renamed": set(),
    "_host": set(),
    "_plugins": {"hydra", "omegaconf", "hydra_plugins"},
    "pyramid": MATHS,
    "indices": {"torch"},
    "composition": {"hydra", "ocl_msf._renamed"},
    "chunks": {"torch"},
    "frozen": {"torch", "safetensors"},
    "vit": NETWORKS | {"ocl_msf.frozen"},
    "tae": MATHS
    | {f"ocl_msf.{name}" for name in ("codebook", "decoding", "fusion", "perceptual_grouping", "quantization")},
    "tiny_autoencoder": {"torch", "diffusers", "ocl_msf.frozen"},
    "transformer": MATHS,
    "preprocessing": {"torch", "numpy"},
    "codebook": MATHS,
    "tracing": {"torch"},
    "activations": {"torch", "ocl_msf.tracing"},
    "projection": MATHS | {"ocl_msf.tracing"},
    "straight_through": MATHS,
    "quantization": MATHS | {"ocl_msf._renamed", "ocl_msf.codebook", "ocl_msf.projection", "ocl_msf.straight_through"},
    "finite_scalar": MATHS | {"ocl_msf.indices", "ocl_msf.quantization"},
    "losses": MATHS | {"ocl_msf.indices", "ocl_msf._renamed"},
    "fusion": MATHS
    | {"ocl_msf._renamed", "ocl_msf.pyramid", "ocl_msf.codebook", "ocl_msf.projection", "ocl_msf.quantization"},
    "autoencoder": MATHS | {"ocl_msf.activations", "ocl_msf.pyramid", "ocl_msf.quantization", "ocl_msf.fusion"},
    "guidance": MATHS | {"ocl_msf.autoencoder", "ocl_msf.chunks", "ocl_msf.frozen"},
    "dilated": MATHS,
    "grid_fusion": {"torch", "ocl_msf.frozen", "ocl_msf.quantization"},
    "feature_extractors": NETWORKS
    | {
        "ocl_msf._renamed",
        "ocl_msf.chunks",
        "ocl_msf.dilated",
        "ocl_msf.grid_fusion",
        "ocl_msf.pyramid",
        "ocl_msf.vit",
    },
    "conditioning": NETWORKS | {"ocl_msf.frames"},
    "perceptual_grouping": NETWORKS | {"ocl_msf.frames", "ocl_msf.iterations"},
    "iterations": {"torch"},
    "preheating": {"torch", "ocl_msf.codebook"},
    "patch_orders": {"torch"},
    "frames": {"torch"},
    "invariant": NETWORKS | {"ocl_msf.frames", "ocl_msf.iterations"},
    "decoding": MATHS
    | {"ocl_msf._renamed", "ocl_msf.chunks", "ocl_msf.indices", "ocl_msf.patch_orders", "ocl_msf.transformer"},
    "mixture": {"torch", "ocl_msf.chunks", "ocl_msf.decoding", "ocl_msf.frames"},
    "diffusion": {"torch", "diffusers", "ocl_msf.chunks", "ocl_msf.decoding", "ocl_msf.frames"},
    "video": {"torch", "ocl_msf._renamed"},
    "metrics": MATHS | HOST | {"numpy", "scipy", "sklearn", "torchmetrics"},
    "instruments": MATHS
    | {"hydra", "numpy", "sklearn", "torchmetrics"}
    | {"ocl_msf.autoencoder", "ocl_msf.codebook", "ocl_msf.fusion", "ocl_msf.quantization"},
    "training": FRAMEWORK
    | {
        "hydra",
        "omegaconf",
        "diffusers",
        "tqdm",
        "ocl_msf._renamed",
        "ocl_msf.data",
        "ocl_msf.training",
        "ocl_msf.experiments",
        "ocl_msf.files",
        "ocl_msf.tiny_autoencoder",
    },
    "experiments": HOST
    | {"hydra_plugins"}
    | {"hydra", "omegaconf", "yaml", "torch", "tensorboard", "ocl_msf.experiments", "ocl_msf.files"},
    "inference": FRAMEWORK
    | {"av", "hydra", "huggingface_hub", "omegaconf", "PIL", "safetensors"}
    | {"ocl_msf.__version__", "ocl_msf.chunks", "ocl_msf.data", "ocl_msf.decoding"}
    | {"ocl_msf.experiments", "ocl_msf.files", "ocl_msf.inference"},
    "results": FRAMEWORK
    | {"fastapi", "gradio", "starlette", "uvicorn"}
    | {"hydra", "jinja2", "omegaconf", "PIL", "matplotlib", "scipy", "safetensors", "sklearn", "tqdm"}
    | {
        "ocl_msf.data",
        "ocl_msf.experiments",
        "ocl_msf.files",
        "ocl_msf.inference",
        "ocl_msf.instruments",
        "ocl_msf.metrics",
        "ocl_msf.results",
        "ocl_msf.training",
    },
    "files": set(),
    "cli": {"typer", "typing_extensions", "ocl_msf.cli", "ocl_msf.demo", "ocl_msf.files"}
    | {"ocl_msf.data", "ocl_msf.experiments", "ocl_msf.inference", "ocl_msf.results"},
    "__main__": {"ocl_msf.cli"},
    "demo": HOST | {"torch", "safetensors", "ocl_msf.experiments", "ocl_msf.files", "ocl_msf.inference"},
    "data": FRAMEWORK
    | {"PIL", "av", "cloudpickle", "crc32c", "google", "hydra", "lmdb"}
    | {"pycocotools", "safetensors", "scipy", "tqdm"}
    | {"ocl_msf.data", "ocl_msf.files", "ocl_msf._renamed"},
}
COMMAND_LINES = {"cli", "demo", "experiments", "results"}  # these may print


def name_of(path):
    """The module that a file holds, `data.scenes`; `__init__` for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 8))


def imports(path):
    """(name, line) of every import: `torch`, but `ocl_msf.fusion` for the package's own rooms."""
    for node in ast.walk(parse(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}:{node.lineno}: relative import; write ocl_msf.<module>"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            yield ".".join(parts[:2] if parts[0] == "ocl_msf" else parts[:1]), node.lineno


def is_standard(name):
    """Whether Python itself brings the module."""
    if name in sys.builtin_module_names:
        return True
    spec = importlib.util.find_spec(name)
    origin = (spec.origin if spec else None) or ""
    library = sysconfig.get_paths()["stdlib"]
    return origin == "frozen" or (origin.startswith(library) and "site-packages" not in origin)


def dotted(node):
    """`os.environ` for the expression that reads so, "" for anything that is no dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def report(path, lines):
    return [f"{path.relative_to(ROOT)}:{line}: {what}" for line, what in lines]


each_module = pytest.mark.parametrize("path", MODULES, ids=name_of)


@each_module
def test_imports_go_one_way(path):
    room = room_of(path)
    assert room in MAY_IMPORT, f"{room} is new: say in MAY_IMPORT what it may import"
    strangers = {(line, name) for name, line in imports(path) if name not in MAY_IMPORT[room]}
    assert not report(path, (found for found in strangers if not is_standard(found[1].split(".")[0])))


@each_module
def test_private_modules_are_imported_in_their_folder_only(path):
    """In the folder that holds them, and below it."""
    folder = ("ocl_msf", *path.relative_to(PACKAGE).parts[:-1])
    found = []
    for node in ast.walk(parse(path)):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        for name in [f"{node.module}.{name}" for name in names] if isinstance(node, ast.ImportFrom) else names:
            parts = name.split(".")
            private = [i for i, part in enumerate(parts) if part.startswith("_")]
            if parts[0] == "ocl_msf" and private and tuple(parts[: private[0]]) != folder[: private[0]]:
                found.append((node.lineno, name))
    assert not report(path, found)


@each_module
def test_no_module_asks_which_host_it_runs_in(path):
    """The host is imported at the top, where `require_host` explains its absence, and never looked at."""
    tree = parse(path)
    blocks = [node for node in tree.body if isinstance(node, ast.With)]
    explained = [block for block in blocks if "require_host" in ast.dump(block.items[0])]
    at_top = {id(node) for block in [tree, *explained] for node in block.body}
    asking = (
        {"importlib"}
        if name_of(path) not in {"_plugins.hydra_plugins.ocl_msf", "_host", "_renamed", "training.environment"}
        else set()
    )  # versions are recorded
    found = [(line, name) for name, line in imports(path) if name in asking]
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in at_top:
            names = [getattr(node, "module", None) or ""] + [alias.name for alias in node.names]
            found += [(node.lineno, name) for name in names if name.split(".")[0] in {"ocl", "routed"}]
        if isinstance(node, ast.Attribute) and node.attr in {"__version__", "version_info"}:
            found.append((node.lineno, dotted(node)))
    assert not report(path, found)


@each_module
def test_modules_stay_pure(path):
    """No printing (but by commands), no moves to a device, no code from strings, no environment (CLI, workers)."""
    banned = {"exec", "eval", "os.environ", "os.getenv"}
    banned |= set() if room_of(path) in COMMAND_LINES else {"print"}
    banned -= {"os.environ"} if room_of(path) == "cli" or name_of(path) == "data._workers" else set()
    found = []
    for node in ast.walk(parse(path)):
        to_device = isinstance(node, ast.Call) and dotted(node.func).endswith(".cuda")
        if to_device or dotted(node) in banned:
            found.append((node.lineno, dotted(getattr(node, "func", node))))
    assert not report(path, found)


@each_module
def test_everything_public_says_what_it_is(path):
    tree = parse(path)
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = [] if ast.get_docstring(tree) or not tree.body else [(1, "the module has no docstring")]
    for node in tree.body:
        if isinstance(node, definitions) and not node.name.startswith("_") and not ast.get_docstring(node):
            found.append((node.lineno, f"{node.name} has no docstring"))
    assert not report(path, found)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_names_a_place_on_one_machine(path):
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"(?<![\w.~}/-])/(?:home|root|Users|work|mnt|tmp)/[\w.-]+", text)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_opens_with_its_command(path):
    comment = path.read_text(encoding="utf-8").split("\n\n")[0]
    opening = [line for line in comment.splitlines() if line.startswith("#")]
    assert any(re.search(rf"\+experiment=msf/{path.stem}(?!\w)", line) for line in opening), opening


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_is_a_mapping(path):
    """One that is empty, or that YAML reads as something else, would do nothing and say nothing."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict) and content


def bash_commands(path):
    """The commands in the bash blocks of a Markdown file, one each, without comments."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines = [line.split(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
    return [command for line in lines for command in line.split(" && ")]


def files_named(command):
    """The files of this repository that a command takes for granted."""
    for group, name in re.findall(r"\+?([\w/]+)=([\w/]+)(?=\s|$)", command):
        if (group, name) in BY_NAME:
            yield "ocl_msf/_plugins/hydra_plugins/ocl_msf/components.py"
        elif "msf/" in f"{group} {name}":
            yield f"configs/{group}/{name}.yaml"
    for module in re.findall(r"-m (ocl_msf[\w.]*)", command):
        path = module.replace(".", "/")
        yield f"{path}/__main__.py" if (ROOT / path).is_dir() else f"{path}.py"
    for word in command.split():
        if re.match(r"(\./)?(scripts|host|ocl_msf|configs|tests|\.ci)/[\w./-]+$", word):
            yield word


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_the_documentation_exist(path):
    files = [file for command in bash_commands(path) for file in files_named(command)]
    assert files or not re.search(r"^(ocl_train|bash) ", path.read_text(encoding="utf-8"), flags=re.MULTILINE), (
        "no command names a file: are its blocks marked as bash?"
    )
    assert not [file for file in files if not (ROOT / file).exists()]


NOW = [path for path in TEXTS if path.suffix in {".md", ".yaml"} and path.name != "CHANGELOG.md"]  # which has old ones


@pytest.mark.parametrize("path", NOW, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_ours_are_understood(path):
    """Those in blocks of bash, and those between backticks, where the name of a command will do."""
    text = path.read_text(encoding="utf-8")
    lines = [line for line in bash_commands(path) if line.startswith("ocl-msf ")]
    for line in [*lines, *re.findall(r"`(ocl-msf \w[^`]*)`", text)]:
        command, words = typer.main.get_command(app), shlex.split(line.replace("\n# ", " "))[1:]
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, f"{path}: there is no command {line}"
            command, words = command.commands[words[0]], words[1:]
        if words:
            command.make_context(line, words)


def test_what_needs_a_host_says_so(tmp_path, run_program):
    """The others can be imported without one."""
    for name in ("ocl", "routed"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('No host', name='{name}')")
    chosen = ["-m", "not needs_host", "--collect-only", "-qq", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = run_program("pytest", *chosen, str(ROOT / "tests"), cwd=ROOT, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests/test_fusion.py" in done.stdout and "tests/test_community.py" not in done.stdout


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what version 1.2.0 of the format requires
    assert f'__version__ = "{citation["version"]}"' in (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert paper["url"] in (ROOT / "README.md").read_text(encoding="utf-8")
