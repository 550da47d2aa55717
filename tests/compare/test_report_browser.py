"""report.html in a real browser: what moves, what is read aloud, what fits, and what may not run."""

import json
import shutil
from pathlib import Path

import pytest

from tests.compare.hostile import HOSTILE, hostile
from tokentrim.compare.page import page as page_of
from tokentrim.compare.summary import Summary
from tokentrim.runs.kept import Kept

DESK, PHONE, SMALLEST = (1280, 900), (390, 844), (320, 568)
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def chromium():
    library = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra 'dev')")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install the system's package 'chromium'")
    with library.sync_playwright() as playwright:
        # The file is ours and the machine may be a container, where the sandbox cannot start.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """One page in one window, with everything that it complained of or asked the network for."""

    def __init__(self, chromium, path, size=DESK, scheme="light"):
        self.complaints, self.requests = [], []
        width, height = size
        self.page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page.set_default_timeout(10_000)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(Path(path).as_uri())

    def __enter__(self):
        return self.page

    def __exit__(self, *_):
        self.page.close()
        assert not self.complaints
        assert [url for url in self.requests if not url.startswith(("file:", "data:"))] == []
        assert sum(url.startswith("file:") for url in self.requests) == 1


@pytest.fixture(scope="module")
def report(finished):
    return finished.folder / "report.html"


