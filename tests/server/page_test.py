"""The page at / in headless Chromium: send, stream, stop, reload, by mouse and by keyboard."""

import os
import re
import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
SIZES = {"desktop": (1100, 760), "phone": (375, 740)}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=SIZES)
def page(browser, server, request):
    width, height = SIZES[request.param]
    scheme = "dark" if request.param == "phone" else "light"
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.size = request.param
    page.problems = []
    page.on("console", lambda message: message.type == "error" and page.problems.append(message.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(server.url)
    playwright.expect(page.locator("#model")).to_contain_text("smollm2-135m")
    yield page
    assert page.problems == []
    context.close()


def ask(page, text):
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def settings(page, **values):
    page.get_by_role("button", name="Settings").click()
    for label, value in values.items():
        page.locator(f"#{label.replace('_', '-')}").fill(str(value))
    page.get_by_role("button", name="Settings").click()


def shot(page, name):
    """Kept where $KIVI_SCREENSHOTS says, for people to look at."""
    folder = os.environ.get("KIVI_SCREENSHOTS")
    if folder:
        page.screenshot(path=f"{folder}/{name}-{page.size}.png")


def test_asks_and_streams(page, server):
    settings(page, temperature=0)
    ask(page, "What is the capital of France?")
    answer = page.locator("#messages .assistant .text")
    playwright.expect(answer).to_contain_text("Paris", timeout=60000)
    playwright.expect(page.locator("#messages .note")).to_contain_text("tokens", timeout=60000)
    playwright.expect(page.locator("#status")).to_contain_text("Paris")  # for screen readers
    ask(page, "And of Italy?")
    playwright.expect(page.locator("#messages .note")).to_have_count(2, timeout=60000)
    shot(page, "chat")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    server.expect_idle()


def test_stops_by_button_and_key_and_shows_the_saving(page, server):
    settings(page, max_tokens=3000, temperature=2)  # so hot that no answer comes to an end by itself
    ask(page, "Write a very long story about a ship and its captain, in twenty chapters. Begin with chapter one.")
    playwright.expect(page.locator("#bits")).to_have_text(re.compile(r"\d+\.\d"), timeout=60000)
    playwright.expect(page.locator("#running")).to_have_text("1")
    playwright.expect(page.locator("#messages .assistant .text")).to_have_text(re.compile(r"\w.{400}", re.S), timeout=120000)
    page.get_by_role("button", name="Stop").click()
    playwright.expect(page.locator("#messages .note")).to_contain_text("stopped")
    server.expect_idle()
    ask(page, "Another one, please.")
    playwright.expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#messages .note")).to_have_count(2)
    playwright.expect(page.get_by_label("Message")).to_be_focused()
    server.expect_idle()


def test_reload_starts_anew_and_keeps_settings(page, server):
    settings(page, max_tokens=7, system="You are a pirate.")
    ask(page, "Hello")
    playwright.expect(page.locator("#messages .note")).to_contain_text("7 tokens", timeout=60000)
    page.reload()
    playwright.expect(page.locator("#messages li")).to_have_count(0)
    page.get_by_role("button", name="Settings").click()
    playwright.expect(page.locator("#max-tokens")).to_have_value("7")
    playwright.expect(page.locator("#system")).to_have_value("You are a pirate.")
    shot(page, "settings")
    # Leaving in mid-answer ends the request.
    page.locator("#max-tokens").fill("4000")
    page.locator("#temperature").fill("2")
    page.locator("#temperature").press("Tab")
    ask(page, "Count to one thousand, number by number.")
    playwright.expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.reload()
    server.expect_idle()


def test_errors_are_told(page):
    settings(page, max_tokens=100000)
    ask(page, "Hello")
    playwright.expect(page.locator("#messages .error")).to_contain_text("maximum context length", timeout=30000)
    page.problems.clear()  # the browser logs a 400


def test_everything_has_a_name(page):
    page.get_by_role("button", name="Settings").click()
    for field in page.locator("input, textarea, button, select").all():
        if field.is_visible():
            name = field.evaluate("e => e.labels?.length ? e.labels[0].textContent : e.getAttribute('aria-label') ?? e.textContent")
            assert name.strip(), field.evaluate("e => e.outerHTML")
