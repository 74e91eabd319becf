"""What the pages name exists: methods, numbers, pictures, commands, files, fields."""

import functools
import importlib.util
import inspect
import json
import pathlib
import re

import pytest

import optlab
from docs.site import docstrings, methods, notebooks, numbers
from docs.site.pictures import PICTURES
from experiments import config as configs
from experiments.study.claims import load
from experiments.study.results import Results
from experiments.study.table import by_key, read
from optlab import registry

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]
# Constants, types in annotations, and what stands under another name.
_ELSEWHERE = {
    *("EMBEDDING", "VECTOR", "describe", "register"),
    *("sharding.OverAxis", "sharding.OverMesh", "sharding.Rules"),
}
pages = pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)


def test_the_menu_has_every_method_and_every_notebook():
    menu = (ROOT / "mkdocs.yml").read_text()
    shown = set(re.findall(r"^ +- .*methods/(\w+)\.md$", menu, re.M)) - {"index"}
    assert shown == set(methods.METHODS) <= set(registry.names())
    found = set(re.findall(r"^ +- .*notebooks/(\w+)\.md$", menu, re.M))
    assert found == {path.stem for path in ROOT.glob("notebooks/*.ipynb")}


def test_the_api_has_every_public_name():
    text = (ROOT / "docs/api.md").read_text()
    shown = set(re.findall(r"^::: optlab\.(\S+)$", text, re.M))
    own_page = {f"{x}{name}" for name in registry.names() for x in ("", "scale_by_")}
    public = {name for name in vars(optlab) if not name.startswith("_")}
    public |= {f"sharding.{name}" for name in vars(optlab.sharding)}
    missing = [
        name
        for name in public - own_page - shown - _ELSEWHERE
        if "._" not in name and not inspect.ismodule(_found(name))
    ]
    assert not sorted(missing)


def _found(name):
    return functools.reduce(getattr, name.split("."), optlab)


def test_pages_show_the_files_that_they_include():
    shown = {
        file
        for path in PAGES
        for file in re.findall(
            r'^```{\.python}\n--8<-- "(\S+)"\n```$', path.read_text(), re.M
        )
    }
    there = [*ROOT.glob("docs/loops/*.py"), ROOT / "docs/examples/own_model.py"]
    assert shown == {str(file.relative_to(ROOT)) for file in there}


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_page_has_all_its_parts(name):
    text = methods.page(name)
    parts = docstrings.of_method(registry.get(name).factory.__module__)
    assert all(parts), parts
    assert "```text" in parts.equations
    assert "https://" in parts.references
    for heading in ("The idea", "Use it", "Equations", "Defaults", "Arguments"):
        assert f"\n## {heading}\n" in text
    assert f">>> tx = optlab.{name}(" in text
    assert "::" not in text.replace(":::", "").replace(" :: ", "")
    assert not re.search(r":\w+:`|`_", text)


def test_a_default_that_is_no_argument_is_refused(monkeypatch):
    words = methods.METHODS["lion"]._replace(theirs={"beta": ("1", "1")})
    monkeypatch.setitem(methods.METHODS, "lion", words)
    with pytest.raises(ValueError, match="lion has no argument beta"):
        methods.defaults_table("lion")


def test_docstrings_have_one_form():
    section = re.compile(r"^( *)(?:Args|Attributes|Returns|Raises):\n\1( *)\S", re.M)
    for room in ("optlab", "experiments"):
        for file in sorted((ROOT / room).rglob("*.py")):
            text = file.read_text()
            assert {len(x[2]) for x in section.finditer(text)} <= {2}, file
            assert not re.search(r"^ *(:param |:returns?:|-{4,}$)", text, re.M), file


def test_defaults_are_those_of_the_signature():
    ours = inspect.signature(registry.get("cosmos").factory).parameters
    assert f"| `rank` | 5% of the width | 64 | `{ours['rank'].default}` |" in (
        methods.defaults_table("cosmos")
    )


def test_numbers_are_those_of_the_results():
    found = numbers.best_rates()
    study = load(["methods"])[0]
    results = Results(study.trials, by_key(read(numbers.STUDY / "runs.csv")))
    assert found.keys() == results.keys() <= numbers.costs().keys()
    for name, best in found.items():
        assert len(results[name].runs) == 3
        assert best.loss == pytest.approx(results[name].loss, abs=1e-4)
        assert f"{best.loss:.3f}" in numbers.of_method(name)
    assert "not tuned" in numbers.of_method("muon_h")


def test_pictures_are_there_and_no_others():
    stored = {path.stem for path in (ROOT / "docs" / "pictures").glob("*.png")}
    assert stored == set(PICTURES)


@pages
def test_what_a_page_names_exists(path):
    text = path.read_text()
    for module in re.findall(r"-m ((?:experiments|tests|docs)[\w.]*)", text):
        assert importlib.util.find_spec(module), module
    for file in re.findall(
        r"(?<![\w/])(?:configs|experiments|tests|docs|optlab)/[\w/.]*\w", text
    ):
        assert (ROOT / file).exists(), file
    targets = re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.M)
    for target in re.findall(r"(?:^    |`)make ([a-z.-]+)", text, re.M):
        assert target in targets, target
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        target = path.parent / link
        made = target.parent.name == "methods" and target.stem in methods.METHODS
        assert target.exists() or made, link


@pages
def test_a_pages_fields_are_those_of_a_config(path):
    """Commands as a whole, with the config that they name where that is a file here."""
    text = path.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        words = re.findall(r"--config\.[\w.]+=[\w./-]+", line)
        found = re.search(r"--config=(\S+)", line)
        config = ROOT / (found[1] if found else "configs/stdlib_lm.py")
        if words and config.exists() and "kwargs" not in line:
            configs.load(str(config), words)


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=str)
def test_notebooks_store_their_pictures(path):
    text, pictures = notebooks.page(path)
    assert pictures and all(name in text for name in pictures)
    cells = json.loads(path.read_text())["cells"]
    assert cells[0]["cell_type"] == "markdown"
    assert not any(
        output["output_type"] == "error" or output.get("name") == "stderr"
        for cell in cells
        for output in cell.get("outputs", [])
    )
