"""Runs on meshes and in several processes are those of one device."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments import config as configs
from experiments.trainer import loop
from experiments.trainer.checkpoints import Checkpoints
from experiments.trainer.layout import Layout
from experiments.trainer.program import make_program
from optlab.state import restack
from tests.experiments.conftest import small_arguments
from tests.experiments.test_train import read
from tests.helpers.servers import eventually, free_port


def losses_of(folder):
    return [record["loss"] for record in read(folder)[0]]


def forget(folder, step):
    """As if the run had been killed before that checkpoint."""
    shutil.rmtree(folder / "checkpoints" / str(step))
    (folder / "result.json").unlink()


def test_a_run_goes_on_with_other_devices(tmp_path, small):
    words = {
        "optimizer__name": "root",
        "train__steps": 4,
        "train__checkpoint_every": 2,
        "train__ema_decay": 0.5,
    }
    alone, folder = tmp_path / "alone", tmp_path / "run"
    assert loop.train(small(**words), str(alone)) == 0
    meshes = (
        {"mesh__data": -1, "mesh__model": 2},
        {"mesh__data": 4, "mesh__mode": "pmap", "train__diagnostics_every": 4},
        {"mesh__slice": 2, "mesh__data": 2},
    )
    for mesh in meshes:
        assert loop.train(small(**mesh, **words), str(folder)) == 0
        np.testing.assert_allclose(losses_of(folder), losses_of(alone), rtol=1e-3)
        averages = [read(x)[0][-1]["val_loss_ema"] for x in (folder, alone)]
        np.testing.assert_allclose(*averages, rtol=1e-3)
        forget(folder, 4)
    log = (folder / "log.txt").read_text()
    assert log.count("goes on after step 2") == len(meshes) - 1
    assert "mesh: {'data': 4, 'model': 2}, jit" in log


def test_factors_in_a_checkpoint_are_cut_again_for_other_devices(tmp_path, small):
    """From 8 devices to 3 and to one: the same to the bit, and the run goes on."""
    words = {"optimizer__name": "soap", "train__batch_size": 24, "train__steps": 3}
    words |= {"train__checkpoint_every": 2}
    folder = tmp_path / "run"
    assert loop.train(small(**words, mesh__data=8), str(folder)) == 0
    forget(folder, 3)
    place = json.loads((folder / "checkpoints/2/place/metadata").read_text())
    assert place["buckets"] and all(
        told["slices"] % 8 == 0 for told in place["buckets"].values()
    )
    one = make_program(small(**words), trace=False).abstract

    def read_on(data, where):
        here = make_program(small(**words, mesh__data=data), trace=False).abstract
        with contextlib.closing(Checkpoints(where, print, read_only=True)) as found:
            state, position = found.restore(here)
        assert jax.tree.structure(state) == jax.tree.structure(here)
        assert jax.tree.map(lambda x: x.sharding, state.opt_state) == jax.tree.map(
            lambda x: x.sharding, here.opt_state
        )
        return state, position

    found, last = [], folder / "checkpoints"
    for data in (8, 3, 1):
        state, position = read_on(data, last)
        found.append(restack(jax.device_get(state.opt_state), one.opt_state))
        last = tmp_path / f"of_{data}"
        with contextlib.closing(Checkpoints(last, print)) as again:
            again.save(state, position)
            again.wait()
    found.append(jax.device_get(read_on(8, last)[0].opt_state))
    found[-1] = restack(found[-1], one.opt_state)
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)
    assert any(np.any(x) for x in jax.tree.leaves(found[0].inner_state))
    # A list of buckets that was changed is noticed.
    changed = tmp_path / "of_8/2/place/metadata"
    changed.write_text(changed.read_text().replace('"slices": 8', '"slices": 16'))
    told = []
    with contextlib.closing(Checkpoints(tmp_path / "of_8", told.append)) as damaged:
        assert damaged.restore(one) is None
    assert "corrupt" in told[0]
    assert loop.train(small(**words, mesh__data=3), str(folder)) == 0
    assert "goes on after step 2" in (folder / "log.txt").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"mesh__data": 9}, "mesh.data: given 9, .* of 8 devices"),
        ({"mesh__data": 0}, "mesh.data: given 0"),
        ({"mesh__data": 3}, "microbatches of 8 rows do not split over 3 devices"),
        ({"mesh__model": 2, "mesh__mode": "pmap"}, "mesh.model: given 2, allowed 1"),
        ({"mesh__mode": "vmap"}, "mesh.mode: given 'vmap', allowed jit, pmap"),
    ],
)
def test_a_mesh_that_cannot_be_is_one_line(tmp_path, small, words, says):
    with pytest.raises(configs.UserError, match=says):
        loop.train(small(**words), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_slices_have_batches_of_their_own_and_share_nothing_else(small):
    layout = Layout(small(mesh__slice=2, mesh__data=2, mesh__model=2))
    batch = layout.put(np.arange(8, dtype=np.int32))
    assert batch.sharding.spec == P(("slice", "data"))
    assert layout.distribute.axes == ("data", "model")


def with_devices(count):
    """The tests' own flags of XLA, of which the last word counts."""
    return f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"


