"""The parts that a config can take by name, with one line on each; see `hydra_plugins.ocl_msf.components`."""

import ast
import re
from pathlib import Path
from typing import List, NamedTuple, Optional

from hydra_plugins.ocl_msf.components import COMPONENTS


class Description(NamedTuple):
    """A choice `msf/<group>=<name>`, the place of the config where it goes, its class, and one line on it."""

    choice: str
    place: str
    target: str
    line: str


def describe_components(group: Optional[str] = None) -> List[Description]:
    """Describe all choices, or those of one group such as `decoder`, without importing their classes.

    Raises:
        ValueError: there is no such group.
    """
    groups = list(dict.fromkeys(part.group for part in COMPONENTS))
    if group not in (None, *groups):
        raise ValueError(f"There is no group {group}. Choose one of {', '.join(groups)}.")
    return [
        Description(f"msf/{part.group}={part.name}", part.place, target, _first_sentence(target))
        for part in COMPONENTS
        for target in [re.sub(r"^routed\.", "", part.target)]
        if group in (None, part.group)
    ]


def _first_sentence(target: str) -> str:
    """Of the docstring of a class, in one line."""
    module, name = target.split(".")[1:]
    tree = ast.parse((Path(__file__).parents[1] / f"{module}.py").read_text(encoding="utf-8"))
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    paragraph = " ".join((ast.get_docstring(found) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s(?=[A-Z])", paragraph)[0].rstrip(".")
