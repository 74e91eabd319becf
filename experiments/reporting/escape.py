"""Names as each format can show them; configs and folders hold what anyone wrote."""

import re
from typing import Any

# A cell that begins so is run as a formula by spreadsheets.
_FORMULA = re.compile(r"\s*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d[\d,]*\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-](inf|nan)|-")
# Punctuation that Markdown, or GitHub's, reads as markup, but for `_` inside a word.
_MARKUP = re.compile(r"[\\`*\[\]<>|~$&#]|(?<![^\W_])_|_(?![^\W_])")


def visible(text: str) -> str:
    """The text with escapes for what has no form, such as newlines and controls."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )


def markdown_cell(text: str) -> str:
    """Text that a cell of a Markdown table shows letter by letter."""
    return _MARKUP.sub(r"\\\g<0>", visible(text))


def csv_cell(value: Any) -> Any:
    """A cell that no spreadsheet runs; numbers stay as they are."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    runs = _FORMULA.match(text) and not _NUMBER.fullmatch(text)
    return f"'{text}" if runs else text


def csv_text(cell: str) -> str:
    """A cell without the quote that `csv_cell` put before it."""
    return cell[1:] if cell.startswith("'") and csv_cell(cell[1:]) == cell else cell


def label(text: str) -> str:
    """A label without matplotlib's markup; it leaves out labels that begin with `_`."""
    text = visible(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def label_text(text: str) -> str:
    """The text that a label shows."""
    return text.replace(r"\$", "$").strip()
