"""Take the page's screenshots: the demo's passages, the real model, headless Chromium.

Usage: python docs/screenshots/make.py [CHROMIUM]
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
import time
from importlib import resources
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from cmt import Document, Memory
from cmt.server import Settings, create_app
from cmt.server.running import make_server

FOLDER = Path(__file__).parent
QUESTION = "Which instrument designer developed chromatic fingering?"


def documents() -> list[Document]:
    """The demo's passages; their topic becomes the tag."""
    lines = (resources.files("cmt") / "demo" / "documents.jsonl").read_text("utf-8").splitlines()
    made = []
    for line in lines:
        fields = json.loads(line)
        kept = {name: fields[name] for name in ("id", "title", "text", "source")}
        made.append(Document(**kept, tags=(fields["title"].split(" (")[0],)))
    return made


def shoot(page: Page, name: str, scheme: str, height: int) -> None:
    """One picture of the window, small enough for a repository."""
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 1200, "height": height})
    page.wait_for_timeout(300)
    page.screenshot(path=FOLDER / name)


def main() -> None:
    """Serve, ask, shoot."""
    chromium = sys.argv[1] if len(sys.argv) > 1 else shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, Memory.open(Path(folder) / "b.sqlite") as memory:
        memory.add(documents())
        settings = Settings(port=0)
        server = make_server(create_app(memory, settings), settings)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        with sync_playwright() as running:
            browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{port}")
            page.get_by_label("Question", exact=True).fill(QUESTION)
            page.get_by_role("button", name="Ask", exact=True).click()
            expect(page.locator("#ask-note")).to_contain_text("Answered", timeout=120_000)
            page.get_by_label("Coloured by").select_option("tag")
            page.evaluate("document.activeElement.blur()")
            shoot(page, "page-light.png", "light", 1000)
            page.locator("#map-part").scroll_into_view_if_needed()
            page.evaluate("document.querySelector('#map-part').scrollIntoView()")
            shoot(page, "page-dark.png", "dark", 820)
            browser.close()
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
