"""What is seen inside a run, against dense matrices; what the command and report do."""

import errno
import json
import os
import shutil

import jax
import jax.flatten_util
import numpy as np
import pytest

import optlab
from experiments import config as configs
from experiments import look, looked, report
from experiments.errors import UserError
from experiments.inside import measures
from experiments.inside.run import load_config, opened
from experiments.reporting import inside as reporting
from experiments.reporting.runs import load_runs
from experiments.trainer import loop

ORDER = "--order=12", "--examples=8"
WORDS = {
    "model.width": 4,
    "model.layers": 1,
    "train.steps": 3,
    "train.batch_size": 4,
    "train.checkpoint_every": 1,
    "train.keep_checkpoints": 0,
    "optimizer.kwargs.b2": 0.9,
}


def loaded(words):
    return configs.load(
        "configs/digits.py", [f"--config.{n}={x}" for n, x in words.items()]
    )[0]


def do(*words):
    """The command in this process."""
    positional = [word for word in words if not str(word).startswith("--")]
    overrides = [word for word in words if str(word).startswith("--config.")]
    rest = [w for w in words if w not in (*positional, *overrides)]
    look._FLAGS.unparse_flags()
    for name in look._FLAGS:
        look._FLAGS[name].unparse()
    look._FLAGS(["", *rest])
    return look.main(list(map(str, positional)), overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has been looked at, at all but its first checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "adamw"
    assert loop.train(loaded(WORDS), str(folder)) == 0
    assert do(folder, *ORDER, "--steps=3,2") == 0
    return folder


def test_the_numbers_are_those_of_dense_matrices(run):
    found = {x["what"]: x for x in looked.read(run) if x["step"] == 2}
    assert set(found) == set(measures.MEASURES)
    with opened(run, []) as seen:
        assert seen.steps == [1, 2, 3]
        state, position = seen.restore(2)
        batch = jax.device_get(seen.probe(8))
        flat, unravel = jax.flatten_util.ravel_pytree(state.params)
        after = jax.flatten_util.ravel_pytree(seen.next_step(state, position))[0]
        start = jax.flatten_util.ravel_pytree(seen.program.first_state().params)[0]

        def loss(v, batch):
            return seen.program.task.loss(unravel(v), batch, jax.random.key(0))[0]

        rows = [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(8)]
        gradient, value = jax.jit(jax.grad(loss)), jax.jit(loss)
        gradients = np.stack([gradient(flat, row) for row in rows])
        change = np.asarray([value(after, r) - value(flat, r) for r in rows])
        hessian = np.asarray(jax.jit(jax.hessian(loss))(flat, batch), np.float64)
        # The step that it made is the one that the run has made.
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7),
            *(unravel(after), seen.restore(3)[0].params),
        )
        adam = state.opt_state.inner_state[0]
        nu = jax.flatten_util.ravel_pytree(adam.nu)[0]
    eigenvalues = np.linalg.eigvalsh(hessian)
    close = dict(rtol=1e-3)
    np.testing.assert_allclose(
        found["sharpness"]["sharpness"], eigenvalues[-1], **close
    )
    np.testing.assert_allclose(found["spectrum"]["largest"], eigenvalues[-1], **close)
    assert eigenvalues[0] <= found["spectrum"]["smallest"] + 1e-4
    diagonal = (1 - 0.9**2) * (np.sqrt(np.asarray(nu) / (1 - 0.9**2)) + 1e-8)
    roots = np.where(nu > 0, 1 / np.sqrt(diagonal), 0)
    dense = roots[:, None] * hessian * roots[None]
    top = found["sharpness"]
    np.testing.assert_allclose(
        top["preconditioned_sharpness"], np.linalg.eigvalsh(dense)[-1], **close
    )
    np.testing.assert_allclose(top["bound"], 38 / top["learning_rate"], rtol=1e-5)
    of_mean, own = np.sum(gradients.mean(0) ** 2), np.mean(np.sum(gradients**2, 1))
    np.testing.assert_allclose(
        found["coherence"]["m_alpha"], 8 * of_mean / own, **close
    )
    noise = 8 / 7 * (own - of_mean)
    np.testing.assert_allclose(
        found["noise"]["noise_scale"], noise / (of_mean - noise / 8), rtol=1e-2
    )
    moved = np.linalg.norm(np.asarray(flat) - start)
    np.testing.assert_allclose(found["distance"]["distance"], moved, **close)
    size = np.linalg.norm(start)
    np.testing.assert_allclose(
        found["distance"]["relative_distance"], moved / size, **close
    )
    rose = [x["example"] for x in found["opposing"]["rose"]]
    assert rose == list(np.argsort(-change)[:4])
    first = found["opposing"]["rose"][0]
    image = np.asarray(batch["image"][first["example"]])
    assert first["shown"] == f"label {batch['label'][first['example']]}"
    np.testing.assert_array_equal(first["pixels"], image)
    kept = found["coherence"]["layer_m_alpha"]
    assert "layers/kernel/0" in kept and "head" in kept