def start(index, port, folder, words, said):
    command = [
        *(sys.executable, "-m", "experiments.train", "--config=configs/stdlib_lm.py"),
        *(f"--workdir={folder}", "--multihost", "--num_processes=2"),
        *(f"--coordinator_address=localhost:{port}", f"--process_id={index}"),
        *small_arguments(**words, mesh__data=-1),
    ]
    flags = {"XLA_FLAGS": with_devices(2)}
    with said.open("w") as file:
        return subprocess.Popen(command, env=os.environ | flags, stderr=file)


def test_two_processes_take_over_and_stop_together(tmp_path, small):
    words = {"train__steps": 300, "train__checkpoint_every": 150}
    words |= {"train__eval_every": 100}
    alone, folder = tmp_path / "alone", tmp_path / "run"
    assert loop.train(small(**words), str(alone)) == 0
    shutil.copytree(alone, folder)
    forget(folder, 300)
    (folder / "metrics.jsonl").write_text(
        "".join(line + "\n" for line in read_lines(folder)[:155])
    )
    port = free_port()
    said = [tmp_path / f"said{index}" for index in (0, 1)]
    both = [start(index, port, folder, words, said[index]) for index in (0, 1)]
    try:
        eventually(
            lambda: (
                len(read_lines(folder)) >= 160
                or [run.poll() for run in both] != [None, None]
            )
        )
        both[1].send_signal(signal.SIGTERM)
        for run in both:
            run.wait(timeout=900)
    finally:
        for run in both:
            run.kill()
            run.wait()
    told = [file.read_text() for file in said]
    assert [run.returncode for run in both] == [143, 143], told
    result = json.loads((folder / "result.json").read_text())
    steps = result["steps"]
    assert result["reason"] == "preempted"
    assert (folder / "checkpoints" / str(steps)).is_dir()
    assert [record["step"] for record in read(folder)[0]] == list(range(1, steps + 1))
    assert "goes on after step 150" in told[0]
    assert "goes on after step 150" not in told[1]  # one of them speaks
    np.testing.assert_allclose(
        losses_of(folder)[:160], losses_of(alone)[:160], rtol=2e-3
    )
    # And one process takes over from the two.
    assert loop.train(small(**words), str(folder)) == 0
    assert [record["step"] for record in read(folder)[0]] == list(range(1, 301))
    np.testing.assert_allclose(losses_of(folder), losses_of(alone), rtol=2e-2)


def read_lines(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_srun_tells_the_processes_of_each_other(tmp_path, cluster):
    del cluster
    words = small_arguments(train__steps=4, mesh__data=-1)
    command = ["srun", "--ntasks=2", sys.executable, "-m", "experiments.train"]
    command += ["--config=configs/stdlib_lm.py", f"--workdir={tmp_path}/run"]
    flags = {"XLA_FLAGS": with_devices(1)}
    done = subprocess.run(
        [*command, "--multihost", *words],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "mesh: {'data': 2}, jit" in done.stderr
    assert done.stderr.count("completed after 4 steps") == 1
    assert [record["step"] for record in read(tmp_path / "run")[0]] == [1, 2, 3, 4]
