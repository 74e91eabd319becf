"""Kills a run again and again, and compares it with one that was left in peace.

    python -m tests.helpers.kill_ten_times [--kills=10] [--seed=0] [names of CASES]

Every third kill comes at a random moment of the start, while the run imports, restores
or compiles; the others at a random step and a random moment within it. In the end the
losses of all steps and the checksums of the last checkpoint must be those of the other
run.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import optlab
from tests.experiments.conftest import small_arguments

STEPS = 120
# Optimizers with factors, sparse momenta and keys, a second kind of gradient, noise;
# then what else a run carries from step to step.
CASES = {
    "cosmos": {"optimizer__kwargs__rank": 8},
    "spam": {
        "optimizer__kwargs__density": 0.25,
        "optimizer__kwargs__reset_interval": 10,
        "optimizer__kwargs__warmup_steps": 5,
    },
    "adahessian": {"optimizer__kwargs__hessian_interval": 3},
    "lanton": {},
    "resnet": {"model__name": "resnet", "model__width": 4, "model__layers": 2},
    "pmap": {"mesh__mode": "pmap", "mesh__data": 2},
    "stream": {"task__data": "stream"},
    "average": {"train__ema_decay": 0.9, "train__accumulate": 2},
}
_DOCUMENTS = 300


def arguments(folder: pathlib.Path, name: str, steps: int = STEPS) -> list[str]:
    """The config of a case and its overrides, with data beside the run's folder."""
    changes = {
        "optimizer.name": name if name in optlab.registry.names() else "adamw",
        "optimizer.learning_rate": 0.01,
        "train.steps": steps,
        "train.eval_every": 50,
        "train.checkpoint_every": 7,
    }
    changes |= {x.replace("__", "."): value for x, value in CASES[name].items()}
    if name == "stream":
        changes["task.path"] = _write_documents(folder.parent / "documents")
    if name == "resnet":
        words = [f"--config.{x}={y}" for x, y in changes.items()]
        return ["configs/digits.py", *words, "--config.train.batch_size=8"]
    return ["configs/stdlib_lm.py", *small_arguments(**changes)]


def _write_documents(folder: pathlib.Path) -> pathlib.Path:
    if not folder.exists():
        folder.mkdir(parents=True)
        texts = [{"text": f"{i}: " + "word " * (i % 7)} for i in range(_DOCUMENTS)]
        for split in ("train", "validation"):
            lines = [json.dumps(text) + "\n" for text in texts]
            (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def command(folder: pathlib.Path, name: str) -> list[str]:
    """The command line of a case."""
    config, *words = arguments(folder, name)
    program = [sys.executable, "-m", "experiments.train"]
    return [*program, f"--config={config}", f"--workdir={folder}", *words]


def start(words: list[str]) -> subprocess.Popen:
    """Starts a run on two devices of the CPU."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
        "--xla_force_host_platform_device_count=2",
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, env=environment, errors="replace"
    )


def last_step(folder: pathlib.Path) -> int:
    """The number of records that the run has written."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def stop_in(words: list[str], seconds: float, number: int) -> int:
    """Starts a run, and sends a signal after so many seconds.

    Returns:
      The exit status, below 0 where a signal ended it.
    """
    with start(words) as run:
        time.sleep(seconds)
        run.send_signal(number)
        run.communicate(timeout=900)
    return run.returncode


def stop_at(
    words: list[str], folder: pathlib.Path, step: int, moment: float, number: int
) -> int:
    """Starts a run, and sends a signal a moment (in seconds) after that step's record.

    Returns:
      The exit status, below 0 where a signal ended it.
    """
    deadline = time.monotonic() + 900
    with start(words) as run:
        try:
            begun = last_step(folder)
            # An earlier part's records are cut off first: wait for new ones.
            while last_step(folder) == begun or last_step(folder) < step:
                if run.poll() is not None:
                    return run.returncode
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no step {step}")
                time.sleep(0.001)
            time.sleep(moment)
            run.send_signal(number)
            run.communicate(timeout=900)
        finally:
            run.kill()
    return run.returncode


def finish(words: list[str]) -> None:
    """Runs to the end."""
    with start(words) as run:
        _, said = run.communicate(timeout=900)
    if run.returncode:
        raise RuntimeError(said)


def outcome(
    folder: pathlib.Path, steps: int = STEPS
) -> tuple[list[tuple[int, float]], dict[str, int]]:
    """All losses by step, and the checksums of the last checkpoint."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    place = folder / "checkpoints" / str(steps) / "place" / "metadata"
    return (
        [(record["step"], record["loss"]) for record in records],
        json.loads(place.read_text())["checksums"],
    )


def killed(
    folder: pathlib.Path, name: str, signals: list[int], seed: int, first: int = 1
) -> list[int]:
    """Stops a run by each of the signals in turn, from step `first` on; lets it end.

    Returns:
      The steps at which it was stopped.
    """
    moments = random.Random(f"{name} {seed}")
    steps = sorted(moments.sample(range(first, STEPS - 10), len(signals)))
    words = command(folder, name)
    at = []
    for i, (step, number) in enumerate(zip(steps, signals, strict=True)):
        if i % 3 == 1 and number == signal.SIGKILL:
            status = stop_in(words, moments.uniform(0.5, 4), number)
        else:
            status = stop_at(words, folder, step, moments.uniform(0, 0.05), number)
        if status == 0:  # the start was faster than the kill, and so was the rest
            break
        if status != (143 if number == signal.SIGTERM else -number):
            raise RuntimeError(f"exit status {status} at step {step}")
        at.append(last_step(folder))
    finish(words)
    return at


def main() -> None:
    """Reports on every case that the command line names, or on all."""
    words = sys.argv[1:]
    given = dict(word[2:].split("=") for word in words if word.startswith("--"))
    names = [word for word in words if not word.startswith("-")] or list(CASES)
    signals = [signal.SIGKILL] * int(given.get("kills", 10))
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            peace, war = pathlib.Path(place) / "peace", pathlib.Path(place) / "war"
            finish(command(peace, name))
            at = killed(war, name, signals, int(given.get("seed", 0)))
            same = outcome(peace) == outcome(war)
            print(f"{name}: killed at {at}, {'same' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
