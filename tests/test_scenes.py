import functools
import itertools
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from ocl_msf.cli import main
from ocl_msf.data.synthetic._materials import sample_hard_material, sample_material
from ocl_msf.data.synthetic._render import Light, _lit, render
from ocl_msf.data.synthetic._shapes import BOUND, SHAPES, Body
from ocl_msf.data.synthetic.scenes import MIN_VISIBLE, VERSION, make_scenes, sample_scene, scene_path
from ocl_msf.files import DataError

SMALL = (64, 48)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_are_those_of_clevrtex(tmp_path):
    make_scenes(tmp_path, 2, workers=1)
    names = {f"CLEVRTEX_full_{i:06d}{ending}" for i in range(2) for ending in (".png", "_flat.png", ".json")}
    assert {path.name for path in (tmp_path / "clevrtex_full" / "0").iterdir()} == names
    for index in range(2):
        path = scene_path(tmp_path, index)
        with Image.open(f"{path}.png") as image, Image.open(f"{path}_flat.png") as mask:
            assert (image.mode, image.size) == ("RGBA", (320, 240))
            assert (mask.mode, mask.size) == ("P", (320, 240))
            assert mask.getpalette()[:9] == [0, 0, 0, 255, 0, 0, 0, 100, 0]
            numbers, visible = np.unique(np.asarray(mask), return_counts=True)
        record = json.loads((path.parent / f"{path.name}.json").read_text())
        assert numbers.tolist() == list(range(record["num_objects"] + 1))
        assert visible.min() > 60
        assert record["image_index"] == index and record["split"] == "full"
        assert record["image_filename"] == f"{path.name}.png"
        assert record["mask_filename"] == f"{path.name}_flat.png"
        assert set(record["directions"]) == {"behind", "front", "left", "right", "above", "below"}
        assert [thing["index"] for thing in record["objects"]] == list(range(1, record["num_objects"] + 1))
        keys = {"shape", "rotation", "size", "3d_coords", "pixel_coords", "index", "color", "material"}
        assert all(keys <= set(thing) for thing in record["objects"])


def test_relationships_agree_with_places(tmp_path):
    make_scenes(tmp_path, 1, size=SMALL, workers=1)
    path = scene_path(tmp_path, 0)
    record = json.loads((path.parent / f"{path.name}.json").read_text())
    left = np.array(record["directions"]["left"])
    for i, others in enumerate(record["relationships"]["left"]):
        for j, other in enumerate(record["objects"]):
            difference = np.array(other["3d_coords"]) - record["objects"][i]["3d_coords"]
            assert (j in others) == (difference @ left > 0.2)


