"""What the page of `ocl-msf view` does, without Gradio: pictures and videos, clicks, edits, what is painted."""

import dataclasses
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment

import ocl_msf
from ocl_msf.cli import main
from ocl_msf.files import DataError
from ocl_msf.inference.generation import Sampling
from ocl_msf.inference.inputs import read_picture
from ocl_msf.results.style import segment_palette
from ocl_msf.results.view import clips
from ocl_msf.results.view.clips import match_slots, open_clip
from ocl_msf.results.view.editor import DROP, SWAP, State, click, draw, edited, go_to, partner, put, reset, slot_at
from ocl_msf.results.view.library import Library, read_upload
from ocl_msf.results.view.markup import panel
from ocl_msf.results.view.page import Page, read_click
from ocl_msf.results.view.painting import paint_overlay, paint_tile

pytestmark = pytest.mark.needs_host


@pytest.fixture(scope="module")
def model(slate_run):
    return ocl_msf.load(slate_run)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def opened(model, images):
    """Two pictures, nothing edited."""
    state = State()
    for number, image in enumerate(images):
        state = put(state, number, open_clip(model, f"picture {number}", [image]))
    return state


@pytest.fixture
def folder(tmp_path):
    """Pictures, frames, and links that lead out of the folder."""
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    (folder / "moving").mkdir(parents=True)
    outside.mkdir()
    for path in (folder / "a.png", outside / "secret.png"):
        Image.effect_noise((40, 48), 90).save(path)
    for frame in (9, 10, 100):
        Image.new("RGB", (40, 40), (frame, 0, 0)).save(folder / "moving" / f"{frame}.png")
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "linked").symlink_to(outside)
    return folder


def test_a_clip_is_what_the_model_says(model, images, opened):
    result = model(list(images))
    for number, clip in enumerate(opened.clips):
        torch.testing.assert_close(clip.parts["objects"], result.slots[number : number + 1], rtol=0, atol=1e-5)
        assert clip.frames[0].shape == (448, 448, 3) and clip.segments(0).shape == (448, 448)
        expected = np.asarray(Image.fromarray(clip.segments(0)).resize((32, 32), Image.Resampling.NEAREST))
        assert (expected == result.scores[number].argmax(0).numpy()).mean() > 0.9
        assert clip.shares(0).sum() == pytest.approx(1)


def test_a_picture_that_is_stretched_is_shown_whole(model, images):
    assert open_clip(model, "", [images[0]], "stretch").frames[0].shape == (373, 448, 3)


def test_slots_that_changed_places_are_found_again():
    """Three soft masks that move, in another order in each frame."""
    masks = torch.zeros(3, 3, 8, 12)
    for frame in range(3):
        for slot in range(3):
            masks[frame, slot, :, 3 * slot + frame : 3 * slot + frame + 4] = 0.9
    orders = [[0, 1, 2], [2, 0, 1], [1, 2, 0]]
    shuffled = torch.stack([mask[order] for mask, order in zip(masks, orders)])
    found = match_slots(shuffled)
    assert torch.equal(torch.stack([x[order] for x, order in zip(shuffled, found)]), masks)


def test_slots_of_frames_are_matched_by_overlap(model, images):
    """And all that belongs to a slot with its mask."""
    clip = open_clip(model, "video", [*images])
    results = [model(image) for image in images]
    p, q = (result.scores[0].flatten(1).numpy() for result in results)
    both = p @ q.T
    _, order = linear_sum_assignment(both / (p.sum(1)[:, None] + q.sum(1) - both), maximize=True)
    torch.testing.assert_close(clip.scores[1], results[1].scores[0, order], rtol=0, atol=1e-5)
    torch.testing.assert_close(clip.parts["objects"][1], results[1].slots[0, order], rtol=0, atol=1e-5)


def test_slots_of_a_model_of_videos_go_on_by_themselves(make_run, images):
    model = ocl_msf.load(make_run("steve_movi_c"))
    clip = open_clip(model, "video", [*images])
    torch.testing.assert_close(clip.parts["objects"], model(images).slots[0], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="same size"):
        open_clip(model, "video", [images[0], images[0][:30]])


def test_long_videos_are_cut_and_empty_ones_refused(model, images, monkeypatch):
    monkeypatch.setattr(clips, "FRAMES", 3)
    assert open_clip(model, "", [images[0]] * 3).note == ""
    clip = open_clip(model, "", [images[0]] * 5)
    assert len(clip.frames) == len(clip.scores) == 3 and clip.note == "the first 3 frames"
    with pytest.raises(ValueError, match="film has no frames"):
        open_clip(model, "film", [])


