"""The messages for an environment without a host framework, or with two."""

from contextlib import contextmanager
from importlib import metadata
from typing import Iterator

MISSING = (
    "This part of ocl_msf runs inside an OCL framework (import names `ocl` and `routed`), and none is installed. "
    "Get one of the two: `pip install 'ocl-msf[host]'` (from a checkout: `pip install ./host`) for current Python, "
    "or Amazon's framework for Python 3.8, which is on no package index (README.md, Install, has the commands). "
    "Do not `pip install ocl` from PyPI: that package is something else."
)
TWO = (
    "Two distributions that provide the packages `ocl` and `routed` are installed, `ocl` and `ocl-msf-host`, "
    "and their files may be mixed. Run `pip uninstall ocl ocl-msf-host`, then install the one you want."
)


@contextmanager
def require_host() -> Iterator[None]:
    """Wrap imports of `ocl` or `routed`; one ImportError says what to do if the host is missing or there are two."""
    if all(map(_is_installed, ("ocl", "ocl-msf-host"))):
        raise ImportError(TWO)
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("ocl", "routed"):
            raise ImportError(MISSING) from error
        raise


def _is_installed(distribution: str) -> bool:
    try:
        return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return False
