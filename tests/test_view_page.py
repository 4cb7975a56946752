"""The page of `ocl-msf view` over HTTP: what it answers, and what it must not."""

import json
import threading
import urllib.error
import urllib.request
from http.client import HTTPConnection

import numpy as np
import pytest
import uvicorn
from gradio_client import Client, handle_file
from PIL import Image

import ocl_msf
from ocl_msf.cli import main
from ocl_msf.files import DataError
from ocl_msf.results.view.library import Library
from ocl_msf.results.view.page import Page
from ocl_msf.results.view.server import listen, make_app

pytestmark = [pytest.mark.needs_host, pytest.mark.needs_app]
DRAWING = [0, 0]  # temperature and seed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("view") / "folder"
    folder.mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (48, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    (folder.parent / "secret.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    return folder


@pytest.fixture(scope="module")
def address(folder, tmp_path_factory):
    """The page, served by this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        page = Page(ocl_msf.load("pretrained:scenes"), Library(folder))
        listening = listen("127.0.0.1", 0)
        server = uvicorn.Server(
            uvicorn.Config(make_app(page, "scenes"), log_level="error", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield "http://{}:{}".format(*listening.getsockname())
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False)


def status_of(address, path, method="GET", **headers):
    """The status of a request whose path is sent as it is, and what is answered."""
    connection = HTTPConnection(address.partition("//")[2])
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    return response.status, response.read(), response


def call(address, client, name, data, event):
    """What an event of the page leads to, as its script would send it: the outputs, or the error."""
    number = next(it["id"] for it in client.config["dependencies"] if it["api_name"] == name)
    body = {"data": data, "fn_index": number, "session_hash": client.session_hash, "event_data": event}
    request = urllib.request.Request(
        f"{address}/gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request).close()
    with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash={client.session_hash}") as stream:
        for line in stream:
            message = json.loads(line[5:]) if line.startswith(b"data:") else {}
            if message.get("msg") == "process_completed":
                return message["output"]


def test_a_page_opens_pictures_drops_and_swaps(address, client):
    html = client.predict("0.png", *DRAWING, api_name="/choose_A")[0]
    assert html.count("data-slot=") == 11 and "0.png" in html and "drawn from slots" in html
    assert client.predict("1.png", *DRAWING, api_name="/choose_B")[1].count("data-slot=") == 11
    dropped, back = (
        call(address, client, "click_A", ["drop", None, *DRAWING], {"x": 0.5, "y": 0.5})["data"][1] for _ in range(2)
    )
    assert dropped.count('class="dropped"') == 1 and dropped != html and 'class="dropped"' not in back
    chosen = call(address, client, "click_A", ["swap", None, *DRAWING], {"slot": 2})["data"][1]
    assert chosen.count('class="chosen"') == 1
    swapped = call(address, client, "click_B", ["swap", None, *DRAWING], {"slot": 4})["data"]
    assert "= B4" in swapped[1] and "= A2" in swapped[2]
    assert "not understood" in call(address, client, "click_A", ["swap", None, *DRAWING], {"slot": "one"})["data"][1]


def test_a_dropped_file_is_shown_and_a_broken_one_is_a_sentence(client, folder, tmp_path):
    assert "0.png" in client.predict(handle_file(str(folder / "0.png")), *DRAWING, api_name="/upload_A")[0]
    (tmp_path / "broken.png").write_text("no picture")
    html = client.predict(handle_file(str(tmp_path / "broken.png")), *DRAWING, api_name="/upload_A")[0]
    assert 'role="alert">broken.png cannot be read as a picture' in html and str(tmp_path) not in html


@pytest.mark.parametrize("name", ["link.png", "../secret.png", "/etc/passwd", "2.png"])
def test_nothing_but_the_folder_can_be_chosen(client, name):
    with pytest.raises(Exception, match="not in the list of choices"):
        client.predict(name, *DRAWING, api_name="/choose_A")


@pytest.mark.parametrize("path", ["/etc/passwd", "{folder}/0.png", "{folder}/link.png", "http://example.com/a.png"])
def test_a_file_of_this_machine_or_an_address_is_no_upload(address, client, folder, path):
    file = {"path": path.format(folder=folder), "meta": {"_type": "gradio.FileData"}}
    outputs = call(address, client, "upload_A", [file, None, *DRAWING], None)
    assert "error" in outputs and "data" not in outputs
    slider = [file, None, *DRAWING]
    assert "error" in call(address, client, "frame_A", slider, None)
    assert (folder / "0.png").exists()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/%66ile=/etc/passwd",
        "/gradio_api/file={folder}/0.png",
        "/gradio_api/file={folder}/link.png",
        "/gradio_api/file=http://example.com/",
        "/gradio_api/proxy=http://example.com/",
        "/static/../../../../../../../../etc/passwd",
        "/static/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/file=/etc/passwd",
    ],
)
def test_no_route_reads_files(address, folder, path, method):
    status, content, _ = status_of(address, path.format(folder=folder), method)
    assert status in (403, 404, 405) and b"root:" not in content and not content.startswith(b"\x89PNG")


def test_the_page_loads_nothing_from_elsewhere(address):
    status, content, response = status_of(address, "/")
    assert status == 200 and b"googleapis" not in content and b'<script src="http' not in content
    policy = response.getheader("Content-Security-Policy")
    assert policy.startswith("default-src 'self'") and "http" not in policy and "*" not in policy
    config = json.loads(status_of(address, "/config")[1])
    assert not config["analytics_enabled"] and not any("http" in sheet for sheet in config["stylesheets"])


def test_it_answers_to_local_names_alone(address):
    assert status_of(address, "/", Host="attacker.example")[0] == 400
    assert status_of(address, "/", Host="localhost:7860")[0] == 200


def test_large_uploads_are_refused(address):
    boundary = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = boundary + bytes(101 * 2**20) + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"{address}/gradio_api/upload", body, headers)
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)) as error:
        urllib.request.urlopen(request)
    assert getattr(error.value, "code", 413) == 413


def test_an_address_in_use_and_a_missing_model_are_one_sentence(address, folder, monkeypatch):
    port = int(address.rpartition(":")[2])
    with pytest.raises(DataError, match=f"127.0.0.1:{port} cannot be used .*Choose another --port"):
        listen("127.0.0.1", port)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # set back after this test
    with pytest.raises(SystemExit, match="error: There is no nothing"):
        main(["view", "nothing", str(folder)])
    with pytest.raises(SystemExit, match="error: .*none is no folder"):
        main(["view", "pretrained:scenes", str(folder / "none")])
