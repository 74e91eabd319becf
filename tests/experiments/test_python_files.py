"""The one reader of Python configs: what it runs, and what it says is wrong."""

import textwrap

import pytest

from experiments.errors import UserError
from experiments.python_files import load_python_config


def load(path):
    return load_python_config(str(path), "get", "--flag")


WRONG = {
    "raise ValueError('a\\nb')": "does not load, ValueError: a (line 1)",
    "\n\ndef get():\n    raise KeyError('x')": "KeyError: 'x' (line 4)",
    "def get(:": "SyntaxError",
    "x = '\\ud800": "SyntaxError",
    "import sys\nsys.exit(0)": "SystemExit: 0 (line 2)",
    "def get():\n    raise SystemExit": "SystemExit (line 2)",
    "def get():\n    exit()": "does not load",
    "raise GeneratorExit": "GeneratorExit",
    "raise ValueError('\\x1b[2J')": r"\x1b[2J",
    "def get(x): return x": "TypeError",
    "def get(): return get()": "RecursionError",
    "import nowhere_at_all": "ModuleNotFoundError",
    "x = 1": "has no get()",
    "get = 3": "has no get()",
    "": "has no get()",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, text):
    path = tmp_path / "file.py"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"--flag: {path} ")
    assert WRONG[text] in message
    assert message.isprintable()


def test_no_file_is_one_line(tmp_path):
    (tmp_path / "bytes.py").write_bytes(b"\0\xff")
    cases = {
        "configs/stdlib_ml.py": "nearest: configs/stdlib_lm.py",
        str(tmp_path): "directory",
        str(tmp_path / "bytes.py"): "does not load, ",
        "a\0b": "no file",
        "a" * 5000: "too long",
        "": "Is a directory",
        "~nobody/x.py": "no file",
    }
    for path, part in cases.items():
        with pytest.raises(UserError) as caught:
            load(path)
        assert part in str(caught.value)
        assert str(caught.value).isprintable()


def test_a_file_is_run_once_and_again_when_its_text_changes(tmp_path, monkeypatch):
    text = """
        from __future__ import annotations
        import dataclasses

        @dataclasses.dataclass
        class Named:
            name: str = {!r}

        def get():
            return Named
    """
    path = tmp_path / "file.py"
    path.write_text(textwrap.dedent(text).format("a"))
    first = load(path)
    assert first().name == "a"
    assert load(path) is first
    path.write_text(textwrap.dedent(text).format("b"))
    assert load(path)().name == "b"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/file.py")().name == "b"
