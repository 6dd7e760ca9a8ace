"""Elements whose text is always escaped: only what `element` made is taken for markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from ..record.files import visible

VOID = frozenset({"meta", "rect", "line"})
"""Elements without children: HTML's own, and SVG's shapes when they carry no title."""


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | int | None | Iterable["Child"]
"""What an element may hold: text, markup, nothing, or any of these in sequence."""


def escape(text: str) -> Html:
    """Text as HTML shows it, in an element or in a quoted attribute."""
    # Most text is plain, and a page has a hundred thousand pieces of it.
    return Html(text if text.isalnum() and text.isascii() else html.escape(visible(text), quote=True))


def element(tag: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Html:
    """One element.

    Args:
        children: See `Child`.
        attributes: An underscore at the end is dropped and any other is a dash: `class_`, `aria_label`. None and False
            leave the attribute out, True is the attribute without a value, a float has at most three decimals.
    """
    inside = "".join(_flat(children))
    given = "".join(_attribute(name, value) for name, value in attributes.items())
    if not inside and tag in VOID:
        return Html(f"<{tag}{given}/>")
    return Html(f"<{tag}{given}>{inside}</{tag}>")


def join(*children: Child) -> Html:
    """Children without an element round them."""
    return Html("".join(_flat(children)))


class Section(Html):
    """A part of a page that its table of contents leads to.

    Attributes:
        heading: As it is read.
        name: What the table of contents links to.
    """

    heading: str
    name: str


def section(title: str, lead: str, *children: Child, name: str | None = None) -> Section:
    """A heading, what is to be seen, and that; `name` is made of the title unless it is given."""
    name = name or re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    out = Section(element("section", element("h2", title), element("p", lead, class_="lead"), *children, id=name))
    out.heading, out.name = title, name
    return out


def contents(parts: Iterable[Child]) -> Html:
    """A table of contents of the sections among some parts of a page."""
    links = [element("li", element("a", one.heading, href=f"#{one.name}")) for one in parts if isinstance(one, Section)]
    return element("nav", element("ul", links), aria_label="contents")


def sorted_table(caption: str, heads: Iterable[str], lines: Child, *, texts: int | None = None, kind: str = "") -> Html:
    """A table that scrolls sideways on its own and whose columns sort.

    Args:
        texts: How many of the first columns are text; None for all.
        kind: A class of style.css.
    """
    head = [
        element("th", element("button", text, type="button"), scope="col",
                class_=None if texts is None or i < texts else "num")
        for i, text in enumerate(heads)
    ]  # fmt: skip
    parts = (element("caption", caption), element("thead", element("tr", head)), element("tbody", lines))
    return element("div", element("table", *parts), class_=f"scroll {kind}".strip(), role="region", tabindex=0,
                   aria_label=caption)  # fmt: skip


def _flat(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if isinstance(child, Html):
            yield child
        elif isinstance(child, (str, int)):
            yield escape(str(child))
        elif child is not None:
            yield from _flat(child)


def _attribute(name: str, value: str | int | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = name.removesuffix("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return f' {name}="{escape(text)}"'
