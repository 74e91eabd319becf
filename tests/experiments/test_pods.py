"""The scripts that start a training on many hosts: dry runs, and what is missing."""

import itertools
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import yaml

from experiments import config as configs
from experiments import train
from experiments.trainer import workdir
from tests.test_layers import imports

PODS = pathlib.Path("experiments/launchers/pods")
# A word of several, and what shells and Kubernetes would expand.
WORDS = ["--config=configs/c4_llama.py", "--workdir=/runs/a b", "--config.task.data=$x"]
VARIABLES = {
    "tpu_pod.sh": {"TPU_NAME": "t", "ZONE": "z", "PROJECT": "p", "FOLDER": "/a folder"},
    "kubernetes.sh": {"IMAGE": "r/optlab:1", "CLAIM": "c", "PODS": "2", "GPUS": "8"},
    "slurm.sbatch": {},
}
scripts = pytest.mark.parametrize("script", VARIABLES)


def bash(script, *words, **variables):
    return subprocess.run(
        ["bash", PODS / script, *words],
        env={"PATH": os.environ["PATH"]} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def dry_run(script):
    done = bash(script, *WORDS, **VARIABLES[script], DRY_RUN="1")
    assert done.returncode == 0, done.stderr
    return done.stdout


def held(words):
    """Whether `experiments.train` would take them, and as they were given."""
    assert words[0] == "--multihost" and words[-3:] == WORDS
    overrides, rest = configs.split_arguments(["train", *words])
    own = train._FLAGS
    try:
        own(rest)
        assert own["multihost"].value and own["workdir"].value == "/runs/a b"
        assert len(overrides) == 1
        return {name: own[name].value for name in own}
    finally:
        own.unparse_flags()
        for name in own:
            own[name].unparse()


def test_every_host_of_a_tpu_slice_gets_the_command():
    words = shlex.split(dry_run("tpu_pod.sh"))
    assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "t"]
    assert words[6:9] == ["--project=p", "--zone=z", "--worker=all"]
    remote = words[9].removeprefix("--command=")
    before, after = remote.split(" && exec ")
    assert shlex.split(before) == ["cd", "/a folder"]
    training = shlex.split(after)
    assert training[:3] == [".venv/bin/python", "-m", "experiments.train"]
    held(training[3:])


def test_a_slurm_step_is_the_command():
    words = shlex.split(dry_run("slurm.sbatch"))
    assert words[0] == "srun"
    held(words[words.index("experiments.train") + 1 :])


def test_slurm_takes_the_batch_script(cluster):
    del cluster
    words = ["sbatch", "--test-only", "--nodes=1", PODS / "slurm.sbatch", *WORDS]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_kubernetes_job_finds_its_process_zero():
    manifest = dry_run("kubernetes.sh")
    assert "$" not in manifest.replace("$(PROCESS_ID)", "").replace("$$x", "")
    service, job = yaml.safe_load_all(manifest)
    name = job["metadata"]["name"]
    assert service["kind"] == "Service" and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    spec = job["spec"]
    assert job["kind"] == "Job" and spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == 2
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    assert container["image"] == "r/optlab:1"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    (index,) = container["env"]
    assert "job-completion-index" in index["valueFrom"]["fieldRef"]["fieldPath"]
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert volumes["runs"]["persistentVolumeClaim"] == {"claimName": "c"}
    assert {m["name"] for m in container["volumeMounts"]} == set(volumes)
    # As Kubernetes expands them in the second pod.
    args = [
        a.replace(f"$({index['name']})", "1").replace("$$", "$")
        for a in container["args"]
    ]
    flags = held(args)
    assert flags["coordinator_address"] == f"{name}-0.{pod['subdomain']}:8476"
    assert (flags["num_processes"], flags["process_id"]) == (2, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NAME", 'a"b'),
        ("NAME", "Optlab"),
        ("CLAIM", "a b"),
        ("IMAGE", 'r/optlab:1"'),
        ("IMAGE", "$NAME"),
        ("PODS", "two"),
        ("PODS", "0"),
        ("GPUS", "8 "),
    ],
)
def test_kubernetes_gets_no_value_that_its_manifest_cannot_quote(name, value):
    given = VARIABLES["kubernetes.sh"] | {name: value, "DRY_RUN": "1"}
    done = bash("kubernetes.sh", *WORDS, **given)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {name}: given '{value}', allowed ")


def test_words_that_yaml_reads_as_something_else_stay_words():
    given = VARIABLES["kubernetes.sh"] | {"NAME": "on", "CLAIM": "1e3"}
    done = bash("kubernetes.sh", "--a=no", 'x: "y" # \\', **given, DRY_RUN="1")
    service, job = yaml.safe_load_all(done.stdout)
    assert service["metadata"]["name"] == "on" == job["metadata"]["name"]
    pod = job["spec"]["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "1e3"}
    assert pod["containers"][0]["args"][-2:] == ["--a=no", 'x: "y" # \\']


def test_the_image_has_what_it_is_built_from():
    text = pathlib.Path("Dockerfile").read_text()
    groups = tomllib.loads(pathlib.Path("pyproject.toml").read_text())
    words = text.replace("\\\n", " ").split()
    named = [b for a, b in itertools.pairwise(words) if a == "--group"]
    assert named and set(named) <= set(groups["dependency-groups"])
    for extra in groups["project"]["optional-dependencies"]:
        assert re.search(rf"\b{extra}\b.*package=", text)
    for line in text.splitlines():
        if line.startswith("COPY"):
            assert all(pathlib.Path(x).exists() for x in line.split()[1:-1])
    assert "Dockerfile" in (PODS / "kubernetes.sh").read_text()


def test_the_runner_needs_nothing_that_the_image_lacks():
    project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())
    lines = list(project["project"]["dependencies"])
    # Weights & Biases is imported only by runs that ask for it.
    for group in ("experiments", "sweep", "postgres", "data", "wandb"):
        lines += project["dependency-groups"][group]
    had = {re.split("[<>=]", line)[0].lower() for line in lines}
    # Those that come with jax and optuna, and names that differ from the package's.
    had |= {"jaxlib", "sqlalchemy", "absl", "orbax", "sklearn", "optlab", "experiments"}
    for path in pathlib.Path("experiments").rglob("*.py"):
        for name in imports(path):
            top = name.split(".")[0]
            assert top.lower() in had | set(sys.stdlib_module_names), f"{path}: {name}"
    assert set(workdir._PACKAGES) <= had


@scripts
def test_what_is_missing_is_named_in_one_line(script):
    given = VARIABLES[script]
    assert subprocess.run(["bash", "-n", PODS / script], check=False).returncode == 0
    nothing = bash(script, **given)
    assert nothing.returncode == 2
    assert nothing.stderr.startswith("error: give the training's flags")
    done = bash(script, *WORDS)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    for name in given or ["SLURM_JOB_ID"]:
        assert name in line


@scripts
def test_the_documentation_shows_the_command(script):
    assert str(PODS / script) in pathlib.Path("docs/pods.md").read_text()