def test_a_mesh_gives_the_same_numbers(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("look*"))
    words = "--steps=2", "--what=coherence,distance", "--config.mesh.data=4"
    assert do(tmp_path / "copy", *ORDER, *words) == 0
    for there in looked.read(tmp_path / "copy"):
        (here,) = [
            x for x in looked.read(run) if (x["step"], x["what"]) == (2, there["what"])
        ]
        for name in {"m_alpha", "distance"} & set(here):
            assert there[name] == pytest.approx(here[name], rel=1e-4)


@pytest.mark.parametrize("name", optlab.registry.names())
def test_the_config_of_a_run_is_read_back(name, tmp_path):
    words = {"optimizer.name": name, "schedule.name": "uba", "train.wandb_project": "x"}
    config = loaded(words)
    kept = {"config": config.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    found, _ = load_config(tmp_path, ["--config.mesh.data=2"])
    config.mesh.data = 2
    assert configs.flatten(found) == configs.flatten(config)


def test_what_is_there_is_not_measured_again(run, monkeypatch, capsys):
    before = (run / "look.jsonl").read_bytes()
    assert do(run, *ORDER, "--steps=2,3") == 0
    assert (run / "look.jsonl").read_bytes() == before
    assert "12 measured already" in capsys.readouterr().err
    # A process that was killed left half a line: one number is measured again.
    lines = before.splitlines(keepends=True)
    (run / "look.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    calls = []
    measured = json.loads(lines[-1])

    def measure(self, what, state, position):
        calls.append((what, int(state.step)))
        return {x: measured[x] for x in measured if x not in looked.KEYS}

    monkeypatch.setattr(measures.Measurer, "measure", measure)
    assert do(run, *ORDER, "--steps=2,3") == 0
    assert calls == [(measured["what"], measured["step"])]
    assert "(1 of 1)" in capsys.readouterr().err
    # Other settings are other numbers; what does not depend on them stays.
    calls.clear()
    assert (
        do(run, "--order=12", "--examples=9", "--steps=2", "--what=noise,distance") == 0
    )
    assert calls == [("noise", 2)]
    (run / "look.jsonl").write_bytes(before)


def test_a_folder_below_that_cannot_be_read_is_named(run, monkeypatch, capsys):
    locked = run.parent / "locked"
    locked.mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path) == str(locked):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert do(run.parent, *ORDER, "--steps=3", "--what=noise") == 0
    said = capsys.readouterr().err
    assert f"{locked}: Permission denied" in said and "1 measured already" in said
    locked.rmdir()


def test_a_run_below_that_cannot_be_opened_is_left_out(run, tmp_path, capsys):
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "good").symlink_to(run)
    for name in ("damaged", "empty"):
        (runs / name).mkdir()
        (runs / name / "metrics.jsonl").write_text("")
        (runs / name / "config.json").write_text("{}")
    (runs / "empty" / "config.json").write_bytes((run / "config.json").read_bytes())
    words = (*ORDER, "--steps=3", "--what=noise")
    assert do(runs, *words) == 0
    said = capsys.readouterr().err
    assert f"left out: {runs / 'empty'} holds no checkpoint" in said
    assert "damaged/config.json cannot be used: it has no config" in said
    assert "1 measured already" in said
    # One that was named is an error, and so is a folder of which nothing is left.
    with pytest.raises(UserError, match="empty holds no checkpoint"):
        do(runs, runs / "empty", *words)
    (runs / "good").unlink()
    with pytest.raises(UserError, match="no run is left to look at"):
        do(runs, *words)


