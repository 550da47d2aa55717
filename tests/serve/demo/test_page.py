"""The page in a real browser: answers, errors, both colours, both sizes, and nothing that leaves the machine."""

import shutil
import socket

import pytest

from tokentrim.serve.demo import Asking, open_page
from tokentrim.testbed.tasks import TASKS

DESK, PHONE = (1280, 900), (390, 844)
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # gradio's imports warn of what is theirs


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("gradio", reason="needs gradio: make test-demo", exc_type=ImportError)
    from tokentrim.loading import load_model

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    page = open_page(Asking(load_model("testbed-plain"), "testbed-plain"), "st3", "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.fixture(scope="module")
def chromium(address):
    library = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra 'dev')")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install the system's package 'chromium'")
    alone = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with library.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", alone])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, address):
    """Open the page; when the test ends, it has asked nobody else for anything and complained of nothing."""
    opened, requests, complaints = [], [], []

    def visit(size=DESK, scheme="light"):
        page = chromium.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        opened.append(page)
        page.set_default_timeout(120_000)
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        page.get_by_role("button", name="Ask both").wait_for()
        return page

    yield visit
    for page in opened:
        page.close()
    assert not [text for text in complaints if text != "Method not implemented."]  # gradio's own, of a cleared picture
    assert requests
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []


def violations(page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed (extra 'dev')")
    return [
        (found["id"], [node["html"][:120] for node in found["nodes"]][:3])
        for found in axe.Axe().run(page).response["violations"]
    ]


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def choose(page, label, option):
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")], ids=["desk", "phone"])
def test_an_example_is_asked_and_both_answers_stand_side_by_side(visit, size, scheme):
    page = visit(size, scheme)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    assert dark == (scheme == "dark")
    page.locator("#tt-examples tbody tr").nth(1).click()
    question = page.get_by_label("Question")
    page.wait_for_function("field => field.value.startsWith('color of')", arg=question.element_handle())
    page.get_by_role("button", name="Ask both").click()
    page.get_by_text("median and range of 3 runs").wait_for()
    assert page.locator(".tt-asked").inner_text() == question.input_value()
    cards = page.locator(".tt-card")
    assert cards.count() == 2
    assert cards.locator(".tt-answer").first.inner_text() == TASKS["color"].samples("test", 2)[1].answer
    assert page.locator(".tt-kept img").count() >= 3
    assert page.get_by_role("rowheader").all_inner_texts()[-1] == "each further token"
    assert overflow(page) <= 0
    for found in page.locator("summary").all():
        found.click()
    assert page.get_by_text("must be told which tokens hold the evidence").is_visible()
    assert violations(page) == []
    assert overflow(page) <= 0


def test_errors_speak_our_grammar_in_the_place_of_the_answers(visit, tmp_path):
    page = visit()
    page.locator("#tt-examples tbody tr").nth(3).click()
    choose(page, "Strategy", "fastv")
    page.get_by_label("number input for Budget, %").fill("5")
    page.get_by_label("number input for Budget, %").press("Enter")
    page.get_by_role("button", name="Ask both").click()
    alert = page.locator(".tt-wrong")
    alert.get_by_text("must be at least").wait_for()
    assert violations(page) == []
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    choose(page, "Strategy", "uniform")
    page.get_by_label("Remove Image").click()
    page.locator("input[type=file]").first.set_input_files(str(broken))
    page.wait_for_timeout(1000)
    page.get_by_role("button", name="Ask both").click()
    alert.get_by_text("broken.png").wait_for()
    assert "Traceback" not in page.content()


def test_what_has_no_knob_has_no_budget(visit):
    page = visit()
    matched = page.get_by_label("At a budget (off: its own settings)")
    assert matched.is_checked()
    choose(page, "Strategy", "text-only")
    page.get_by_text("drop every visual token").first.wait_for()
    assert not matched.is_checked()
    assert matched.is_disabled()
