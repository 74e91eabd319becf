"""The wheel alone, in a separate environment: metadata, examples, time to import."""

import email
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

from docs.site import methods

ROOT = pathlib.Path(__file__).parents[1]
# Pages whose code needs the library alone.
PAGES = [
    "README.md",
    *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.md")),
]
_RUN = """
import doctest, pathlib, sys, time
import optax
start = time.process_time()
import optlab
print("import", time.process_time() - start)
print("file", optlab.__file__)
flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
for page in sys.argv[1:]:
    done = doctest.testfile(page, module_relative=False, optionflags=flags)
    print("page", page, done.attempted, done.failed)
"""


def run(*words, **options):
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left in the checkout or taken from it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    shutil.copytree(ROOT / "optlab", source / "optlab")
    shutil.copytree(ROOT / "experiments", source / "experiments")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    quiet = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    run(sys.executable, "-m", "pip", "wheel", *quiet, "-w", folder, source)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_library_and_says_what_it_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (path,) = (name for name in names if name.endswith("METADATA"))
        metadata = email.message_from_bytes(archive.read(path))
    tops = {name.split("/")[0].split("-")[0] for name in names}
    assert tops == {"optlab"}
    assert {"optlab/py.typed", "optlab/matrices/coefficients/table.json"} <= set(names)
    assert metadata.get_all("Provides-Extra") == ["gpu", "tpu"]
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra" not in line]
    assert {re.split("[<>=]", line)[0] for line in needed} == {
        "jax",
        "optax",
        "numpy",
        "scipy",
    }
    assert "Programming Language :: Python :: 3.13" in metadata.get_all("Classifier")
    assert wheel.stat().st_size < 400_000


def test_every_example_runs_where_only_the_wheel_is(wheel, tmp_path):
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    paths = {"base": str(folder), "platbase": str(folder)}
    site = pathlib.Path(sysconfig.get_path("purelib", "venv", vars=paths))
    # jax, optax and what they need, from where the tests have them. A folder that a
    # .pth file names has no .pth files read, so the editable checkout stays unknown.
    (site / "heavy.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["install", "--quiet", "--no-index", "--no-deps", "--ignore-installed"]
    run(sys.executable, "-m", "pip", "--python", python, *install, wheel)
    pages = []
    for name in PAGES:
        pages.append(tmp_path / name.replace("/", "-"))
        shutil.copy(ROOT / name, pages[-1])
    pages.append(tmp_path / "methods.md")
    examples = (methods.example(name) for name in methods.METHODS)
    pages[-1].write_text("\n\n".join(examples) + "\n")
    told = {key: os.environ[key] for key in os.environ if not key.startswith("PYTHON")}
    output = run(python, "-I", "-c", _RUN, *pages, cwd=tmp_path, env=told)
    said = [line.split(" ", 1) for line in output.splitlines()]
    found = [rest for kind, rest in said if kind == "page"]
    assert [line.split()[0] for line in found] == list(map(str, pages)), output
    assert all(line.endswith(" 0") for line in found), output
    assert sum(int(line.split()[1]) for line in found) > 100
    facts = dict(line for line in said if line[0] in ("import", "file"))
    assert facts["file"].startswith(str(folder))
    # Processor time: other processes share the machine.
    assert float(facts["import"]) <= 0.3
