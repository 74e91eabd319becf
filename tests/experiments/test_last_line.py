"""The program's own line is the last one, whatever threads print besides."""

import subprocess
import sys

import pytest

# Threads that print to standard error by every way for a second, from before the fault.
PROGRAM = """
import os, sys, threading, time
from absl import flags
from experiments import command, config

def shout(end):
    while time.monotonic() < end:
        os.write(2, b"a thread in C\\n")
        print("a thread in Python", file=sys.stderr, flush=True)
        sys.excepthook(ValueError, ValueError("closed"), None)

def main(*_):
    end = time.monotonic() + 1
    for _ in range(4):
        threading.Thread(target=shout, args=(end,)).start()
    time.sleep(0.3)
    raise FAULT

command.run(main, flags.FlagValues())
"""
FAULTS = {
    'config.UserError("--x: no\\udcff")': "error: --x: no\\udcff",
    'OSError(5, "Input/output error", "/a")': "error: /a: Input/output error",
    'OSError(24, "Too many open files")': "error: Too many open files",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_comes_after_the_own_line(fault):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("FAULT", fault)],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 2
    assert "a thread in C" in lines and "a thread in Python" in lines
    assert lines[-1] == FAULTS[fault]
