"""Click through the page of `ocl-msf view` in headless Chromium; run by hand, pytest does not collect it.

    pip install playwright
    python tests/browser/look.py --chromium /usr/bin/chromium --out screenshots

It serves pictures and a video made here with the model in the box, drops and swaps slots with real clicks, moves the
slider of the video, and leaves screenshots of a phone's width and a desktop's. It fails on a wrong state, an error in
the console, a request to another machine, and a page that is wider than the screen.
"""

import argparse
import tempfile
import threading
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.sync_api import expect, sync_playwright

import ocl_msf
from ocl_msf.data.synthetic._render import render
from ocl_msf.data.synthetic.scenes import sample_scene
from ocl_msf.results.view.library import Library
from ocl_msf.results.view.page import Page
from ocl_msf.results.view.server import listen, make_app

WIDTHS = {"phone": (390, 844), "desktop": (1280, 900)}
SLOW = 60_000  # milliseconds


def write_pictures(folder):
    """Two scenes, and a video of a third one that moves."""
    for number in range(2):
        Image.fromarray(render(sample_scene(7, number, 160, 120)[0])).save(folder / f"scene-{number + 1}.png")
    (folder / "moving").mkdir()
    wide = render(sample_scene(11, 3, 200, 128)[0])
    for frame in range(8):
        Image.fromarray(wide[:, 9 * frame : 9 * frame + 128]).save(folder / "moving" / f"{frame}.png")


def pixels(page, name):
    """What an image of the page shows, as its address."""
    return page.locator(name).get_attribute("src")


def changed(page, name, before):
    expect(page.locator(name)).not_to_have_attribute("src", before, timeout=SLOW)


def click_through(page, out, width):
    slots = {letter: page.locator(f"#picture-{letter} .slots button") for letter in "AB"}
    expect(slots["A"]).to_have_count(11, timeout=SLOW)
    expect(slots["B"]).to_have_count(11)
    page.screenshot(path=out / f"{width}-start.png", full_page=True)

    drawn = pixels(page, "#picture-A .drawn")
    box = page.locator("#picture-A .overlay").bounding_box()
    page.locator("#picture-A .overlay").click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    expect(page.locator("#picture-A .dropped")).to_have_count(1, timeout=SLOW)
    changed(page, "#picture-A .drawn", drawn)
    slots["A"].nth(3).press("Enter")
    expect(page.locator("#picture-A .dropped")).to_have_count(2, timeout=SLOW)
    page.screenshot(path=out / f"{width}-dropped.png", full_page=True)
    slots["A"].nth(3).click()
    expect(page.locator("#picture-A .dropped")).to_have_count(1, timeout=SLOW)
    page.get_by_role("button", name="Undo all edits").click()
    expect(page.locator("#picture-A .dropped")).to_have_count(0, timeout=SLOW)
    assert pixels(page, "#picture-A .drawn") == drawn, "undone edits do not give the first drawing back"

    page.get_by_text("swaps, one of A with one of B").click()
    slots["A"].nth(6).click()
    expect(page.locator("#picture-A .chosen")).to_have_count(1, timeout=SLOW)
    page.screenshot(path=out / f"{width}-chosen.png", full_page=True)
    slots["B"].nth(2).click()
    expect(slots["A"].nth(6)).to_contain_text("= B2", timeout=SLOW)
    expect(slots["B"].nth(2)).to_contain_text("= A6")
    changed(page, "#picture-A .drawn", drawn)
    page.screenshot(path=out / f"{width}-swapped.png", full_page=True)

    page.get_by_label("Picture B").click()
    page.get_by_role("option", name="moving/ as a video").click()
    expect(page.locator("#picture-B figcaption").first).to_contain_text("frame 1 of 8", timeout=SLOW)
    colors = [slots["B"].nth(number).get_attribute("style") for number in range(11)]
    page.locator("#frame-B input[type=range]").press("End")
    expect(page.locator("#picture-B figcaption").first).to_contain_text("frame 8 of 8", timeout=SLOW)
    assert colors == [slots["B"].nth(number).get_attribute("style") for number in range(11)]
    page.screenshot(path=out / f"{width}-video.png", full_page=True)

    page.locator("#picture-B").evaluate("it => it.scrollIntoView()")
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"no picture"}
    page.locator("input[type=file]").last.set_input_files(broken)
    expect(page.locator("#picture-B .message")).to_contain_text("broken.png cannot be read", timeout=SLOW)
    page.screenshot(path=out / f"{width}-broken.png", full_page=True)
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} pixels wider than the screen"


def watch(page, address):
    """A list to which errors of the console and requests to elsewhere are added."""
    wrong = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    own = (address, "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser")
    parser.add_argument("--out", type=Path, default=Path("screenshots"), help="folder for the screenshots")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        write_pictures(Path(folder))
        app = make_app(Page(ocl_msf.load("pretrained:scenes"), Library(Path(folder))), "pretrained:scenes")
        listening = listen("127.0.0.1", 0)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=options.chromium)
        for name, (width, height) in WIDTHS.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            wrong = watch(page, address)
            page.goto(address)
            click_through(page, options.out, name)
            assert not wrong, "\n".join(wrong)
            page.close()
        browser.close()
        server.should_exit = True
    print(f"all as it should be; look at {options.out}")


if __name__ == "__main__":
    main()
