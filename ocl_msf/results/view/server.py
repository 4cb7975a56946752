"""The page as a server on this machine that reads no files but a folder's, and never talks to the network."""

import socket
import sys
from pathlib import Path
from typing import Any, Optional, Union

import torch

from ocl_msf.files import DataError
from ocl_msf.inference.loading import load
from ocl_msf.results.view.controls import build, require_gradio
from ocl_msf.results.view.library import Library
from ocl_msf.results.view.markup import STYLE
from ocl_msf.results.view.page import Page

UPLOAD = "100mb"  # at most, of a file that is put on the page
LOCAL = ("127.0.0.1", "localhost", "[::1]")
SERVES_FILES = ("/gradio_api/file", "/gradio_api/proxy", "/gradio_api/stream")  # Gradio's; this page needs none
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"


class Guard:
    """ASGI middleware: browsers load nothing from elsewhere, and Gradio serves no files but its own.

    Args:
        app: what it guards.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] == "http" and scope["path"].startswith(SERVES_FILES):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"This page serves no files."})
            return

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)


def make_app(page: Page, model: str, host: str = "127.0.0.1") -> Any:
    """The page as an ASGI application.

    Args:
        page: what its controls do.
        model: its name, for the reader.
        host: where it will be served; a local one answers to local names alone, whatever a name server says.
    """
    gr = require_gradio()
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL) if host in LOCAL else ["*"])
    app.add_middleware(Guard)
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    theme = gr.themes.Default(font=sans, font_mono=mono, primary_hue="blue", radius_size="md")
    return gr.mount_gradio_app(
        app,
        build(page, model),
        path="/",
        server_name=host,
        footer_links=[],
        max_file_size=UPLOAD,
        ssr_mode=False,
        theme=theme,
        css=STYLE,
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for browsers.

    Raises:
        DataError: the address cannot be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{host}:{port} cannot be used ({reason}). Choose another --port or --host.") from error
    return listening


def view(
    source: Union[str, Path],
    folder: Optional[Path] = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    fit: str = "crop",
    device: Optional[str] = None,
) -> None:
    """Serve the page until it is interrupted.

    Args:
        source: a model, see `ocl_msf.load`.
        folder: of pictures to choose from.
        host, port: where; port 0 is any free one.
        fit: see `Model.forward`.
        device: where the model computes; by default a GPU if there is one.

    Raises:
        DataError: Gradio is not installed, there is no such model, folder or device, or the address cannot be used.
    """
    require_gradio()
    import uvicorn

    library = Library(folder)
    try:
        page = Page(load(source, device or ("cuda" if torch.cuda.is_available() else "cpu")), library, fit)
    except (RuntimeError, AssertionError) as error:  # torch's for a wrong name, and for a device that is not there
        reason = str(error).split("\n")[0]
        raise DataError(f"The device {device} cannot be used ({reason}). Choose another one, such as cpu.") from error
    listening = listen(host, port)
    if host not in LOCAL:
        print(
            f"Warning: there is no password. Whoever reaches {host} sees this folder's pictures and uses the model.",
            file=sys.stderr,
        )
    app = make_app(page, str(source), host)
    print(f"http://{host}:{listening.getsockname()[1]} (Ctrl-C ends it)", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        print()
