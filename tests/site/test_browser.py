"""The built site in a real browser: no sideways scrolling, no accessibility violation, scripts that do what they say.

Needs `chromium` on the path and axe-core from `npm ci`; both are test dependencies, and the tests fail without them.
"""

import pytest
from browsing import scrolls_sideways, violations

PAGES = {"home": "", "stage": "prefill/", "category": "prefill/token-compression/",
         "compared": "prefill/token-compression/compared/", "technique": "papers/fastv/",
         "compression": "decode/kv-cache-compression/compared/", "heads": "papers/narrow/measured/",
         "planned": "papers/hostile/", "papers": "papers/", "about": "about/", "search": "search/",
         "tutorial": "write-a-technique/", "core": "api/", "module": "api/seams/", "roofline": "roofline/",
         "reduction": "reduction/", "matrix": "compose/", "compare": "compare/", "chosen": "compare/?ids=fastv,narrow",
         "frontier": "frontiers/streaming/", "frontiers": "frontiers/",
         "model": "models/qwen2-5-vl-7b/", "venue": "venues/eccv/", "year": "years/2024/",
         "timeline": "timeline/", "relations": "relations/"}  # fmt: skip


@pytest.mark.parametrize(("scheme", "width"), [
    ("light", 1280), ("dark", 375), *(pytest.param(*rest, marks=pytest.mark.slow) for rest in
    [("dark", 1280), ("light", 375), ("light", 320), ("dark", 320)]),
])  # fmt: skip
def test_pages_are_accessible_and_never_scroll_sideways(browser, address, scheme, width):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, wrong = context.new_page(), {}
    for name, url in PAGES.items():
        page.goto(address + url)
        wrong[name] = violations(page) + ([("scrolls sideways", [])] if scrolls_sideways(page) else [])
    context.close()
    assert not {name: found for name, found in wrong.items() if found}


def test_the_accessibility_check_sees_a_seeded_fault(page, address):
    page.goto(address + "about/")
    page.evaluate("Object.assign(document.querySelector('h1').style, {color: '#eee', width: '3000px'})")
    assert [rule for rule, _ in violations(page)] == ["color-contrast"]
    assert scrolls_sideways(page)


def test_every_request_stays_on_the_site_and_succeeds(page, address):
    answers = []
    page.on("response", lambda response: answers.append((response.url, response.status)))
    page.on("requestfailed", lambda request: answers.append((request.url, 0)))
    for url in PAGES.values():
        page.goto(address + url, wait_until="networkidle")
    assert [(url, status) for url, status in answers if not url.startswith(address) or not 200 <= status < 400] == []
    assert any("woff2" in url for url, _ in answers)


def test_no_page_raises_a_script_error(page, address):
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    for url in PAGES.values():
        page.goto(address + url, wait_until="networkidle")
    assert errors == []


def test_the_theme_button_switches_and_the_choice_stays(page, address):
    page.emulate_media(color_scheme="light")
    page.goto(address)
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.get_by_role("button", name="Switch to dark theme").click()
    dark = page.evaluate(paper)
    page.goto(address + "papers/")
    assert light != dark
    assert page.evaluate(paper) == dark


def test_search_finds_a_technique_by_its_name(page, address):
    page.goto(address + "search/")
    page.get_by_role("searchbox").fill("fastv")
    page.locator("#search-results a").first.click()
    assert page.url == address + "papers/fastv/"


def test_the_run_block_copies_the_command_without_the_prompt(browser, address):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.clock.install()  # the word on the button changes back after a moment
    page.goto(address + "papers/fastv/")
    page.get_by_role("button", name="Copy").first.click()
    page.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "elvi run fastv --model tiny-qwen --sample 10003 --baseline"
    context.close()


def test_pages_read_fully_without_scripts(browser, address, root):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address + "papers/")
    assert page.locator(".papers tbody tr:visible").count() == len(list((root / "catalog").glob("*.yaml")))
    assert not page.locator("#explorer").is_visible()
    page.goto(address + "papers/fastv/")
    assert page.get_by_text("elvi run fastv").first.is_visible()
    assert not page.get_by_role("button", name="Copy").first.is_visible()
    context.close()


def test_the_keyboard_reaches_the_stages_from_the_skip_link(page, address):
    page.goto(address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent"))
    assert "Encode" in reached
