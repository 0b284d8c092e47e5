"""The page at /ui in a real browser, on a real server."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import openai
import pytest

pytest.importorskip("playwright", reason="needs the Python package playwright")
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.server import running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.skipif(
        shutil.which("chromium") is None, reason="needs the Debian package chromium"
    ),
]
SYSTEM = "You are a patient gardener who answers in one short sentence. " * 12


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that has answered three requests with a common system prompt."""
    with running("--kv-budget", "64MiB") as server:
        for question in ("When do I plant beans?", "When do I plant peas?", "What do bees eat?"):
            ask(server.url, question)
        yield server.url


def ask(url: str, question: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        client.chat.completions.create(
            model="SmolLM2-135M-Instruct",
            messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
            max_tokens=8,
        )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page, after its first event. Fails if a script failed or a file was missing."""
    wrong: list[str] = []
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("requestfailed", lambda failed: wrong.append(failed.url))
    opened.on("response", lambda had: wrong.append(had.url) if had.status in (404, 500) else None)
    opened.goto(f"{url}/ui")
    expect(opened.locator("#server")).to_have_text("ready")
    yield opened
    opened.close()
    assert wrong == []


def test_the_tree_is_drawn_and_a_box_tells_what_it_is(page: Page) -> None:
    boxes = page.locator("#tree g")
    expect(boxes.first).to_be_visible()
    assert boxes.count() >= 3
    boxes.first.click()
    expect(page.locator("#node")).to_contain_text("You are a patient gardener")
    expect(page.locator("#node dl")).to_contain_text("public")


def test_the_tree_is_used_without_a_mouse(page: Page) -> None:
    first = page.locator("#tree g").first
    expect(first).to_be_visible()
    first.focus()
    page.keyboard.press("ArrowRight")
    spoken = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert "tokens" in spoken
    assert page.evaluate("document.activeElement.getAttribute('aria-level')") == "2"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(page.locator("#path button")).to_have_count(2)
    page.locator("#tree g").first.focus()
    page.keyboard.press("Escape")
    expect(page.locator("#path button")).to_have_count(1)


@pytest.mark.parametrize("by", ["age", "hits", "tenant"])
def test_each_colouring_has_a_scale(page: Page, by: str) -> None:
    page.locator(f"#colours input[value={by}]").check()
    expect(page.locator("#tree-scale")).not_to_be_empty()
    assert "NaN" not in page.content()


def test_requests_appear_on_the_timeline_and_in_the_numbers(page: Page, url: str) -> None:
    ask(url, "When do I plant leeks?")
    expect(page.locator("#timeline-said")).to_contain_text("requests")
    expect(page.locator("#timeline rect").first).to_be_visible()
    expect(page.locator("#tile-share")).to_contain_text("%")
    expect(page.locator("#tile-ghost")).to_have_text("+0 %")  # nothing was evicted
    assert "NaN" not in page.content()


def test_a_prompt_is_explained(page: Page) -> None:
    body = {
        "messages": [
            {"role": "system", "content": SYSTEM.replace("one short", "two short")},
            {"role": "user", "content": "When do I plant beans?"},
        ]
    }
    page.locator("#explain-body").fill(json.dumps(body))
    page.get_by_role("button", name="Explain").click()
    explained = page.locator("#explained")
    expect(explained).to_contain_text("prefix changed")
    expect(explained.locator("mark").first).to_contain_text("two")
    expect(explained.locator("mark").last).to_contain_text("one")
    page.locator("#explain-body").fill("{}")
    page.get_by_role("button", name="Explain").click()
    expect(explained.locator(".bad")).to_contain_text("must have")


def test_a_branch_is_pinned(page: Page) -> None:
    page.locator("#tree g").last.click()
    page.get_by_role("button", name="Pin for an hour").click()
    expect(page.locator("#tree-note")).to_contain_text("Pinned for an hour")
    expect(page.locator("#tree g[aria-label*=pinned]").first).to_be_visible()


def test_the_budget_is_changed(page: Page) -> None:
    form = page.locator("#budget-form")
    expect(form.locator("input")).to_have_value("64")
    form.locator("input").fill("32")
    form.get_by_role("button", name="Change").click()
    expect(page.locator("#budget-note")).to_have_text(
        re.compile(r"The budget is changed; [0-9,]+ tokens? were evicted\.")
    )
    expect(page.locator("#tile-bytes")).to_contain_text("of 32 MiB")
    form.locator("input").fill("64")
    form.get_by_role("button", name="Change").click()
    expect(page.locator("#tile-bytes")).to_contain_text("of 64 MiB")


def test_a_branch_is_dropped(page: Page) -> None:
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#tree g").last.click()
    page.get_by_role("button", name="Drop").click()
    expect(page.locator("#tree-note")).to_contain_text("Dropped")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser: Browser, url: str, scheme: Literal["light", "dark"]) -> None:
    phone = browser.new_context(
        viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True
    )
    page = phone.new_page()
    page.goto(f"{url}/ui")
    expect(page.locator("#tree g").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#tree g").last.click()
    page.get_by_role("button", name="Pin for an hour").click()
    remove = page.locator("#pins").get_by_role("button", name="Remove")
    expect(remove).to_be_visible()
    box = remove.bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= 380  # not behind a scroll
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    remove.click()
    expect(remove).to_have_count(0)
    phone.close()


def test_each_tier_has_a_tree_that_tells_where_else_its_tokens_lie(
    browser: Browser, tmp_path: Path
) -> None:
    with running(
        *("--kv-budget", "32MiB", "--host-budget", "64MiB"),
        *("--disk-path", str(tmp_path / "kv"), "--disk-budget", "256MiB"),
    ) as server:
        for question in ("When do I plant beans?", "What do bees eat?"):
            ask(server.url, question)
        page = browser.new_page()
        page.goto(f"{server.url}/ui")
        page.locator("#tier-choices").get_by_text("disk").click()
        page.locator("#colours").get_by_text("tier").click()
        expect(page.locator("#tree-scale")).to_contain_text("device + disk")
        page.locator("#tree g").first.click()
        expect(page.locator("#node dl")).to_contain_text("lies in")
        expect(page.get_by_role("button", name="Pin for an hour")).to_be_hidden()
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Drop").click()
        expect(page.locator("#tree-note")).to_contain_text("disk:")
        expect(page.locator("#tree-empty")).to_be_visible()
        page.locator("#tier-choices").get_by_text("host").click()
        expect(page.locator("#tree-empty")).to_be_visible()
        page.close()


HOSTILE = "<img src=x onerror=alert(1)>\u202eneddih\x1b[2J</pre><script>alert(2)</script>"


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of two tenants that has answered a hostile prompt of one of them."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text(
        f'[tenants.research]\nkeys = ["{RESEARCH}"]\n'
        f'[tenants.operator]\nkeys = ["{OPERATOR}"]\nadmin = true\n'
    )
    file.chmod(0o600)
    with running("--api-key-file", str(file)) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=RESEARCH, timeout=60) as client:
            client.completions.create(
                model="SmolLM2-135M-Instruct",
                prompt=HOSTILE * 2,
                max_tokens=2,
                user=HOSTILE,
                extra_headers={"x-request-id": "<b>bold</b>"},
            )
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=OPERATOR, timeout=60) as client:
            client.completions.create(model="SmolLM2-135M-Instruct", prompt="Hi!", max_tokens=2)
        yield server.url


RESEARCH, OPERATOR = "research-key-of-a-test-0001", "operator-key-of-a-test-0001"


def opened(browser: Browser, url: str, key: str) -> Page:
    """The page after a key was given; it fails if anything in it runs."""
    page = browser.new_page()
    page.on("dialog", lambda dialog: pytest.fail(f"text became a script: {dialog.message}"))
    page.goto(f"{url}/ui")
    expect(page.locator("#key")).to_be_focused()
    page.locator("#key").fill(key)
    page.get_by_role("button", name="Show").click()
    return page


def test_text_of_users_stays_text(browser: Browser, tenants: str) -> None:
    page = opened(browser, tenants, OPERATOR)
    page.locator("#tree g").first.click()
    expect(page.locator("#node pre")).to_contain_text("<img src=x onerror")
    page.get_by_role("button", name="Pin for an hour").click()
    expect(page.locator("#pins td").first).to_contain_text("<img src=x onerror")
    page.locator("#explain-body").fill(json.dumps({"tokens": [44] * 20}))
    page.get_by_role("button", name="Explain").click()
    expect(page.locator("#explained strong")).to_be_visible()
    shown = page.locator("#content")
    assert shown.locator("img, script, b").count() == 0
    text = page.evaluate("document.documentElement.outerHTML")
    assert "\u202e" not in text
    assert "\x1b" not in text
    page.get_by_role("button", name="Remove the pin").click()
    expect(page.locator("#pins-empty")).to_be_visible()
    page.close()


def test_several_tenants_have_a_table_and_a_prompt_is_explained_for_one(
    browser: Browser, tenants: str
) -> None:
    page = opened(browser, tenants, OPERATOR)
    expect(page.locator("#tenants tbody th")).to_have_text(["research", "operator"])
    page.locator("#tree g").first.click()
    expect(page.locator("#node dl")).to_contain_text("research")
    page.locator("#explain-body").fill(HOSTILE * 2)
    page.locator("#explain-tenant").select_option("research")
    page.get_by_role("button", name="Explain").click()
    expect(page.locator("#explained dl").first).to_contain_text("device")
    page.locator("#explain-body").fill('{"prompt": ')
    page.get_by_role("button", name="Explain").click()
    expect(page.locator("#explained .bad")).to_contain_text("begins like JSON")
    page.close()


def test_a_tenant_who_is_no_administrator_sees_nothing(browser: Browser, tenants: str) -> None:
    page = opened(browser, tenants, RESEARCH)
    expect(page.locator("#key-note")).to_contain_text("administrator")
    expect(page.locator("#content")).to_be_hidden()
    assert page.locator("#tree g, #timeline rect, #pins td").count() == 0
    assert "research/" not in page.content()
    page.close()


def test_a_page_that_is_open_for_a_day_keeps_nothing_for_ever(browser: Browser, url: str) -> None:
    page = browser.new_page()
    page.clock.install()
    page.route("**/ui/events", lambda route: route.fulfill(body=an_hour(page)))
    page.goto(f"{url}/ui")
    sizes = []
    for _ in range(24):
        page.clock.fast_forward("59:57")
        page.clock.run_for(4000)
        expect(page.locator("#server")).to_have_text("no answer")
        sizes.append(page.evaluate("document.querySelectorAll('*').length"))
    assert max(sizes[12:]) <= 1.1 * max(sizes[2:12])
    expect(page.locator("#timeline-said")).to_contain_text("8 of them running")
    page.close()


def test_each_state_of_the_server_is_a_sentence_about_requests(page: Page) -> None:
    show = """state => import("./ui/summary.js").then(({ Summary }) => {
        new Summary().tellState(state);
        return document.getElementById("trouble").innerText;
    })"""
    for state in ("loading", "warming", "sharing", "restarting", "stalled", "failing", "draining"):
        told = page.evaluate(show, state)
        assert "equest" in told or "another" in told
        assert "not ready" not in told
    expect(page.locator("#trouble")).to_be_hidden()  # the next event says that all is well


def an_hour(page: Page) -> str:
    """Events with samples and requests that end or, as after the loss of a server, never do."""
    now = page.evaluate("Date.now() / 1000")
    sample = {
        **dict.fromkeys(("computed", "cached", "generated", "ghosts", "running", "waiting"), 5),
        **dict.fromkeys(("used_bytes", "leased_bytes", "budget_bytes"), 1 << 20),
    }
    told = []
    for second in range(-40, 0):
        began = now + second
        requests = [
            {"id": f"{began}-{n}", "endpoint": "chat", "began": began, "prompt": 9}
            for n in range(9)
        ]
        requests[0] |= {"ended": began + 0.5, "outcome": "stop"}
        samples = [{"at": began + n / 20, **sample} for n in range(20)]
        told.append({"state": "ready", "samples": samples, "requests": requests})
    return "".join(f"data: {json.dumps(each)}\n\n" for each in told)


def test_a_key_is_asked_for_and_kept_until_the_tab_is_closed(browser: Browser) -> None:
    with running("--fake-model", "--api-key", "secret") as server:
        page = browser.new_page()
        page.goto(f"{server.url}/ui")
        expect(page.locator("#key-form")).to_be_visible()
        page.locator("#key").fill("secret")
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#server")).to_have_text("ready")
        expect(page.locator("#key-form")).to_be_hidden()
        expect(page.locator("#summary")).to_have_text("No prompts in the last ten minutes.")
        expect(page.locator("#tree-empty")).to_contain_text("Bearer KEY")
        page.close()