def test_a_point_of_the_picture_is_a_slot(opened):
    segments = opened.clips[0].segments(0)
    for x, y in [(0, 0), (0.3, 0.8), (1, 1)]:
        row, column = (min(int(share * 448), 447) for share in (y, x))
        assert slot_at(opened, 0, x, y) == segments[row, column]
    for x, y in [(-0.1, 0), (0, 1.1), (float("nan"), 0)]:
        with pytest.raises(ValueError, match="no point"):
            slot_at(opened, 0, x, y)
    with pytest.raises(ValueError, match="Nothing is open"):
        slot_at(State(), 0, 0.5, 0.5)


def test_a_click_drops_a_slot_and_another_one_brings_it_back(opened):
    dropped = click(opened, 0, 2, DROP)
    assert edited(dropped)[0].parts["is_empty"].tolist() == [[False, False, True, False]]
    assert not edited(dropped)[1].parts["is_empty"].any()
    assert click(dropped, 0, 2, DROP).dropped == opened.dropped == frozenset()
    for slot in (0, 1):
        dropped = click(dropped, 0, slot, DROP)
    with pytest.raises(ValueError, match="All 4 slots"):
        click(dropped, 0, 3, DROP)
    with pytest.raises(ValueError, match="no slot 4"):
        click(opened, 0, 4, DROP)


def test_two_clicks_swap_slots_and_a_third_one_puts_them_back(opened):
    chosen = click(opened, 1, 3, SWAP)
    assert chosen.chosen == (1, 3) and click(chosen, 1, 3, SWAP).chosen is None
    swapped = click(chosen, 0, 1, SWAP)
    assert partner(swapped, 0, 1) == 3 and partner(swapped, 1, 3) == 1 and swapped.chosen is None
    before, after = (edited(state) for state in (opened, swapped))
    assert torch.equal(after[0].slots[0, 1], before[1].slots[0, 3])
    assert torch.equal(after[1].slots[0, 3], before[0].slots[0, 1])
    assert torch.equal(after[0].slots[0, [0, 2, 3]], before[0].slots[0, [0, 2, 3]])
    assert click(swapped, 1, 3, SWAP).swaps == ()
    alone = put(State(), 0, opened.clips[0])
    with pytest.raises(ValueError, match="second picture"):
        click(alone, 0, 1, SWAP)


def test_another_picture_ends_its_edits_and_keeps_those_of_the_other(opened):
    state = click(click(click(click(opened, 0, 0, SWAP), 1, 1, SWAP), 0, 2, DROP), 1, 3, DROP)
    other = put(state, 1, opened.clips[0])
    assert other.swaps == () and other.dropped == {(0, 2)}
    assert reset(state) == opened


def test_what_is_drawn_is_what_the_slots_give_and_only_what_changed_is_drawn_again(opened):
    state = draw(click(opened, 0, 2, DROP), Sampling())
    expected = edited(opened)[0].drop(2).reconstruct()[0].movedim(0, -1).numpy() * 255
    np.testing.assert_array_equal(state.drawings[0].image, expected.round())
    again = draw(click(state, 0, 1, DROP), Sampling())
    assert again.drawings[1] is state.drawings[1] and again.drawings[0] is not state.drawings[0]
    sampled = [draw(state, Sampling(1.0, seed=seed)).drawings[0].image for seed in (0, 0, 1)]
    assert np.array_equal(sampled[0], sampled[1]) and not np.array_equal(sampled[0], sampled[2])


def test_a_swap_takes_the_slot_of_the_frame_that_is_shown(model, images, opened):
    state = put(opened, 1, open_clip(model, "video", [*images]))
    state = click(click(go_to(state, 1, 1), 1, 0, SWAP), 0, 0, SWAP)
    assert torch.equal(edited(state)[0].slots[0, 0], state.clips[1].parts["objects"][1, 0])
    assert go_to(state, 1, 99).frames == (0, 1) and go_to(state, 1, -1).frames == (0, 0)
    assert draw(state, Sampling()).drawings[0] != draw(go_to(state, 1, 0), Sampling()).drawings[0]