def test_the_report_shows_it_by_itself(run, tmp_path):
    report.write_report(load_runs([run]), tmp_path)
    page = (tmp_path / "index.html").read_text()
    names = "sharpness edge coherence noise opposing images distance"
    for name in names.split():
        assert (tmp_path / f"look_{name}.svg").exists()
    assert (tmp_path / "look_spectrum.png").exists()
    assert "What was seen inside" in page and "label " in page
    table = (tmp_path / "looks.md").read_text()
    sharpest = [x for x in looked.read(run) if x["what"] == "sharpness"][-1]
    assert f"| 3 | {sharpest['sharpness']:.4g} |" in table


def test_the_examples_are_those_of_the_step_that_moved_losses_most(run):
    (one,) = load_runs([run])
    records = looked.read(run)
    opposing = [x for x in records if x["what"] == "opposing"]
    for moved in opposing:
        for x in (x for y in opposing for group in ("rose", "fell") for x in y[group]):
            x["change"] = 0.001
        moved["fell"][0]["change"] = -1.0
        moved["rose"] = 3  # damaged
        rows = reporting.opposing_table([one], {str(one.folder): records})
        assert {row["step"] for row in rows} == {str(moved["step"])}
        assert {row["loss"] for row in rows} == {"fell"}
        moved["rose"] = []


# Factors in the state, and two batches a step.
OTHERS = {
    "cosmos": ({"optimizer.kwargs.rank": 2}, {"sharpness", "opposing"}),
    "lanton": ({"optimizer.kwargs.noise": "paired"}, {"opposing"}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_optimizers_are_looked_at(name, tmp_path):
    own, what = OTHERS[name]
    words = {n: x for n, x in WORDS.items() if n != "optimizer.kwargs.b2"}
    words |= {"optimizer.name": name, "train.steps": 1, **own}
    folder = tmp_path / "runs" / "a"
    assert loop.train(loaded(words), str(folder)) == 0
    # A folder of runs stands for them.
    assert do(tmp_path / "runs", *ORDER, f"--what={','.join(what)}") == 0
    found = {x["what"]: x for x in looked.read(folder)}
    assert set(found) == what
    assert abs(found["opposing"]["cosine"]) <= 1
    # After the last step the next one has the rate of the last, which is not 0.
    assert found["opposing"]["mean_change"] != 0
    if "sharpness" in what:  # no diagonal, so no edge
        assert set(found["sharpness"]) >= {"sharpness", "learning_rate"}
        assert "bound" not in found["sharpness"]


def test_mistakes_are_one_line(run, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    without = tmp_path / "without"
    without.mkdir()
    (without / "config.json").write_text('{"git_commit": null}')
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_bytes((run / "config.json").read_bytes())
    other = tmp_path / "other"
    other.mkdir()
    content = json.loads((run / "config.json").read_text())
    text = json.dumps(content | {"data_digest": "x"})
    (other / "config.json").write_text(text)
    own = tmp_path / "own"
    own.mkdir()
    content["config"]["model"]["name"] = "mine"
    (own / "config.json").write_text(json.dumps(content))
    corrupt = tmp_path / "corrupt"
    shutil.copytree(run, corrupt)
    for path in (corrupt / "checkpoints" / "1" / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    before = (run / "look.jsonl").read_bytes()
    for words, said in (
        ((corrupt, "--steps=1"), "checkpoint of step 1 cannot be read"),
        ((), "name at least one"),
        ((tmp_path / "none",), "is no run"),
        ((broken,), "config.json cannot be read"),
        ((without,), "config.json cannot be used: it has no config of a run"),
        ((empty,), "no checkpoint"),
        ((run, other), "data are not"),
        ((own,), "needs --config"),
        ((run, "--what=sharpnes"), r"--what: given 'sharpnes'.*nearest: sharpness"),
        ((run, "--steps=2,4"), r"--steps: .* step 4, allowed 1, 2, 3"),
        ((run, "--steps=a"), "--steps: given a"),
        ((run, "--config.seed=3"), r"--config.seed: .* mesh"),
        ((run, "--steps=1", "--budget_gb=1e-6"), "budget_bytes must be at least"),
        ((run, "--steps=1", "--what=noise", "--budget_gb=1e-6"), "--budget_gb must"),
    ):
        with pytest.raises(UserError, match=said):
            do(*words)
    assert (run / "look.jsonl").read_bytes() == before
