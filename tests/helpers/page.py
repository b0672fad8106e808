"""What an HTML page holds, for tests to compare."""

import base64
import html.parser
import io
import os
from functools import cached_property
from pathlib import Path

from PIL import Image

HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
INLINE = ("a", "b", "code", "em", "i", "small", "span", "strong", "sub", "sup")  # end no word
UNSEEN = ("script", "style", "title")
LOADED = ("icon", "index", "preload", "search", "stylesheet")  # kinds of <link>


class Page(html.parser.HTMLParser):
    """A page's elements and text.

    Attributes:
        source: the page itself.
        elements: (tag, {attribute: value}) of each element, in the page's order.
        headings: texts of h1 to h6.
    """

    def __init__(self, page):
        """``page``: path of a file, or HTML itself as ``str``."""
        super().__init__()
        self.source = Path(page).read_text("utf-8") if isinstance(page, os.PathLike) else page
        self.elements, self.headings = [], []
        self._words, self._open = [], []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in HEADINGS:
            self.headings.append("")
        if tag in HEADINGS + UNSEEN:
            self._open.append(tag)
        if tag not in INLINE:
            self._words.append(" ")

    def handle_endtag(self, tag):
        if tag in self._open:
            self._open.remove(tag)
        if tag in HEADINGS:
            self.headings[-1] = folded(self.headings[-1])
        if tag not in INLINE:
            self._words.append(" ")

    def handle_data(self, data):
        inside = self._open[-1] if self._open else None
        if inside not in UNSEEN:
            self._words.append(data)
        if inside in HEADINGS:
            self.headings[-1] += data

    @cached_property
    def text(self):
        """The text as it is read, each white space one blank; without title, styles, scripts."""
        return folded("".join(self._words))

    @cached_property
    def tags(self):
        """Names of the elements that occur."""
        return {tag for tag, _ in self.elements}

    def attributes(self, name):
        """Values of an attribute wherever it stands."""
        return [attributes[name] for _, attributes in self.elements if attributes.get(name)]

    @cached_property
    def ids(self):
        return self.attributes("id")

    @cached_property
    def links(self):
        """Where ``<a href>`` leads."""
        return [attributes["href"] for tag, attributes in self.elements
                if tag == "a" and attributes.get("href")]

    @cached_property
    def loads(self):
        """What a browser fetches by itself."""
        return self.attributes("src") + [
            attributes["href"] for tag, attributes in self.elements
            if tag == "link" and attributes.get("rel") in LOADED and attributes.get("href")]

    @cached_property
    def addresses(self):
        """All that the page names: links, pictures, parts of drawings."""
        return [value for name in ("src", "href", "xlink:href") for value in self.attributes(name)]

    @cached_property
    def pictures(self):
        """(alternative text, PIL image) of each ``<img>``, which must hold its picture itself."""
        return [(attributes.get("alt"), picture(attributes["src"]))
                for tag, attributes in self.elements if tag == "img"]


def folded(text):
    """``text`` with one blank for each white space."""
    return " ".join(text.split())


def picture(source):
    """PIL image of a ``data:`` address, whose kind must be what it says."""
    kind, code = source.split(",", 1)
    image = Image.open(io.BytesIO(base64.b64decode(code, validate=True)))
    image.load()
    assert kind == f"data:image/{image.format.lower()};base64"
    return image
