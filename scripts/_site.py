"""What the documentation site has besides docs/ (hooks of mkdocs.yml): other files of ours, configs, commands."""

import posixpath
import re
from itertools import groupby
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple

import yaml
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.main import get_command

from ocl_msf.cli import app
from ocl_msf.experiments.components import describe_components

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
COMPONENTS = describe_components()
# Files outside docs/ by where they are in the site. On GitHub, pages link to the files themselves.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "host/INTERFACE.md": "host_interface.md",
    "ocl_msf/pretrained/scenes/README.md": "pretrained.md",
    "ocl_msf/pretrained/scenes/scenes.png": "scenes.png",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the files of `OUTSIDE`."""
    for path, place in OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Fill in what is made of the code, and turn links between files into links between pages."""
    place = page.file.src_uri
    path = next((path for path, where in OUTSIDE.items() if where == place), f"docs/{place}")
    made = {"configs": describe_configs, "commands": describe_commands, "components": list_components}
    markdown = re.sub(r"^<!-- made of the (\w+) -->$", lambda match: made[match[1]](), markdown, flags=re.MULTILINE)

    def relink(match: "re.Match[str]") -> str:
        file = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
        target = OUTSIDE.get(file, file[len("docs/") :] if file.startswith("docs/") else match[1])
        return f"]({posixpath.relpath(target, posixpath.dirname(place) or '.')}{match[2] or ''})"

    return re.sub(r"\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)", relink, markdown)


def describe_commands() -> str:
    """Every command of `ocl-msf` with its help."""
    return "\n".join(_help(get_command(app), "ocl-msf", None))


def _help(command: Any, name: str, parent: Any) -> Iterator[str]:
    context = command.make_context(name, [], parent, resilient_parsing=True, terminal_width=100, max_content_width=100)
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context).strip()}\n```\n"
    for part in getattr(command, "commands", {}).values():
        yield from _help(part, part.name, context)


def list_components() -> str:
    """A table of the parts that a config can take by name."""
    rows = [(f"`{x.choice}`", f"{_escape(x.line)}: {_link(x.target)} at `{x.place}`") for x in COMPONENTS]
    lines = [("choice", "what it is: its class, and where it goes"), ("---",) * 2, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _link(target: str) -> str:
    return f"[`{target.rpartition('.')[2]}`][{target}]"


def describe_configs() -> str:
    """Every config group with its options, by their leading comments, and how to choose one."""
    paths = sorted(CONFIGS.rglob("*.yaml"), key=lambda path: (path.parent, path.name.startswith("_"), path.name))
    defaults: Dict[str, Set[str]] = {}
    for chosen, name in _defaults(paths):
        defaults.setdefault(chosen, set()).add(name)
    text: List[str] = []
    for folder, files in groupby(paths, lambda path: path.parent):
        group = folder.relative_to(CONFIGS).as_posix()
        text.append(f"## {group}\n")
        text.append(f"{_how_to_choose(group, defaults)}\n")
        for path in files:
            comment, body = _split(path)
            text.append(f"### {path.stem} {{: #{group.replace('/', '-')}-{path.stem} }}\n\n{comment}\n")
            text.append('??? quote "What it says"\n\n    ```yaml\n' + _indent(body) + "\n    ```\n")
    return "\n".join(text)


def _defaults(paths: List[Path]) -> Iterator[Tuple[str, str]]:
    """Groups that a config chooses for others to override, and what it chooses."""
    for path in paths:
        for entry in yaml.safe_load(path.read_text(encoding="utf-8")).get("defaults", []):
            for group, name in entry.items() if isinstance(entry, dict) else ():
                if group.startswith("/"):
                    yield group[1:], name


def _how_to_choose(group: str, defaults: Dict[str, Set[str]]) -> str:
    if group in defaults:
        default, *others = defaults[group]
        chosen = "experiments choose one" if others or default == "???" else f"by default `{default}`"
        return f"`{group}=NAME`; {chosen}."
    first, _, rest = group.partition("/")
    if first in ("experiment", "evaluation"):
        return f"`+{first}={rest}/NAME`. Those that begin with `_` are parts of the others."
    return f"`+{group}=NAME`, behind the experiment or evaluation."


def _split(path: Path) -> Tuple[str, str]:
    """The leading comment of a config as Markdown, and the rest."""
    lines = path.read_text(encoding="utf-8").rstrip().split("\n")
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    comments = [line[2:] for line in lines[:end] if not line.startswith("# @package")]
    pattern = re.compile(r"((?:ocl_train|ocl_eval|ocl-msf) .+?)(?:: |  +|$)(.*)")  # a command, and what is said of it
    found = [pattern.fullmatch(line) for line in comments]
    commands = [match[1] for match in found if match]
    prose = " ".join(match[2] if match else line for line, match in zip(comments, found)).strip()
    text = "".join(part if i % 2 else _escape(part) for i, part in enumerate(re.split(r"(`[^`]*`)", prose)))
    block = "\n```bash\n{}\n```\n".format("\n".join(commands)) if commands else ""
    return f"{text}\n{block}", "\n".join(lines[end:]).strip()


def _escape(text: str) -> str:
    return re.sub(r"([\\*_<>\[\]])", r"\\\1", text)


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.split("\n"))
