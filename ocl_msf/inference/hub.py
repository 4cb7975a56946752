"""Exported models on the Hugging Face hub, by huggingface_hub; HF_ENDPOINT, HF_HOME and HF_TOKEN are its own."""

from pathlib import Path
from typing import Any, Optional

from ocl_msf.files import DataError
from ocl_msf.inference.loading import CARD, CONFIG, WEIGHTS

FILES = [CONFIG, WEIGHTS, CARD, "*.png"]


def download(name: str, endpoint: Optional[str] = None) -> Path:
    """Download an exported model, or find it in the cache of huggingface_hub.

    Args:
        name: `owner/name`, or `owner/name@revision`.
        endpoint: of another hub than that of huggingface_hub's settings.

    Returns:
        The local folder.

    Raises:
        DataError: there is no such model, or neither network nor a copy in the cache.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = name.partition("@")
    options: Any = {
        "revision": revision or None,
        "allow_patterns": FILES,
        **({"endpoint": endpoint} if endpoint else {}),
    }
    try:
        folder = Path(snapshot_download(name, **options))
    except Exception as error:  # no network, no such name, no right to read: huggingface_hub has many types
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise DataError(f"hf://{name} cannot be downloaded, and is not in the cache: {reason}") from error
    if not (folder / CONFIG).is_file():
        raise DataError(f"hf://{name} holds no exported model of ocl_msf: it has no {CONFIG}.")
    return folder


def push(folder: Path, name: str, private: bool = False, endpoint: Optional[str] = None) -> str:
    """Upload an exported model, as the account that `hf auth login` or HF_TOKEN names.

    Args:
        folder: of `ocl_msf.inference.export.export`.
        name: `owner/name`; made if there is none.
        private: make it visible for its owner alone.
        endpoint: of another hub than that of huggingface_hub's settings.

    Returns:
        `hf://owner/name`.

    Raises:
        DataError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), allow_patterns=FILES)
    except Exception as error:  # no network, no right to write: huggingface_hub has many types
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise DataError(f"{folder} was not pushed to hf://{name}: {reason}") from error
    return f"hf://{name}"
