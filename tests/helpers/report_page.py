"""Parse report pages, and check that they are safe to open."""

from __future__ import annotations

from html.parser import HTMLParser


class ParsedPage(HTMLParser):
    """Parses a page into its elements, in order, and its text. Fails if an element is not closed."""

    void = frozenset({"meta", "img", "input", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.void:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


HOSTILE_TEXT = "<script>alert(1)</script>\"'><img src=https://evil.example/x onerror=alert(1)>\u202e\x00"


def require_self_contained(page: ParsedPage, links: str = "https://nowhere.example") -> None:
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("iframe")
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "action", "data", "poster"):
            value = attributes.get(name)
            if value is not None:
                allowed = ("data:image/jpeg;base64,",) if tag == "img" else ("#", links)
                assert value.startswith(allowed), value
    assert any(element.get("http-equiv") == "Content-Security-Policy" for element in page.all("meta"))
