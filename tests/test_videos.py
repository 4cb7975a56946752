"""Videos: read frame by frame, found by `ocl-msf predict`, and what is wrong with them named."""

import csv
import sys
import tarfile
import weakref
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import ocl_msf
from ocl_msf.cli import main
from ocl_msf.data.shards import encode_array
from ocl_msf.files import DataError
from ocl_msf.inference.model import Model
from ocl_msf.inference.videos import INSTALL, frame_rate, read_frames, write_video
from ocl_msf.results.predict import predict

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]


@pytest.fixture(scope="module")
def steve_run(make_run):
    return make_run("steve_movi_c")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_frames(path, frames, codec="png", pix_fmt="rgb24"):
    """A video of exactly these frames, with the default codec; frames (t, h, w, 3)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def cut_off(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def masks(folder, key):
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "masks" / key).glob("*.png"))])


def index(folder):
    with open(folder / "index.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_frames_are_those_of_the_file(tmp_path):
    frames = noise(5, 12, 20, 3)
    path = write_frames(tmp_path / "clip.mov", frames)
    assert np.array_equal(np.stack(list(read_frames(path))), frames)
    assert frame_rate(path) == 10


def test_a_video_that_a_phone_has_turned_is_read_upright(tmp_path):
    """By the matrix of the track header, which turns by 90 degrees clockwise (ISO 14496-12, 8.3.2)."""
    frames = noise(2, 12, 20, 3)
    path = write_frames(tmp_path / "clip.mov", frames)
    one, whole = (1 << 16).to_bytes(4, "big"), (1 << 30).to_bytes(4, "big")
    zero, minus = bytes(4), (-(1 << 16)).to_bytes(4, "big", signed=True)
    upright = one + zero * 3 + one + zero * 3 + whole
    head, track, rest = path.read_bytes().partition(b"tkhd")
    assert rest.count(upright) == 1
    path.write_bytes(head + track + rest.replace(upright, zero + one + zero + minus + zero * 4 + whole))
    with av.open(str(path)) as container:
        can_say = hasattr(next(container.decode(video=0)), "rotation")  # from PyAV 14 on
    expected = np.rot90(frames, -1, (1, 2)) if can_say else frames
    assert np.array_equal(np.stack(list(read_frames(path))), expected)


@pytest.mark.parametrize("height, width", [(12, 20), (13, 7), (1, 1)])
def test_what_is_written_is_a_video_of_that_size_and_rate(tmp_path, height, width):
    ramp = np.linspace(0, 250, 6).astype(np.uint8)
    frames = np.broadcast_to(ramp[:, None, None, None], (6, height, width, 3))
    path = tmp_path / "clip.mp4"
    write_video(path, frames, Fraction(10))
    read = np.stack(list(read_frames(path)))
    assert read.shape[1:] == (height + height % 2, width + width % 2, 3) and frame_rate(path) == 10
    assert abs(read[:, :height, :width].astype(int) - frames).mean() < 5
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_an_image_model_finds_each_frame_by_itself(slate_run, tmp_path, capsys):
    frames = noise(35, 32, 40, 3)
    path, out = write_frames(tmp_path / "clip.mov", frames), tmp_path / "out"
    main(["predict", str(slate_run), str(path), "--out", str(out), "--device", "cpu"])
    printed = capsys.readouterr()
    assert "slots and masks of 1 video; 0 inputs could not be read" in printed.out
    assert printed.err.count("each frame of a video is a picture by itself") == 1
    expected = ocl_msf.load(slate_run)(list(frames))
    slots = load_file(out / "slots.safetensors")["slots"]
    np.testing.assert_allclose(slots, expected.slots, rtol=0, atol=1e-5)
    assert [(row["key"], row["frame"], row["row"]) for row in index(out)] == [
        ("clip", str(i), str(i)) for i in range(35)
    ]
    assert (masks(out, "clip") == np.stack(expected.masks)).mean() > 0.99
    overlays = np.stack(list(read_frames(out / "overlays" / "clip.mp4")))
    assert overlays.shape == frames.shape
    stills = sorted((out / "overlays" / "clip").glob("*.png"))
    assert [path.stem for path in stills] == [f"{number:08d}" for number in (0, 7, 14, 20, 27, 34)]
    assert Image.open(out / "contact.png").size[0] > 300
    assert not [name for name in files(out) if name.startswith("parts") or name.endswith(".partial")]
    assert predict(slate_run, [str(path)], out, device="cpu") == (0, 0, 1, 0)


def test_a_video_model_goes_on_from_frame_to_frame_and_over_an_interruption(steve_run, tmp_path, monkeypatch):
    frames = noise(70, 32, 32, 3)
    path, out, whole = write_frames(tmp_path / "clip.mov", frames), tmp_path / "out", tmp_path / "whole"
    assert predict(steve_run, [str(path)], whole, device="cpu") == (0, 1, 0, 0)
    expected = ocl_msf.load(steve_run)(frames)
    slots = load_file(whole / "slots.safetensors")["slots"]
    np.testing.assert_allclose(slots, expected.slots[0], rtol=0, atol=1e-4)
    assert (masks(whole, "clip") == expected.masks[0].numpy()).mean() > 0.99
    find, shown = Model._find, []

    def interrupted(self, squares, *rest):
        if len(shown) == 2:
            raise KeyboardInterrupt
        shown.append(squares)
        return find(self, squares, *rest)

    monkeypatch.setattr(Model, "_find", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(steve_run, [str(path)], out, device="cpu")
    assert len(masks(out, "clip")) == 64 and not (out / "slots").exists()
    shown.pop()
    assert predict(steve_run, [str(path)], out, device="cpu") == (0, 1, 0, 0)
    assert [squares.shape[1] for squares in shown] == [32, 6]
    assert files(out) == files(whole)


def test_a_stream_is_held_in_memory_a_window_at_a_time(slate_run, steve_run):
    """Of its frames, what the model is shown is kept alone."""
    for run in (slate_run, steve_run):
        frames = []

        def stream(frames=frames):
            for number in range(100):
                frame = noise(40, 50, 3, seed=number)
                frames.append(weakref.ref(frame))
                yield frame

        for number, result in enumerate(ocl_msf.load(run).track(stream())):
            assert len(frames) == min(32 * (number + 1), 100) and result.scores.flatten(0, -4).shape[0] <= 32
            assert sum(frame() is not None for frame in frames) <= 2
        assert len(frames) == 100


def test_videos_in_shards_start_at_their_boxes(steve_run, tmp_path):
    frames, boxes = noise(3, 32, 32, 3), np.array([[[0.1, 0.1, 0.5, 0.5], [0, 0, 0, 0]]] * 3, np.float32)
    for name, array in (("video", frames), ("instance_bbox", boxes)):
        (tmp_path / f"0.{name}.npy.gz").write_bytes(encode_array(array))
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for path in sorted(tmp_path.glob("*.gz")):
            tar.add(path, path.name)
    assert predict(steve_run, [str(tmp_path / "shard.tar")], tmp_path / "out", device="cpu") == (0, 1, 0, 0)
    expected = ocl_msf.load(steve_run)(frames, boxes=torch.from_numpy(boxes[:1]))
    slots = load_file(tmp_path / "out" / "slots.safetensors")["slots"]
    np.testing.assert_allclose(slots, expected.slots[0], rtol=0, atol=1e-5)
    assert index(tmp_path / "out")[0]["key"] == "shard/0"


def test_frames_of_a_video_and_pictures_in_a_folder_of_its_name_stay_apart(slate_run, tmp_path):
    folder = tmp_path / "inputs"
    (folder / "clip").mkdir(parents=True)
    frames = noise(2, 32, 32, 3)
    Image.fromarray(frames[0]).save(folder / "clip" / "00000000.png")
    write_frames(folder / "clip.mov", frames[1:])
    assert predict(slate_run, [str(folder)], tmp_path / "out", device="cpu") == (1, 1, 0, 0)
    assert [row["key"] for row in index(tmp_path / "out")] == ["clip-2", "clip/00000000"]


def test_a_video_that_has_changed_is_done_again(slate_run, tmp_path):
    path, out = write_frames(tmp_path / "clip.mov", noise(3, 32, 32, 3)), tmp_path / "out"
    predict(slate_run, [str(path)], out, device="cpu")
    write_frames(path, noise(2, 32, 32, 3, seed=1))
    assert predict(slate_run, [str(path)], out, device="cpu") == (0, 1, 0, 0)
    assert len(masks(out, "clip")) == 2 and len(index(out)) == 2


def write_damaged(folder, name):
    path = folder / name
    frames = noise(60, 32, 32, 3)
    if name.startswith("cut"):
        cut_off(write_frames(path, frames, "mpeg4", "yuv420p"))
    elif name == "text.mp4":
        path.write_text("no video")
    elif name == "sound.mkv":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
    elif name == "empty.mkv":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
            container.start_encoding()
    return str(path)


DAMAGED = {
    "cut.mkv": r"cut.mkv is cut off or damaged after \d\d frames.",
    "cut.avi": r"cut.avi is cut off or damaged after \d\d frames.",
    "cut.mp4": "cut.mp4 cannot be read as a video: Invalid data",
    "text.mp4": "text.mp4 cannot be read as a video: Invalid data",
    "sound.mkv": "sound.mkv holds no video.",
    "empty.mkv": "empty.mkv is a video without frames.",
    "none.mp4": "none.mp4 does not exist.",
}


def test_what_is_wrong_with_a_video_is_said_in_a_sentence_and_nothing_is_left(slate_run, tmp_path):
    for name, message in DAMAGED.items():
        with pytest.raises(SystemExit, match=f"^error: .*{message}") as failure:
            path = write_damaged(tmp_path, name)
            main(["predict", str(slate_run), path, "--out", str(tmp_path / "out"), "--device", "cpu"])
        assert "\n" not in failure.value.code
    assert not (tmp_path / "out").exists()


def test_a_damaged_video_does_not_stop_the_others(slate_run, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    write_damaged(tmp_path / "in", "cut.mkv")
    write_frames(tmp_path / "in" / "whole.mov", noise(2, 32, 32, 3))
    main(["predict", str(slate_run), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--device", "cpu"])
    printed = capsys.readouterr()
    assert "slots and masks of 1 video; 1 input could not be read" in printed.out
    assert "cut.mkv is cut off or damaged after" in printed.err
    assert not [name for name in files(tmp_path / "out") if "cut" in name]


def test_without_pyav_a_sentence_says_what_to_install(slate_run, tmp_path, monkeypatch):
    path = write_frames(tmp_path / "clip.mov", noise(1, 32, 32, 3))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match="pip install av") as failure:
        predict(slate_run, [str(path)], tmp_path / "out", device="cpu")
    assert str(failure.value) == INSTALL and not (tmp_path / "out").exists()