def audit(page):
    """Violations that axe finds, with all that is folded opened."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed (extra 'dev')")
    page.evaluate("for (const found of document.querySelectorAll('details')) found.open = true")
    return [
        (found["id"], [node["html"][:120] for node in found["nodes"]][:3])
        for found in axe.Axe().run(page).response["violations"]
    ]


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def test_a_column_is_sorted_and_says_so(chromium, report):
    with Visit(chromium, report) as page:
        table = page.locator("#t1-1")
        heading = table.get_by_role("columnheader", name="p vs random")
        column = heading.evaluate("cell => cell.cellIndex")

        def values():
            return table.locator("tbody tr").evaluate_all(
                "(rows, column) => rows.map((row) => row.cells[column].dataset.sort)", column
            )

        first = values()
        assert heading.get_attribute("aria-sort") == "none"
        for word, sign in (("descending", -1), ("ascending", 1)):
            heading.get_by_role("button").focus()
            page.keyboard.press("Enter")
            assert heading.get_attribute("aria-sort") == word
            filled = [float(value) for value in values() if value]
            assert filled == sorted(filled, key=lambda value: sign * value)
            assert values()[len(filled) :] == [""] * (len(first) - len(filled)), "what has no value stays last"
        heading.get_by_role("button").click()
        assert heading.get_attribute("aria-sort") == "none"
        assert values() == first
        names = table.get_by_role("columnheader", name="method")
        names.get_by_role("button").click()
        assert names.get_attribute("aria-sort") == "ascending"


def test_groups_of_columns_come_and_go(chromium, report):
    with Visit(chromium, report) as page:
        group = page.locator("[data-for=t1-1]")
        assert not page.locator("#t1-1").get_by_role("columnheader", name="prefill, ms").is_visible()
        group.get_by_label("times").check()
        assert page.locator("#t1-1").get_by_role("columnheader", name="prefill, ms").is_visible()
        group.get_by_label("costs").uncheck()
        assert not page.locator("#t1-1").get_by_role("columnheader", name="FLOPs", exact=True).is_visible()


def test_the_slider_walks_through_layers_and_steps(chromium, report, finished):
    gallery = json.loads((finished.folder / "gallery.json").read_text())
    question = next(found for found in gallery["questions"] if found["task"] == "list-all")
    lines = {line["method"]: Kept.from_dict(line) for line in question["methods"] if line["method"] != "text-only"}
    with Visit(chromium, report) as page:
        page.locator("#question").select_option(label=question["question"])
        layer, step = (page.get_by_role("slider", name=name) for name in ("Layer", "Decode step"))
        assert int(layer.get_attribute("max")) == 5
        assert int(step.get_attribute("max")) == max(kept.steps for kept in lines.values())

        def shown():
            return {
                name: page.locator(".card", has=page.get_by_text(name, exact=True)).locator(".count").inner_text()
                for name in lines
            }

        def expected(at, then):
            return {
                name: f"{len(kept.at(at, min(then, kept.steps)))} of {kept.n_visual}" for name, kept in lines.items()
            }

        # It opens where a method has pruned.
        opened = int(layer.input_value())
        assert any(len(kept.at(opened)) < kept.n_visual for name, kept in lines.items() if name == "fastv")
        assert shown() == expected(opened, 0)
        layer.focus()
        page.keyboard.press("Home")
        assert shown() == expected(0, 0)
        for at in (1, 2, 3):
            page.keyboard.press("ArrowRight")
            assert shown() == expected(at, 0)
        assert layer.get_attribute("aria-valuetext") == "layer 3"
        step.focus()
        page.keyboard.press("End")
        then = int(step.input_value())
        assert shown() == expected(3, then)
        assert f"vta {len(lines['vta'].end)}" in page.locator("#spoken").inner_text() or then > lines["vta"].steps
        faded = page.get_by_role("img", name=f"vta, layer 3, step {lines['vta'].steps}")
        assert "no longer seen" in faded.get_attribute("aria-label")
        assert faded.locator(".hatch").get_attribute("d")


def test_play_walks_by_itself_and_stops(chromium, report):
    from playwright.sync_api import expect

    with Visit(chromium, report) as page:
        play = page.get_by_role("button", name="Play")
        play.click()
        stop = page.get_by_role("button", name="Stop")
        assert stop.get_attribute("aria-pressed") == "true"
        expect(page.locator("#layer")).not_to_have_value("0")
        stop.click()
        assert play.get_attribute("aria-pressed") == "false"


def test_a_point_speaks_to_pointer_and_keyboard(chromium, report):
    with Visit(chromium, report) as page:
        chart, tip = page.locator(".front svg").first, page.locator("#tip")
        assert not tip.is_visible()
        chart.focus()
        page.keyboard.press("ArrowRight")
        assert tip.is_visible()
        first = tip.inner_text()
        assert "score" in first
        page.keyboard.press("ArrowRight")
        assert tip.inner_text() != first
        page.keyboard.press("Escape")
        assert not tip.is_visible()
        fastv = page.locator(".front").first.locator(".series .marker[data-said^='fastv']")
        where = fastv.bounding_box()
        page.mouse.move(where["x"] + where["width"] / 2, where["y"] + where["height"] / 2)
        assert "fastv · 50%" in tip.inner_text(), "points that lie on each other all speak"
        assert "fastv" in page.locator(".front").nth(1).locator(".label.lit").all_text_contents()
        box = tip.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= DESK[0]


def test_colours_follow_the_system_and_the_button(chromium, report):
    def paper(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = "rgb(255, 255, 255)", "rgb(20, 23, 28)"
    with Visit(chromium, report, scheme="dark") as page:
        button = page.locator("#theme")
        assert paper(page) == dark
        button.click()
        assert (paper(page), button.inner_text().split()[-1]) == (light, "light")
        button.click()
        assert paper(page) == dark
        assert button.get_attribute("aria-label") == "Colours: dark"
    with Visit(chromium, report) as page:
        assert paper(page) == light


@pytest.mark.parametrize("size", [DESK, PHONE, SMALLEST], ids=lambda size: f"{size[0]}px")
def test_nothing_runs_over_the_side(chromium, report, size):
    with Visit(chromium, report, size) as page:
        assert overflow(page) <= 0
        page.evaluate("document.querySelector('details').open = true")
        assert overflow(page) <= 0
        small = page.locator("button:visible, select:visible, input[type=range]:visible").evaluate_all(
            "(all) => all.filter((one) => !one.closest('thead') && one.getBoundingClientRect().height < 28)"
            ".map((one) => one.outerHTML)"
        )
        assert small == []


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")], ids=["desk-light", "phone-dark"])
def test_an_audit_of_accessibility_finds_nothing(chromium, report, size, scheme):
    with Visit(chromium, report, size, scheme) as page:
        # axe is put into the page by the test's tool, past the page's policy, so its own script is no request of ours.
        assert audit(page) == []


def test_landmarks_and_the_way_past_them(chromium, report):
    with Visit(chromium, report) as page:
        for role in ("banner", "navigation", "main"):
            assert page.get_by_role(role).count() == 1
        page.keyboard.press("Tab")
        assert page.locator(":focus").inner_text() == "Skip to the results"
        assert page.locator(":focus").is_visible()
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        for link in page.get_by_role("navigation").get_by_role("link").all():
            assert page.locator(link.get_attribute("href")).count() == 1


def test_hostile_text_stays_text(chromium, finished, tmp_path):
    gallery = json.loads((finished.folder / "gallery.json").read_text())
    data, pictures = hostile(finished.data, gallery)
    path = tmp_path / "hostile.html"
    path.write_text(page_of(Summary(tmp_path, data), pictures), encoding="utf-8")
    with Visit(chromium, path) as page:
        page.get_by_role("slider", name="Layer").focus()
        page.keyboard.press("End")
        page.locator(".front .series .marker").last.hover()
        assert page.evaluate("window.pwned") is None
        assert page.locator("img, main b").count() == 0
        assert HOSTILE in page.locator("#asked").inner_text()
        assert overflow(page) <= 0


def test_without_scripts_the_numbers_are_there(chromium, report):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(Path(report).as_uri())
    assert page.locator("#t1-1 tbody tr").count() >= 5
    assert page.locator(".front svg").count() >= 3
    assert "needs JavaScript" in page.locator("noscript").first.inner_text()
    context.close()


def test_methods_are_filled_and_controls_are_hollow_wherever_they_stand(chromium, report):
    script = """(all) => all.map((one) => {
        const { fill, stroke } = getComputedStyle(one.querySelector(".marker"));
        const roles = ["method", "control", "bound", "text", "reference"];
        return `${roles.find((role) => one.classList.contains(role))} ${fill === stroke ? "filled" : "hollow"}`;
    })"""
    with Visit(chromium, report) as page:
        found = set(page.locator(".swatch, .front .series").evaluate_all(script))
    # Swatches of the gallery's cards have their card's role.
    assert found - {"undefined filled", "undefined hollow"} == {
        "method filled", "control hollow", "bound hollow", "text hollow", "reference hollow",
    }  # fmt: skip
