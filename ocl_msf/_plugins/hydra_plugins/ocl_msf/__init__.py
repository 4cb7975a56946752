"""Tells every Hydra application of this environment where the configs of `ocl_msf` are."""

import importlib.util
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class MSFSearchPathPlugin(SearchPathPlugin):
    """Appends the configs of `ocl_msf` to the search path, after those of the application."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        package = Path(importlib.util.find_spec("ocl_msf").origin).parent
        installed, checkout = package / "configs", package.parent / "configs"
        search_path.append("ocl-msf", f"file://{installed if installed.is_dir() else checkout}")
