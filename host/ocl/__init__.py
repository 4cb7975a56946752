"""Object-centric learning: models, data, training and evaluation, composed by configuration."""

from importlib import metadata


def _refuse_two_frameworks() -> None:
    """Fail where OCLF is installed as well, since then the files of both may lie mixed in one folder."""
    try:
        versions = {name: metadata.version(name) for name in ("ocl", "ocl-msf-host")}
    except metadata.PackageNotFoundError:
        return
    installed = " and ".join(f"{name} {version}" for name, version in versions.items())
    raise ImportError(
        f"{installed} are both installed, and both provide the packages `ocl` and `routed`. "
        "Run `pip uninstall ocl ocl-msf-host`, then install the one you want."
    )


_refuse_two_frameworks()