def test_a_scene_depends_on_its_index_alone(tmp_path):
    make_scenes(tmp_path / "one", 5, size=SMALL, workers=1)
    make_scenes(tmp_path / "two", 3, size=SMALL, workers=2)
    make_scenes(tmp_path / "two", 5, size=SMALL, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    make_scenes(tmp_path / "seed", 5, seed=1, size=SMALL, workers=1)
    images = {content for name, content in contents(tmp_path).items() if name.endswith(".png")}
    assert len(images) == 2 * (5 + 5)


@pytest.mark.parametrize("kind", ["SIGKILL", "SIGINT"])
def test_an_interrupted_run_is_completed(tmp_path, kind):
    folder = tmp_path / "interrupted"
    command = [sys.executable, "-m", "ocl_msf", "scenes", str(folder), "--size", "64x48", "--count", "9000"]
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # in the background it would be ignored
    process = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.PIPE, preexec_fn=heed)
    while not list(folder.glob("*/*/*.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(getattr(signal, kind))
    message = process.communicate()[1].decode()  # returns when the workers, who share the pipe, have ended too
    assert process.returncode == (130 if kind == "SIGINT" else -signal.SIGKILL)
    assert ("Interrupted. Run the same command again" in message.splitlines()[-1]) == (kind == "SIGINT")
    done = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/*.json")}
    count = max(int(path.stem.rsplit("_", 1)[1]) for path in done) + 12
    assert make_scenes(folder, count, size=SMALL, workers=1) == count - len(done)
    assert all(path.stat().st_mtime_ns == written for path, written in done.items())
    make_scenes(tmp_path / "whole", count, size=SMALL, workers=1)
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_half_written_scene_is_made_again_and_others_stay(tmp_path):
    make_scenes(tmp_path, 3, size=SMALL, workers=1)
    whole = contents(tmp_path)
    path = scene_path(tmp_path, 1)
    (path.parent / f"{path.name}.json").unlink()
    image = path.parent / f"{path.name}.png"
    image.write_bytes(image.read_bytes()[:100])
    other = path.parent / "CLEVRTEX_full_000000.png"
    before = other.stat().st_mtime_ns
    assert make_scenes(tmp_path, 3, size=SMALL, workers=1) == 1
    assert contents(tmp_path) == whole
    assert other.stat().st_mtime_ns == before


def test_scenes_of_other_settings_are_not_mixed(tmp_path, capsys):
    make_scenes(tmp_path, 1, size=SMALL, workers=1)
    with pytest.raises(DataError, match=r"CLEVRTEX_full_000000\.json .*other settings"):
        make_scenes(tmp_path, 2, seed=1, size=SMALL, workers=1)
    with pytest.raises(SystemExit, match="other settings"):
        main(["scenes", str(tmp_path), "--count", "2", "--workers", "1"])
    with pytest.raises(SystemExit):
        main(["scenes", str(tmp_path), "--size", "64"])
    assert "--size" in capsys.readouterr().err


def test_hard_scenes_and_others_are_not_mixed(tmp_path):
    options = ["--count", "2", "--size", "64x48", "--workers", "1"]
    main(["scenes", str(tmp_path / "hard"), "--hard", *options])
    main(["scenes", str(tmp_path / "usual"), *options])
    for first, version, second in (("hard", 1, []), ("usual", VERSION, ["--hard"])):
        with pytest.raises(SystemExit, match=rf"other settings .*'version': {version}\b.* another folder"):
            main(["scenes", str(tmp_path / first), *second, *options])


def test_hard_scenes_stay_those_of_version_1():
    """What version 1 drew; colours are means of 16x16 blocks, where rounding of another processor does not show."""
    scene, mask = sample_scene(0, 1, 64, 48, hard=True)
    materials = "marble3 checker3 checker2 dots2 bricks3 contours2 dots4 wood4 clouds4"
    assert " ".join(material.name for material in scene.materials) == materials
    assert " ".join(body.shape for body in scene.bodies) == "cube cone ellipsoid pyramid prism cube prism cone"
    assert np.bincount(mask.ravel()).tolist() == [2572, 34, 176, 39, 38, 9, 16, 20, 168]
    expected = [
        [[165.54, 150.47, 209.95], [163.27, 148.1, 208.85], [156.09, 140.96, 197.26], [158.91, 143.29, 203.54]],
        [[169.86, 155.17, 214.88], [141.89, 129.92, 185.13], [130.93, 117.82, 162.84], [119.63, 97.71, 138.33]],
        [[175.28, 158.36, 228.73], [159.98, 145.47, 205.3], [174.81, 157.66, 223.96], [175.43, 158.07, 224.9]],
    ]
    blocks = render(scene).reshape(3, 16, 4, 16, 3)
    np.testing.assert_allclose(blocks.mean(axis=(1, 3)), expected, atol=0.03)


@pytest.fixture(scope="module", params=["usual", "hard"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def scenes(kind):
    return [sample_scene(3, index, 160, 120, hard=kind == "hard") for index in range(24)]


def test_bodies_are_few_apart_on_the_ground_and_of_very_different_sizes(scenes, kind):
    ratios = []
    for scene, mask in scenes:
        assert 3 <= len(scene.bodies) <= 10
        assert np.bincount(mask.ravel())[1:].min() > MIN_VISIBLE * mask.size
        for body, other in itertools.combinations(scene.bodies, 2):
            assert np.hypot(*(body.centre - other.centre)[:2]) > 1.2 * (body.radius + other.radius)
        for body in scene.bodies:
            assert body.centre[2] == pytest.approx(-SHAPES[body.shape].bottom * body.radius)
        radii = [body.radius for body in scene.bodies]
        ratios.append(max(radii) / min(radii))
    assert min(ratios) > (3 if kind == "hard" else 1.5) and max(ratios) > 4
    assert {body.shape for scene, _ in scenes for body in scene.bodies} == set(SHAPES)


def test_colour_alone_does_not_find_the_objects(tmp_path, kind):
    scores = []
    make_scenes(tmp_path, 8, size=(160, 120), workers=1, hard=kind == "hard")
    for index in range(8):
        with Image.open(f"{scene_path(tmp_path, index)}.png") as image:
            colours = np.asarray(image)[..., :3].reshape(-1, 3)
        with Image.open(f"{scene_path(tmp_path, index)}_flat.png") as mask:
            truth = np.asarray(mask).ravel()
        found = KMeans(11, n_init=1, random_state=0).fit_predict(colours.astype(float))
        scores.append(adjusted_rand_score(truth, found))
        assert len(np.unique(colours, axis=0)) > 500
    assert np.mean(scores) < 0.3


@pytest.mark.parametrize("flat, finest, contrasts", [(True, 3.5, (0.6, 1.3)), (False, 8, (0.35, 1.05))])
def test_materials_are_hard_ones_in_other_contrasts(flat, finest, contrasts):
    """Relative to its mean, the ramp is `contrast` times the hard one, wherever neither end of the range cuts it."""
    checked = 0
    for seed in range(60):
        hard = sample_hard_material(np.random.default_rng(seed), 1, finest, flat)
        material = sample_material(np.random.default_rng(seed), flat)
        assert (material.pattern, material.variant, material.gloss) == (hard.pattern, hard.variant, hard.gloss)
        assert 0 < material.ramp.min() and material.ramp.max() < 1
        cells = np.linalg.norm(material.frame, axis=0)
        np.testing.assert_allclose(cells, cells[0], rtol=1e-5)
        assert 2 * cells[0] > (1.8 if flat else 5), "cells across a body, or across as much of the ground"
        if material.ramp.min() > 0.0101 and material.ramp.max() < 0.899:
            relative, reference = (m.ramp / m.ramp.mean(axis=0) - 1 for m in (material, hard))
            contrast = np.abs(relative).sum() / np.abs(reference).sum()
            assert contrasts[0] < contrast < contrasts[1]
            np.testing.assert_allclose(relative, contrast * reference, atol=1e-4)
            checked += 1
    assert checked > 10


def test_a_lamp_lights_by_the_inverse_square_of_the_distance():
    sun = np.float32([0.6, 0, 0.8])
    lamp = Light(sun, np.ones(3), sun, np.ones(3), 0.2, distance=5)
    points = np.float32([[0, 0, 0], [3, 0, 2], [-3, 4, 0]])
    squares = ((np.array([3, 0, 4]) - points) ** 2).sum(axis=1)
    np.testing.assert_allclose(lamp.falloff(points.T), 25 / squares, rtol=1e-5)


INSIDE = {
    "sphere": lambda x, y, z: x**2 + y**2 + z**2 < 1,
    "ellipsoid": lambda x, y, z: 0.7 * x**2 + 1.6 * y**2 + 2.2 * z**2 < 1,
    "cube": lambda x, y, z: np.maximum(np.maximum(abs(x), abs(y)), abs(z)) < 0.5**0.5,
    "prism": lambda x, y, z: (
        (np.max([x * np.cos(a) + y * np.sin(a) for a in np.arange(6) * np.pi / 3], axis=0) < 0.95 * 0.75**0.5)
        & (abs(z) < 0.8)
    ),
    "pyramid": lambda x, y, z: (np.maximum(abs(x), abs(y)) < 1.1 * 0.5**0.5 * (0.7 - z) / 1.4) & (abs(z) < 0.7),
    "cylinder": lambda x, y, z: (x**2 + y**2 < 0.8) & (abs(z) < 0.8),
    "cone": lambda x, y, z: (np.hypot(x, y) < (0.9 - z) / 2) & (abs(z) < 0.9),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_rays_meet_bodies_where_small_steps_find_them(shape):
    """Directions from everywhere, many of them steep; steps of 0.005 along each ray are the reference."""
    rng = np.random.default_rng(0)
    body = Body(shape, 0.5, 0.7, np.float32([1, -2, 0.4]))
    target = body.centre[:, None] + rng.uniform(-0.5, 0.5, (3, 400))
    direction = rng.normal(size=(3, 400))
    direction[:2, :100] *= 0.1
    direction /= np.linalg.norm(direction, axis=0)
    origin = target - 3 * direction
    enter, leave = body.interval(origin.astype(np.float32), direction.astype(np.float32))
    steps = np.arange(1.5, 4.5, 0.005)
    x, y, z = ((origin[..., None] + direction[..., None] * steps) - body.centre[:, None, None]) / 0.5
    c, s = np.cos(0.7), np.sin(0.7)
    inside = INSIDE[shape](c * x + s * y, c * y - s * x, z)
    hit = inside.any(axis=1)
    assert 100 < hit.sum() < 400
    assert np.sqrt(x**2 + y**2 + z**2)[inside].max() < BOUND
    assert (leave - enter)[~hit].max() < 0.02
    np.testing.assert_allclose(enter[hit], steps[inside.argmax(axis=1)[hit]], atol=0.006)
    np.testing.assert_allclose(leave[hit], steps[-1 - inside[:, ::-1].argmax(axis=1)[hit]], atol=0.006)
    normals = body.normal((origin + enter * direction)[:, hit].astype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-4)
    assert (normals * direction[:, hit]).sum(axis=0).max() < 1e-3


def test_bodies_cast_shadows_away_from_the_sun(scenes):
    for scene, _ in scenes[:5]:
        sun = scene.light.sun
        for body in scene.bodies:
            shadow = body.centre - sun * body.centre[2] / sun[2]
            beside = shadow + np.float32([100, 0, 0])
            np.testing.assert_array_equal(_lit(scene, np.stack([shadow, beside], axis=1), 0, sun), [0, 1])
