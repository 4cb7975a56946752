"""Models for others: whole or not at all, loaded without run, data or pickles, and nothing else is built."""

import base64
import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

import ocl_msf
from ocl_msf.cli import main
from ocl_msf.files import DataError
from ocl_msf.inference import loading
from ocl_msf.inference.export import export
from ocl_msf.inference.hub import download, push

pytestmark = pytest.mark.needs_host
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(slate_run, tmp_path_factory):
    """The exported model of a run with an evaluation."""
    run = tmp_path_factory.mktemp("scored") / "run"
    shutil.copytree(slate_run, run)
    (checkpoint,) = run.rglob("*.ckpt")
    scores = {"ari": 0.25, "ari_fg": 0.5, "miou": 0.25, "mbo": 0.25, "slot_gain": 0.125}
    rows = {
        f"{row}_{name}": 0.375 for row in ("image_gain", "grid", "colour") for name in ("ari", "ari_fg", "miou", "mbo")
    }
    report = {"checkpoint_path": str(checkpoint), "metrics": {"val": {**scores, **rows}}}
    (run / "metrics.json").write_text(json.dumps(report))
    Image.new("RGB", (8, 8)).save(run / "scenes.png")
    return export(run, tmp_path_factory.mktemp("exported") / "model", "cc-by-4.0")


def change(exported, folder, **values):
    """A copy of an exported model with other values in its configuration."""
    shutil.copytree(exported, folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **values}))
    return folder


def test_an_exported_model_is_the_same_without_run_and_data(exported, slate_run, monkeypatch):
    assert sorted(path.name for path in exported.iterdir()) == [
        *("README.md", "config.json", "model.safetensors", "scenes.png")
    ]
    monkeypatch.setattr(torch, "load", None)  # nothing is unpickled
    loaded = ocl_msf.load(exported)
    monkeypatch.undo()
    original = ocl_msf.load(slate_run)
    one, two = loaded(IMAGE), original(IMAGE)
    assert torch.equal(one.slots, two.slots) and torch.equal(one.masks[0], two.masks[0])
    assert torch.equal(one.reconstruct(), two.reconstruct())
    text = (exported / "config.json").read_text()
    assert "${" not in text and "DATASET_PREFIX" not in text and str(slate_run) not in text


def test_an_exported_model_is_exported_again(exported, tmp_path):
    again = export(str(exported), tmp_path / "again")
    for path in exported.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
    assert export(exported, again) == again and [path.name for path in tmp_path.iterdir()] == ["again"]


def test_videos_and_diffusion_are_exported_too(make_run, tmp_path):
    for name, shape in (("steve_movi_c", (2, 32, 32, 3)), ("slotdiffusion_clevrtex", (32, 32, 3))):
        run = make_run(name)
        image = np.zeros(shape, np.uint8)
        loaded = ocl_msf.load(export(run, tmp_path / name))
        assert torch.equal(loaded(image).slots, ocl_msf.load(run)(image).slots)


def test_the_card_says_what_scores_are_worth(exported, slate_run, tmp_path):
    card = (exported / "README.md").read_text()
    for part in ("license: cc-by-4.0", "# slate on clevrtex", "blind grid", "colour clustering", "of it image gain"):
        assert part in card
    assert "not ahead of blind grid" in card and "slot gain 0.125" in card and "Multi-Scale Fusion" in card
    assert "has not been scored" in (export(slate_run, tmp_path / "plain") / "README.md").read_text()


def test_an_interrupted_export_leaves_what_was_there(exported, slate_run, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("ocl_msf.inference.export.write_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(slate_run, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(DataError, match="holds something else"):
        export(slate_run, tmp_path / "mine")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"format": 2, "version": "9.0"}, "written by a newer ocl_msf, 9.0"),
        ({"format": None}, "describes no model"),
        ({"extra": 1}, "is damaged"),
        ({"image_transform": {"_target_": "subprocess.run", "args": ["false"]}}, "would build subprocess.run"),
        ({"image_transform": {"_target_": "routed.ocl_msf.vit.Path"}}, "is not ocl_msf"),
        ({"image_transform": {"_target_": "ocl_msf.feature_extractors.timm.create_model"}}, "would build ocl_msf.feat"),
        ({"image_transform": {"_target_": "ocl_msf.decoding.Nothing"}}, "does not have"),
        ({"image_transform": {"x": ["${oc.env:HOME}"]}}, "filled in from this machine"),
    ],
)
def test_other_peoples_models_build_nothing_but_models(exported, tmp_path, values, message):
    with pytest.raises(DataError, match=message):
        ocl_msf.load(change(exported, tmp_path / "model", **values))


