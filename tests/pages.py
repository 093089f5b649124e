"""A page of HTML, read into a tree."""

import html.parser
import pathlib

VOID = frozenset({"meta", "img", "source", "br", "link", "input"})


class Node:
    """An element: its tag, its attributes, and the elements and texts in it."""

    def __init__(self, tag: str, attributes: dict[str, str | None]):
        self.tag = tag
        self.attributes = attributes
        self.children: list[Node | str] = []

    def __getitem__(self, name):
        return self.attributes[name]

    def all(self, tag=None, style=None):
        """The elements inside with a tag, or of a class, in order."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                styles = (child.attributes.get("class") or "").split()
                if tag in (None, child.tag) and (style is None or style in styles):
                    found.append(child)
                found += child.all(tag, style)
        return found

    def one(self, tag=None, style=None):
        """The only such element."""
        (found,) = self.all(tag, style)
        return found

    @property
    def text(self) -> str:
        """What a reader sees, its blanks made one."""
        words = []
        for child in self.children:
            words.append(child if isinstance(child, str) else f" {child.text} ")
        return "" if self.tag == "style" else " ".join("".join(words).split())


class Page(Node):
    """A whole page; its tags must be balanced."""

    def __init__(self, source: str) -> None:
        super().__init__("", {})
        self.source = source
        parser = _Parser(self)
        parser.feed(source)
        parser.close()
        assert parser.open == [self]

    @classmethod
    def read(cls, path: pathlib.Path) -> "Page":
        return cls(path.read_text(encoding="utf-8"))

    @property
    def addresses(self) -> list[str]:
        """What the page refers to."""
        names = ("src", "href", "srcset")
        return [node[name] for node in self.all() for name in names if name in node.attributes]


class _Parser(html.parser.HTMLParser):
    def __init__(self, root: Node):
        super().__init__()
        self.open = [root]

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} is given twice"
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)
