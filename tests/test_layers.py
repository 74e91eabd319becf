"""The rooms import only what stands before them, and the library nothing of flax."""

import ast
import pathlib

import optlab

ROOT = pathlib.Path(optlab.__file__).parent
# Each may import those of earlier lines, and those before it on its own line.
ORDER = [
    "checks",
    "quintics coefficient_fit coefficients",
    "linalg schedules curvature",
    "orthogonalize",
    "roles buckets describe compose",
    "distribution sharding norms lmo noise outliers spikes",
    "optimizers",
    "registry diagnostics",
    "__init__",
]
ALLOWED = {"chex", "jax", "numpy", "optax", "optlab", "scipy"}


def imports(path):
    """The full names of all modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files():
    return sorted(ROOT.rglob("*.py"))


def rank(room):
    names = [name for line in ORDER for name in line.split()]
    return names.index(room)


def room_of(path):
    inside = path.relative_to(ROOT)
    return inside.parts[0].removesuffix(".py")


def test_every_room_has_its_place():
    assert {room_of(path) for path in files()} == {
        name for line in ORDER for name in line.split()
    }


def test_imports_go_one_way():
    for path in files():
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "optlab" or len(parts) < 2:
                continue
            room, own = parts[1], room_of(path)
            if room == own == "optimizers":
                assert parts[2:] == [], f"{path.stem} imports {name}"
            elif room in {name for line in ORDER for name in line.split()}:
                assert rank(room) < rank(own), f"{own} imports {room}"


def test_the_library_needs_jax_and_optax_and_little_else():
    import sys

    for path in files():
        for name in imports(path):
            top = name.split(".")[0]
            assert top in ALLOWED | set(sys.stdlib_module_names), f"{path}: {name}"


def test_no_file_outgrows_a_reader():
    for path in [*files(), *(ROOT.parent / "experiments").rglob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, path
