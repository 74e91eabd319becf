"""mkdocstrings' extension: docstrings of functions and classes as Markdown."""

from typing import Any

import griffe

from docs.site.docstrings import inline


class Markdown(griffe.Extension):
    """Rewrites roles, links and literal blocks of every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for each object that was read."""
        if obj.docstring:
            lines = obj.docstring.value.splitlines()
            obj.docstring.value = "\n".join(map(_to_markdown, lines))


def _to_markdown(line: str) -> str:
    if line == "Example:":  # griffe knows the plural alone
        return "Examples:"
    return inline(line.removesuffix(":") if line.endswith("::") else line)
