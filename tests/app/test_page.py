"""The page in a real browser, and its API; needs gradio, playwright and Chromium."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

gradio_client = pytest.importorskip("gradio_client", reason="the extra app is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.filterwarnings("ignore"),  # of the browser's driver and the client
]
SCENE = str(Path(__file__).parents[2] / "docs" / "scene.png")
CLASSES = "wood\na blue cloth with crosses; a blue cloth\na yellow cloth with rings"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
COMMAND = [sys.executable, "-c", "from gla_jax.cli import script; script()", "app", "--port"]


def start(port):
    """The page as a process of its own, and its address."""
    process = subprocess.Popen([*COMMAND, str(port)], stdout=subprocess.PIPE, text=True)
    return process, re.search(r"http://\S+", process.stdout.readline())[0]


@pytest.fixture(scope="module")
def address():
    process, url = start(7897)
    yield url
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 143


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


def ask(page, address, classes=CLASSES, image=SCENE):
    page.goto(address)
    page.locator("input[type=file]").first.set_input_files(image)
    page.get_by_label("Classes, by lines").fill(classes)
    page.locator("button[aria-label*=ullscreen]").first.wait_for()  # the upload is there
    page.get_by_role("button", name="Segment", exact=True).click()


def shares(page):
    page.locator("table.shares").wait_for(timeout=120_000)
    return page.locator("table.shares").inner_text()


@pytest.mark.parametrize("width", [1280, 390])
def test_drop_type_segment_explain(browser, address, width):
    """On a desktop and on a phone; nothing sticks out to the right."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    ask(page, address)
    assert re.search(r"a yellow cloth with rings\s+1\d\.\d%", shares(page))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_label("wood", exact=True).uncheck()
    page.get_by_text(re.compile("coco")).first.wait_for()
    page.get_by_role("button", name="Compare").click()
    page.locator("#comparison img").nth(1).wait_for(state="attached", timeout=120_000)  # lazy: below the fold
    page.locator("img[alt='']:visible, .image-frame img").first.click(position={"x": 90, "y": 90})
    page.locator("#explained img").wait_for(state="attached", timeout=120_000)
    page.close()


def test_mistakes_are_sentences(browser, address, tmp_path):
    page = browser.new_page()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    page.goto(address)
    page.get_by_label("Classes, by lines").fill(CLASSES)
    page.get_by_role("button", name="Segment", exact=True).click()
    page.get_by_text("there is no image; drop one").wait_for(timeout=60_000)
    page.close()


def test_two_tabs_at_once(browser, address):
    pages = [browser.new_page() for _ in range(2)]
    for page, classes in zip(pages, ("wood\nsand", "water\ngrass"), strict=True):
        ask(page, address, classes)
    assert "wood" in shares(pages[0])
    assert "grass" in shares(pages[1])
    for page in pages:
        page.close()


def test_the_api_answers_in_batches_with_sentences(address):
    """Image and classes in, labels and shares out; one bad request of a batch leaves the others alone."""
    client = gradio_client.Client(address, verbose=False)
    image = gradio_client.handle_file(SCENE)
    jobs = [
        client.submit(image, classes, "tiny-world", "gla", api_name="/segment")
        for classes in (CLASSES, "wood, water", "one")
    ]
    answers = [json.loads(job.result(timeout=120)[1]) for job in jobs]
    assert answers[0]["classes"][0] == "wood"
    assert sum(answers[1]["shares"].values()) == pytest.approx(1)
    assert "class" in answers[2]["error"]


def test_the_api_reads_images_as_the_command_line_does(address, tmp_path):
    """Gradio's reader turned 16 bits white without a word, and answered files that are no images in its own words."""
    grey = np.asarray(Image.open(SCENE).convert("L"))
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    client = gradio_client.Client(address, verbose=False)
    answers = []
    for name in ("8.png", "16.png", "broken.png"):
        image = gradio_client.handle_file(str(tmp_path / name))
        answers.append(json.loads(client.predict(image, CLASSES, "tiny-world", "gla", api_name="/segment")[1]))
    assert answers[0] == answers[1]
    assert answers[2]["error"].startswith("broken.png cannot be read as an image")


def post(url, body, content="application/json"):
    with urlopen(Request(url, body, {"Content-Type": content}), timeout=60) as reply:
        return json.load(reply)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_page_answers_all_that_it_took_and_takes_no_more(number, status):
    """As curl asks: the page is stopped before the first answer is fetched."""
    process, url = start(7898)
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%s\r\n--x--\r\n'
    (place,) = post(f"{url}gradio_api/upload", form % Path(SCENE).read_bytes(), "multipart/form-data; boundary=x")
    image = {"path": place, "meta": {"_type": "gradio.FileData"}}
    bodies = [
        json.dumps({"data": [image, classes, "tiny-world", method]}).encode()
        for classes in (CLASSES, "wood, water", "sand, brick, wood")
        for method in ("gla", "gla", "sclip", "clearclip")
    ]
    call = f"{url}gradio_api/call/segment"
    events = [post(call, body)["event_id"] for body in bodies]
    process.send_signal(number)
    refused = None
    while not refused:  # until the signal has arrived
        try:
            events.append(post(call, bodies[0])["event_id"])
        except HTTPError as error:
            refused = error.code, error.read()
    assert refused == (503, b"the page is being stopped; ask again later.")
    for event in events:
        with urlopen(f"{call}/{event}", timeout=120) as stream:
            assert r"\"shares\"" in stream.read().decode().partition("event: complete")[2]
        time.sleep(0.5)  # a slow reader: all answers are there before the last is fetched
    assert process.wait(90) == status
