"""The page at `/` as it is served, and in a real Chromium against the whole mesh."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright

from deploy.local.supervisor import LocalMesh
from shared import access
from tests.conftest import PHOTOS, Background
from tests.gateway.conftest import gateway_process

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
COFFEE, CAT = PHOTOS / "coffee.png", PHOTOS / "chelsea.png"

expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser, mesh: LocalMesh) -> Iterator[BrowserContext]:
    context = browser.new_context(base_url=mesh.url)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, mesh: LocalMesh) -> Iterator[Page]:
    """The page, ready; whatever it logs as an error or asks of another host fails the test."""
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((mesh.url, "blob:")) else wrong.append(request.url))
    opened(page)
    yield page
    assert not wrong


def opened(page: Page, path: str = "/") -> Page:
    page.goto(path)
    expect(page.locator("html[data-ready]")).to_be_attached()
    return page


def send(page: Page, *photos: Path) -> None:
    page.set_input_files("#files", list(photos))
    expect(page.locator("#recent .card[data-status=succeeded]")).to_have_count(len(photos))


def rows(page: Page) -> list[str]:
    return page.locator("#found .row span:nth-of-type(1)").all_inner_texts()


# --- as it is served


def test_a_browser_gets_the_page_and_others_the_description(http: httpx.Client) -> None:
    page = http.get("/", headers=HTML)
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["vary"] == "accept"
    assert "unsafe" not in page.headers["content-security-policy"]
    assert http.get("/", headers={"accept": "*/*"}).json()["service"] == "visionmesh"


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/static/page.css", "/static/coffee.jpg"])
def test_a_file_that_the_browser_has_is_not_sent_again(http: httpx.Client, path: str) -> None:
    first = http.get(path, headers=HTML)
    assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
    again = http.get(path, headers=HTML | {"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/nothing.js"])
def test_nothing_but_the_pages_files_is_served(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


# --- in the browser


def test_a_photo_is_sent_and_its_objects_are_drawn_where_they_are(page: Page) -> None:
    send(page, COFFEE)
    assert rows(page) == ["cup", "dining table"]
    expect(page.locator("#boxes rect")).to_have_count(2)
    expect(page.locator("#labels span").first).to_have_text(re.compile(r"cup 9\d%"))
    frame, box = page.locator("#frame").bounding_box(), page.locator("#boxes rect").last.bounding_box()
    scale = frame["width"] / 600  # the cup is at (171, 27) - (414, 248) of 600x400
    assert abs(box["x"] - frame["x"] - 171 * scale) < 8
    assert abs(box["y"] - frame["y"] - 27 * scale) < 8
    assert abs(box["width"] - 243 * scale) < 12
    assert abs(frame["height"] - 400 * scale) < 2
    expect(page.locator("#stages li.done")).to_have_count(5)
    expect(page.locator("#times")).to_have_attribute("aria-label", re.compile("decode .* model"))
    expect(page.locator("#announce")).to_have_text("coffee.png: cup, dining table")


def test_confidence_and_classes_act_at_once_without_asking_the_mesh(page: Page) -> None:
    send(page, COFFEE)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/v1/" in request.url else None)
    slider = page.get_by_label("Confidence at least")
    slider.fill("90")
    expect(page.locator("#boxes rect")).to_have_count(1)
    slider.fill("5")
    assert page.locator("#boxes rect").count() > 2
    slider.fill("40")
    page.get_by_role("button", name="cup 1").click()
    assert rows(page) == ["dining table"]
    expect(page.get_by_role("button", name="cup 1")).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="cup 1").press("Enter")
    assert rows(page) == ["cup", "dining table"]
    assert not asked


def test_several_photos_with_the_keyboard_and_another_model(page: Page) -> None:
    page.get_by_label("Model").select_option("small_end2end")
    send(page, COFFEE, CAT)
    expect(page.locator("#total")).to_contain_text("small_end2end on track C")
    expect(page.locator("#recent .card[data-status=succeeded]")).to_have_count(2)  # a photo that ends shows its rows anew
    card = page.locator("#recent .card").nth(1)
    card.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#name")).to_have_text("coffee.png")
    expect(card).to_be_focused()
    page.locator("#found .row").first.focus()
    expect(page.locator("#boxes rect.picked")).to_have_count(1)
    page.evaluate("document.querySelector('#boxes rect').dataset.old = 'true'")
    page.set_viewport_size({"width": 600, "height": 900})
    expect(page.locator("#boxes rect[data-old]")).to_have_count(0)  # drawn anew for the other size
    expect(page.locator("#boxes rect.picked")).to_have_count(1)


def test_photos_can_be_dropped_and_pasted(page: Page) -> None:
    for kind in ("drop", "paste"):
        page.evaluate(
            """async ([kind, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, {type: "image/png"}));
                const made = kind === "drop"
                    ? new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})
                    : new ClipboardEvent("paste", {clipboardData: data, bubbles: true});
                document.dispatchEvent(made);
            }""",
            [kind, list(CAT.read_bytes())],
        )
    expect(page.locator("#recent .card[data-status=succeeded]")).to_have_count(2)
    names = page.locator("#recent .card span:nth-of-type(1)").all_inner_texts()
    assert names == ["paste.png", "drop.png"]


def test_recent_photos_outlive_a_reload_until_they_are_forgotten(page: Page) -> None:
    send(page, CAT)
    expect(page.locator("#announce")).to_contain_text(CAT.name)  # told once the photo is kept
    opened(page)
    page.locator("#recent .card").click()
    assert rows(page) == ["cat"]
    page.get_by_role("button", name="forget them").click()
    expect(page.locator("#recent-section")).to_be_hidden()
    opened(page)
    expect(page.locator("#recent-section")).to_be_hidden()


def test_it_polls_where_events_do_not_come_through(page: Page) -> None:
    page.route("**/events", lambda route: route.fulfill(status=404, body="{}"))
    send(page, CAT)
    assert rows(page) == ["cat"]


def test_a_refused_photo_says_why(page: Page, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture, but long enough to be looked at")
    page.set_input_files("#files", text)
    expect(page.locator("#recent .card[data-status=refused]")).to_have_count(1)
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.locator("#failed")).not_to_be_empty()


def test_a_full_mesh_is_asked_again(page: Page) -> None:
    refused = 0

    def once(route: Route) -> None:
        nonlocal refused
        refused += 1
        if refused == 1:
            route.fulfill(status=503, headers={"retry-after": "1"}, body=json.dumps({"code": "overloaded"}))
        else:
            route.continue_()

    page.route("**/v1/jobs?*", once)
    send(page, CAT)
    assert refused == 2


SAVED: dict[str, Callable[[bytes], bool]] = {
    "jpg": lambda content: content.startswith(b"\xff\xd8\xff"),
    "json": lambda content: [found["label"] for found in json.loads(content)["detections"]] == ["cup", "dining table"],
}


@pytest.mark.parametrize(("button", "check"), [("Save picture", "jpg"), ("Save JSON", "json")])
def test_what_was_found_can_be_saved(page: Page, button: str, check: str) -> None:
    send(page, COFFEE)
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    saved = Path(download.value.path()).read_bytes()
    assert download.value.suggested_filename.endswith(check)
    assert SAVED[check](saved)


def test_the_mesh_itself_is_shown(page: Page) -> None:
    expect(page.locator("#state")).to_have_text("ok")
    workers = page.locator("#system-body table").first
    for kind in ("gateway", "preprocess", "inference"):
        expect(workers).to_contain_text(kind)


def test_the_theme_is_kept(page: Page) -> None:
    page.get_by_role("button", name="Theme: auto").click()
    page.get_by_role("button", name="Theme: light").click()
    opened(page)
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(20, 21, 23)"


def test_a_phone_shows_all_of_it(browser: Browser, mesh: LocalMesh) -> None:
    context = browser.new_context(base_url=mesh.url, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    page = opened(context.new_page())
    page.get_by_role("button", name="try an example").tap()
    expect(page.locator("#found .row")).to_have_count(2)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    context.close()


def test_a_mesh_with_keys_is_given_one(browser: Browser, background: Background, mesh: LocalMesh, tmp_path: Path) -> None:
    key = access.new_key()
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[keys]\n"{access.digest(key)}" = {{ tenant = "acme", scopes = ["submit", "read"] }}\n')
    with gateway_process(background, tmp_path, mesh.redis_url, {"MESH_API_KEYS": str(keys)}) as url:
        context = browser.new_context(base_url=url)
        page = opened(context.new_page())
        page.get_by_label("This mesh wants an API key").fill(key)
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#key-form")).to_be_hidden()
        send(page, CAT)
        assert rows(page) == ["cat"]
        expect(page.locator("#system-body")).to_have_text("Your key has not the scope to see it.")
        context.close()
