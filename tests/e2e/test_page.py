"""The page in real headless Chromium, over a real server with a tiny model."""

import json
import re
import shutil

import pytest

from tests import small
from tests.server.running import FACTS, open_memory, serving

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"
)
expect = playwright.expect
TOKEN = "a-token-of-many-characters"


@pytest.fixture(scope="module")
def compressor():
    return small.compressor()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def memory(tmp_path, compressor):
    with open_memory(tmp_path, compressor) as opened:
        yield opened


@pytest.fixture
def page(browser, memory):
    with serving(memory, max_new_tokens=12) as address:
        opened = browser.new_page()
        problems = []
        opened.on("console", lambda said: said.type == "error" and problems.append(said.text))
        opened.on("pageerror", lambda error: problems.append(str(error)))
        outside = []
        opened.on("request", lambda sent: outside.append(sent.url))
        opened.goto(address)
        yield opened
        opened.close()
        assert problems == []
        assert all(url.startswith((address, "data:")) for url in outside)


def test_an_answer_comes_with_sources_and_beside_the_one_without_memory(page, memory):
    page.get_by_label("Question", exact=True).fill("Who built the lighthouse of Arbon?")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#ask-note")).to_contain_text("Answered in")
    assert page.locator("#with").text_content()
    assert page.locator("#without").text_content()
    assert page.locator("#with").get_attribute("aria-busy") == "false"
    expect(page.locator("#sources li")).to_have_count(3)
    expect(page.locator("#sources")).to_contain_text("The lighthouse of Arbon was built in 1823")
    told = page.locator("#attention").get_attribute("aria-label")
    shares = [float(share) for share in re.findall(r": ([\d.]+) %", told)]
    assert len(shares) == 5 and sum(shares) == pytest.approx(100, abs=3)
    expect(page.locator("#map circle[r='0.03']")).to_have_count(3)


def test_keys_alone_are_enough(page):
    page.keyboard.press("Tab")
    expect(page.get_by_text("Go to the question")).to_be_focused()
    page.keyboard.press("Enter")
    page.locator("#question").focus()
    page.keyboard.type("Who?")
    page.keyboard.press("Enter")
    expect(page.locator("#ask-note")).to_contain_text("Answered in")
    page.locator("#map").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#map-point")).to_contain_text("1 of 3:")
    page.keyboard.press("Enter")
    expect(page.locator("#documents li")).to_have_count(1)
    expect(page.locator("#documents summary")).to_be_focused()


def test_text_and_files_are_learned_with_progress(page, memory, tmp_path):
    page.get_by_label("Text", exact=True).fill("The tower of Selka was built in 1900.")
    page.get_by_label("Title").fill("Selka")
    page.get_by_label("Date").fill("2026-01-31")
    page.get_by_label("Tags").fill("tower, stone")
    page.get_by_role("button", name="Learn the text").click()
    expect(page.locator("#add-note")).to_contain_text("1 added, 0 updated")
    (added,) = [document for document in memory.documents() if document.title == "Selka"]
    assert (added.date, added.tags) == ("2026-01-31", ("stone", "tower"))
    expect(page.locator("#held")).to_contain_text("4 documents")

    lines = [json.dumps({"text": f"Fact {n} of the sea.", "id": f"fact-{n}"}) for n in range(12)]
    (tmp_path / "facts.jsonl").write_text("\n".join(lines))
    (tmp_path / "broken.pdf").write_bytes(b"no pdf")
    page.get_by_label("Files").set_input_files([tmp_path / "facts.jsonl", tmp_path / "broken.pdf"])
    page.get_by_role("button", name="Learn the files").click()
    expect(page.locator("#add-note")).to_contain_text("12 added")
    expect(page.locator("#failures li")).to_have_count(1)
    expect(page.locator("#failures")).to_contain_text("broken.pdf")
    assert memory.count().documents == 16
    expect(page.locator("#map circle")).to_have_count(16)
    expect(page.get_by_role("button", name="Next")).to_be_enabled()
    page.get_by_role("button", name="Next").click()
    expect(page.locator("#browse-note")).to_contain_text("11 to 16 of 16")


def test_memories_are_searched_read_and_forgotten(page, memory):
    page.get_by_label("Find memories").fill("What do rivers carry?")
    page.get_by_role("button", name="Find").click()
    expect(page.locator("#browse-note")).to_contain_text("best first")
    row = page.locator("#documents li").filter(has_text="Rivers carry")
    row.get_by_text("Whole text").click()
    expect(row.locator("pre")).to_have_text(FACTS[1].text)
    page.get_by_label("Find memories").fill("")
    page.get_by_role("button", name="Find").click()
    forget = page.get_by_role("button", name="Forget rivers")
    forget.click()
    assert memory.count().documents == 3  # asked once more first
    forget.click()
    expect(page.locator("#documents li")).to_have_count(2)
    assert memory.count().documents == 2


def test_the_map_is_coloured_by_date_or_by_tag(page):
    expect(page.locator("#map circle")).to_have_count(3)
    expect(page.locator("#map-legend")).to_contain_text("(newest)")
    page.get_by_label("Coloured by").select_option("tag")
    expect(page.locator("#map-legend")).to_contain_text("sea")
    fills = page.locator("#map circle").evaluate_all("dots => dots.map(dot => dot.style.fill)")
    assert sorted(fills) == ["var(--c0)", "var(--c0)", "var(--soft)"]


def test_markup_in_a_document_stays_text(page):
    page.get_by_label("Text", exact=True).fill("<img src=x onerror=alert(1)><b>bold</b> claim")
    page.get_by_label("Title").fill("<script>alert(2)</script>")
    page.get_by_role("button", name="Learn the text").click()
    expect(page.locator("#documents")).to_contain_text("<b>bold</b> claim")
    assert page.locator("#documents img, #documents b, #documents script").count() == 0


def test_everything_has_a_name_for_screen_readers(page):
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('input, textarea, select, button, progress, svg')]
            .filter(one => !one.closest('[hidden]'))
            .filter(one => !(one.labels && one.labels.length) && !one.textContent.trim()
                           && !one.getAttribute('aria-label'))
            .map(one => one.outerHTML)"""
    )
    assert unnamed == []
    assert page.locator("h1").count() == 1
    headings = page.locator("h2").all_text_contents()
    assert sorted(headings) == ["Add", "Ask", "Browse", "Map of the bank"]
    assert page.locator("[aria-live], [role=status]").count() >= 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(page, scheme):
    page.emulate_media(color_scheme=scheme)
    contrasts = page.evaluate(
        """() => {
            const style = getComputedStyle(document.documentElement);
            const light = (name) => {
                const [r, g, b] = style.getPropertyValue(name).trim().slice(1).match(/../g)
                    .map(hex => parseInt(hex, 16) / 255)
                    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
            };
            const pairs = [['--ink', '--panel'], ['--ink', '--ground'], ['--soft', '--panel'],
                ['--soft', '--ground'], ['--ink', '--shade'], ['--on-accent', '--accent'],
                ['--warn', '--panel']];
            return pairs.map(([a, b]) => Math.max(light(a) / light(b), light(b) / light(a)));
        }"""
    )
    assert min(contrasts) >= 4.5  # WCAG AA


def test_a_narrow_window_does_not_scroll_sideways(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_token_is_asked_for(browser, memory):
    with serving(memory, token=TOKEN) as address:
        opened = browser.new_page()
        opened.goto(address)
        opened.get_by_label("This service asks for a token").fill(TOKEN)
        opened.get_by_role("button", name="Use it").click()
        expect(opened.locator("#documents li")).to_have_count(3)
        opened.close()
