"""Configs that change other configs."""

from typing import Any, Dict


def present(**parts: Any) -> Dict[str, Any]:
    """Leave out the parts that are None.

    A config cannot delete a part of another one, but it can set it to null. With this function as their
    `_target_`, `models` and `losses` forget such parts.
    """
    return {name: part for name, part in parts.items() if part is not None}
