"""The rooms import only what stands before them, and the library nothing of flax."""

import ast
import pathlib
import sys

import optlab

ROOT = pathlib.Path(optlab.__file__).parent
# Each may import those of earlier lines, and those before it on its own line.
ORDER = [
    "dtypes checks schedules laws gradients signatures inject origins said",
    "roles",
    "state matrices leaves options decay describe compose",
    "sharding wrappers",
    "optimizers",
    "registry directions inside diagnostics",
    "__init__",
]
# The same within a room whose files stand on one another.
INSIDE = {
    "roles": "kinds names default trees",
    "matrices": "exponents lowbit coefficients symmetric precision linalg kl quantiles "
    "orthogonalize chunks buckets factors norms",
    "coefficients": "quintics fit presets",
    "sharding": "distribution layouts",
    "gradients": "curvature conflict zeroth steps",
    "inside": "rank spectrum sharpness examples diagnostics",
}
# Optimizers that combine others; no other imports one, but for what two share.
COMBINED = {"hyperballs", "normuon"}
ROOMS = " ".join(ORDER).split()
ALLOWED = {"jax", "numpy", "optax", "optlab", "scipy"}


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


def rank(name, order):
    names = order.split()
    assert name in names, f"{name} has no place"
    return names.index(name)


def parts_of(path):
    """The module's name behind `optlab`, by its parts."""
    inside = path.relative_to(ROOT).with_suffix("").parts
    return inside[:-1] if inside[-1] == "__init__" and inside[1:] else inside


def test_every_room_has_its_place():
    assert {parts_of(path)[0] for path in files()} == set(ROOMS)


def test_imports_go_one_way():
    for path in files():
        own = parts_of(path)
        for name in imports(path):
            head, *other = name.split(".")
            if head != "optlab" or not other:
                continue
            if other[0] in ROOMS:  # else a name that the package itself defines
                _assert_below(tuple(other), own, name)


def _assert_below(other, own, name):
    """Whether a module may be imported by another one."""
    order = " ".join(ORDER)
    for i, (there, here) in enumerate(zip(other, own, strict=False)):
        if there != here:
            if i and own[i - 1] == "optimizers":
                combines = here in COMBINED and there not in COMBINED
                assert there == "lmo" or combines, f"{here} imports {name}"
            else:
                assert rank(there, order) < rank(here, order), f"{here} imports {name}"
            return
        order = INSIDE.get(here, "")


def test_the_library_needs_jax_and_optax_and_little_else():
    for path in files():
        for name in imports(path):
            top = name.split(".")[0]
            assert top in ALLOWED | set(sys.stdlib_module_names), f"{path}: {name}"


def test_no_file_outgrows_a_reader():
    for path in [*files(), *(ROOT.parent / "experiments").rglob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, path