def test_a_model_that_draws_nothing_says_so_beside_its_slots(slate_run, images):
    model = ocl_msf.load(slate_run)
    del model.models["guidance"]
    state = draw(put(State(), 0, open_clip(model, "", [images[0]])), Sampling())
    assert "reconstructs features, not images" in panel(state, 0, Sampling())


def test_slots_have_the_colours_of_predict(opened):
    segments, overlay = opened.clips[0].segments(0), np.asarray(paint_overlay(opened, 0)).astype(float)
    inner = np.zeros(segments.shape, bool)  # neither at a border nor under a number
    inner[1:, 1:] = (segments[1:, 1:] == segments[:-1, 1:]) & (segments[1:, 1:] == segments[1:, :-1])
    expected = opened.clips[0].frames[0] * 0.55 + segment_palette()[segments] * 0.45
    assert (np.abs(overlay - expected).max(-1)[inner] <= 1).mean() > 0.8
    slot = int(segments[100, 100])
    grey = np.asarray(paint_overlay(click(opened, 0, slot, DROP), 0))[100, 100]
    assert len(set(grey.tolist())) == 1 and grey[0] < 80
    assert paint_tile(opened, 0, slot).size == (112, 112)


def test_nothing_in_the_html_comes_from_elsewhere_or_is_more_than_text(opened):
    clip = dataclasses.replace(opened.clips[0], name="<script>{{x}} ${y}</script>")
    state = click(draw(put(opened, 0, clip), Sampling()), 0, 1, DROP)
    html = panel(state, 0, Sampling(), "<b>wrong</b>")
    assert "<script" not in html and "<b>wrong" not in html and "{{" not in html and "${" not in html
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall('src="([^"]*)"', html))
    assert html.count("data-slot=") == 4 and html.count('class="dropped"') == 1


def test_what_cannot_be_done_is_a_sentence_and_changes_nothing(model, opened, tmp_path):
    (tmp_path / "broken.png").write_text("no picture")
    page = Page(model, Library())
    for change, message in [
        (page.upload(1, tmp_path / "broken.png"), "broken.png cannot be read as a picture"),
        (page.choose(1, "../secret.png"), "There is no ../secret.png"),
        (read_click(1, DROP, {"x": "west", "y": 0}), "not understood"),
        (read_click(1, DROP, {}), "not understood"),
        (read_click(1, DROP, None), "not understood"),
    ]:
        state, html = page.show(opened, 1, change)
        assert state is opened and 'role="alert"' in html[1] and message in html[1] and "alert" not in html[0]
    assert str(tmp_path) not in page.show(opened, 1, page.upload(1, tmp_path / "broken.png"))[1][1]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3000, 2)])
def test_pictures_of_any_shape_are_shown(model, size, tmp_path):
    Image.new("RGB", size).save(tmp_path / "odd.png")
    for fit in ("crop", "stretch"):
        clip = open_clip(model, "odd", read_upload(tmp_path / "odd.png"), fit)
        assert max(clip.frames[0].shape) == 448


def test_a_library_is_the_pictures_of_its_folder_and_their_videos(folder):
    library = Library(folder)
    assert library.names == [
        "a.png",
        *(f"moving/{frame}.png" for frame in (9, 10, 100)),
        "moving/ as a video of 3 frames",
    ]
    (picture,) = library.frames("a.png")
    assert np.array_equal(picture, read_picture(folder / "a.png"))
    assert [int(frame[0, 0, 0]) for frame in library.frames(library.names[-1])] == [9, 10, 100]


@pytest.mark.parametrize(
    "name", ["link.png", "linked/secret.png", "../outside/secret.png", "/etc/passwd", "moving", ""]
)
def test_a_library_opens_nothing_else(folder, name):
    with pytest.raises(DataError, match="There is no"):
        next(Library(folder).frames(name))


def test_a_picture_that_became_a_link_out_of_the_folder_is_not_read(folder):
    library = Library(folder)
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(folder.parent / "outside" / "secret.png")
    with pytest.raises(DataError, match="leads out of the folder"):
        next(library.frames("a.png"))


def test_wrong_folders_and_models_are_one_sentence(slate_run, tmp_path, monkeypatch):
    for folder, message in [(tmp_path / "none", "is no folder"), (tmp_path, "holds no pictures")]:
        with pytest.raises(DataError, match=message):
            Library(folder)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # set back after this test
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=r"error: The page needs Gradio, .*: pip install 'ocl-msf\[app\]'"):
        main(["view", str(slate_run)])
