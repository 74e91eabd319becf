"""mkdocs' hooks: pages made from results, docstrings and notebooks."""

import re

from mkdocs.structure.files import File, Files

from docs.site import combinations, methods, notebooks
from docs.site.docstrings import ROOT

_TOP = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
# The site makes index.html of a README, which a report may have beside it.
_REPORT = re.compile(r"\bindex\.html(?=\)|$)")
_SHOWN = {".md", ".png", ".html", ".csv", ".jsonl"}


def on_files(files: Files, config: object) -> Files:
    """Adds the pages that have no file in `docs/`."""
    made: dict[str, str | bytes] = {}
    for name in methods.METHODS:
        made[f"methods/{name}.md"] = methods.page(name)
    for place, path in _TOP.items():
        made[place] = (ROOT / path).read_text()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text, pictures = notebooks.page(path)
        made[f"notebooks/{path.stem}.md"] = text
        made |= {f"notebooks/{name}": data for name, data in pictures.items()}
    for path in sorted((ROOT / "results").rglob("*")):
        if path.suffix in _SHOWN:
            place = path.relative_to(ROOT).as_posix()
            made[_REPORT.sub("report.html", place)] = path.read_bytes()
    for place, content in made.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: object, config: object, files: Files) -> str:
    """Fills in tables; what lies outside of `docs/` has its place in the site too."""
    if re.search(r"--8\s+<", markdown):  # what formatters make of a file to include
        raise ValueError(f"{page.file.src_uri}: write --8<-- in a {{.python}} block")
    for name, make in combinations.TABLES.items():
        markdown = markdown.replace(f"<!-- table: {name} -->", make())
    if page.file.src_uri.count("/") == 0:
        markdown = re.sub(r"\]\(\.\./(results|notebooks)/", r"](\1/", markdown)
        markdown = re.sub(r"\]\((notebooks/\w+)\.ipynb", r"](\1.md", markdown)
        markdown = markdown.replace("(docs/", "(")
    return _REPORT.sub("report.html", markdown)
