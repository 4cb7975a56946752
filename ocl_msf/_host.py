"""The one message for an environment without a host framework."""

from contextlib import contextmanager
from typing import Iterator

MESSAGE = (
    "This part of ocl_msf runs inside an OCL framework (import names `ocl` and `routed`), and none is installed. "
    "Get one of the two: `pip install ./host` from a checkout of ocl_msf (current Python), or Amazon's framework from "
    "its Git repository, `pip install 'ocl-msf[oclf]'` (Python 3.8). Do not `pip install ocl` from PyPI: that package "
    "is something else."
)


@contextmanager
def require_host() -> Iterator[None]:
    """Wrap imports of `ocl` or `routed`; if the host is missing, one ImportError says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("ocl", "routed"):
            raise ImportError(MESSAGE) from error
        raise
