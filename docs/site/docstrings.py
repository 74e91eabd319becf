"""A module's docstring, which is reStructuredText, as Markdown in parts."""

import ast
import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]


class Parts(NamedTuple):
    """The parts of a method's docstring.

    Attributes:
      equations: all up to the deviations.
      deviations: what differs from the authors' code, with its commit.
      references: the papers.
    """

    equations: str
    deviations: str
    references: str


def of_method(module: str) -> Parts:
    """The docstring of an optimizer's file, cut at its headings."""
    path = ROOT / (module.replace(".", "/") + ".py")
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    text, _, references = text.partition("\nReferences:\n")
    text = text.partition("\n")[2]  # the first line is the page's heading
    at = re.search(
        r"^(Held against|The numbers are|The authors released|optax's)", text, re.M
    )
    cut = at.start() if at else len(text)
    papers = re.split(r"(?<=\d{4}\.) ", " ".join(references.split()))
    return Parts(
        to_markdown(text[:cut]),
        to_markdown(text[cut:]),
        "\n".join(f"*   {inline(paper)}" for paper in papers),
    )


def to_markdown(text: str) -> str:
    """Literal blocks, tables, lists, links and names as Markdown writes them."""
    blocks: list[str] = []
    table: list[str] = []
    literal: list[str] | None = None
    for line in text.splitlines():
        if literal is not None:
            if line.startswith("    ") or not line.strip():
                literal.append(line[4:])
                continue
            blocks += [_fence(literal), ""]
            literal = None
        if re.fullmatch(r"=+(  =+)+", line):
            table.append(line)
            if sum(row.startswith("=") for row in table) == 3:
                blocks += [*_table(table), ""]
                table = []
            continue
        if table:
            table.append(line)
            continue
        if line.endswith("::"):
            blocks.append(inline(line[:-1]))
            literal = []
            continue
        blocks.append(inline(_item(line)))
    if literal is not None:
        blocks.append(_fence(literal))
    return "\n".join(blocks).strip() + "\n"


def _item(line: str) -> str:
    """Lists need four spaces below a point, and a reference is a point."""
    if line.startswith("* "):
        return "*   " + line[2:]
    return "    " + line[2:] if re.match(r"  \S", line) else line


def _fence(lines: list[str]) -> str:
    return "\n```text\n" + "\n".join(lines).strip("\n") + "\n```"


def _table(rows: list[str]) -> list[str]:
    widths = [len(x) for x in rows[0].split("  ")]
    cells = []
    for row in rows:
        if not row.startswith("="):
            at = 0
            cells.append([])
            for width in widths:
                cells[-1].append(row[at : at + width].strip().replace("|", "\\|"))
                at += width + 2
    head, *body = ("| " + " | ".join(row) + " |" for row in cells)
    return ["", head, "| " + " | ".join("---" for _ in widths) + " |", *body]


def inline(line: str) -> str:
    """Roles and links as Markdown writes them."""
    line = re.sub(r":(?:func|mod|class):`([^`]+)`", r"`\1`", line)
    return re.sub(r"`([^`<]+?)\s*<(https?://[^>]+)>`_", r"[\1](\2)", line)
