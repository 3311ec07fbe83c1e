"""The built book: every page of the contents exists, every internal link works, nothing is loaded from a server, every
image has an alt text. DEFECTDIFFU_HTML names the folder, as `make test` does; without it these checks are skipped.
"""

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[1]
HTML = Path(os.environ.get("DEFECTDIFFU_HTML", "")).resolve()
pytestmark = pytest.mark.skipif("DEFECTDIFFU_HTML" not in os.environ, reason="DEFECTDIFFU_HTML names no built book")


class Page(HTMLParser):
    """A page's content: (tag, address) of its links and files, its anchors, the alt texts of its images."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.places, self.alts = [], {""}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.alts.append(dict(attributes).get("alt") or "")
        self.addresses += [(tag, value) for name, value in attributes if name in ("href", "src") and value]
        self.places |= {value for name, value in attributes if name in ("id", "name") and value}


@pytest.fixture(scope="module")
def pages():
    paths = [path for path in sorted(HTML.rglob("*.html")) if "_static" not in path.parts]  # the theme's templates
    return {path: Page(path.read_text()) for path in paths}


def test_contents_are_complete(pages):
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    names = [contents["root"], *(c["file"] for part in contents["parts"] for c in part["chapters"])]
    assert not [name for name in names if HTML / f"{name}.html" not in pages]


def test_links_inside_lead_somewhere(pages):
    dead = []
    for path, page in pages.items():
        for _, address in page.addresses:
            scheme, server, file, _, place = urlsplit(address)
            if scheme or server:
                continue
            target = (path.parent / unquote(file)).resolve() if file else path
            if not target.is_file() or (target in pages and unquote(place) not in pages[target].places):
                dead.append(f"{path.relative_to(HTML)}: {address}")
    assert not dead


def test_nothing_is_loaded_from_a_server(pages):
    loaded = [
        f"{path.relative_to(HTML)}: {address}"
        for path, page in pages.items()
        for tag, address in page.addresses
        if tag != "a" and (urlsplit(address).netloc or urlsplit(address).scheme in ("http", "https"))
    ]
    assert not loaded


def test_every_image_is_told_in_words(pages):
    """A cell's figure gets its alt text from the cell's metadata, `mystnb={"image": {"alt": "..."}}` in the twin."""
    wordless = [
        f"{path.relative_to(HTML)}: {alt or 'an image without alt'}"
        for path, page in pages.items()
        for alt in page.alts
        if not alt.strip() or re.search(r"\.(jpe?g|png|webp|gif|svg)$", alt.strip(), re.IGNORECASE)
    ]
    assert not wordless