def test_damaged_weights_are_named(exported, tmp_path):
    folder = change(exported, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match="model.safetensors is missing or damaged"):
        ocl_msf.load(folder)


def test_models_in_the_package_are_listed(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "PRETRAINED", tmp_path)
    with pytest.raises(DataError, match="no model pretrained:scenes .* There is none"):
        ocl_msf.load("pretrained:scenes")
    shutil.copytree(exported, tmp_path / "scenes")
    assert ocl_msf.load("pretrained:scenes").description.model == "slate"
    with pytest.raises(DataError, match="There are: pretrained:scenes"):
        ocl_msf.load("pretrained:other")


def test_the_command_writes_a_folder(slate_run, tmp_path, capsys):
    main(["export", str(slate_run), str(tmp_path / "model")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "model")
    with pytest.raises(SystemExit, match="error: There is no .*none"):
        main(["export", str(tmp_path / "none"), str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as one repository needs."""

    files: dict = {}
    large: dict = {}  # by SHA-256: what is uploaded before the commit, by the basic transfer of Git LFS
    verified: list = []
    commit = "1" * 40

    def log_message(self, *_):
        pass

    def reply(self, content, **headers):
        self.send_response(200)
        for name, value in {"Content-Length": len(content), "X-Repo-Commit": self.commit, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/me/model"):
            names = [
                {"rfilename": name, "path": name, "type": "file", "size": len(x), "oid": hashlib.sha1(x).hexdigest()}
                for name, x in self.files.items()
            ]
            content = names if "/tree/" in path else {"id": "me/model", "sha": self.commit, "siblings": names}
            return self.reply(json.dumps(content).encode(), Content_Type="application/json")
        name = path.rpartition("/")[2]
        if path.startswith("/me/model/resolve/") and name in self.files:
            content = self.files[name]
            return self.reply(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = f"http://{self.headers['Host']}/me/model"
        answer = {"url": url, "name": "me/model"}
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            answer = {"files": [{"path": x, "uploadMode": modes[x], "shouldIgnore": False} for x in names]}
        elif self.path.endswith("/me/model.git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for its in objects:
                links = {step: f"http://{self.headers['Host']}/{step}/{its['oid']}" for step in ("upload", "verify")}
                its["actions"] = {step: {"href": link} for step, link in links.items()}
            answer = {"transfer": "basic", "objects": objects}
        elif self.path.startswith("/verify/"):
            its = json.loads(body)
            self.verified.append(len(self.large[its["oid"]]) == its["size"])
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                its = line["value"]
                if line["key"] == "file":
                    self.files[its["path"]] = base64.b64decode(its["content"])
                elif line["key"] == "lfsFile":
                    self.files[its["path"]] = self.large[its["oid"]]
            answer = {"commitUrl": f"{url}/commit/{self.commit}", "commitOid": self.commit, "success": True}
        self.reply(json.dumps(answer).encode(), Content_Type="application/json")

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.large[hashlib.sha256(content).hexdigest()] = content
        self.reply(b"")


@pytest.fixture
def hub(monkeypatch):
    for name, value in {"files": {}, "large": {}, "verified": []}.items():
        monkeypatch.setattr(Hub, name, value)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_model_is_pushed_and_downloaded(exported, hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False
    )  # its servers are the hub's
    monkeypatch.setenv("HF_TOKEN", "none")
    assert push(exported, "me/model", endpoint=hub) == "hf://me/model"
    (weights,) = Hub.large.values()  # the hub wants them by Git LFS
    assert weights == (exported / "model.safetensors").read_bytes() and Hub.verified == [True]
    folder = download("me/model", endpoint=hub)
    for path in exported.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert torch.equal(ocl_msf.load(folder)(IMAGE).slots, ocl_msf.load(exported)(IMAGE).slots)
    with pytest.raises(DataError, match="hf://me/other cannot be downloaded"):
        download("me/other", endpoint=hub)
    with pytest.raises(DataError, match="was not pushed to hf://me/model"):
        push(exported, "me/model", endpoint="http://127.0.0.1:9")
