"""The suites that time, on small shapes: what they write, and what they count."""

import csv

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmark import (
    dual_norm,
    memory,
    orthogonalize,
    scaling,
    step,
    timing,
    train,
)
from experiments.errors import UserError


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_interleaved_takes_turns_and_medians():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = timing.interleaved(functions, 3)
    assert calls == list("ababab")
    assert set(times) == {"a", "b"}
    assert all(seconds >= 0 for seconds in times.values())


def test_the_suite_of_orthogonalization(tmp_path, monkeypatch, given):
    monkeypatch.setattr(timing, "_SIDES", (16,))
    given(orthogonalize.FLAGS, width=16, hidden=48, turns=1)
    assert orthogonalize.run(tmp_path) == 0
    rows = rows_of(tmp_path / "orthogonalize.csv")
    assert len(rows) == 21
    assert {row["shape"] for row in rows} == {"16 x 16", "16 x 48", "48 x 16"}
    assert (tmp_path / "orthogonalize.png").stat().st_size > 0
    assert "--suite=orthogonalize" in (tmp_path / "orthogonalize.md").read_text()


def test_the_suite_of_steps(tmp_path, monkeypatch, given, peer):
    def blocks(name, layers):
        assert name == "130M"
        shapes = {"query": (8, 8), "up": (8, 24), "norm": (8,)}
        return [
            {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}
        ] * layers

    monkeypatch.setattr(step, "blocks", blocks)
    monkeypatch.setattr(timing, "_SIDES", (16,))
    names = ["adamw", peer, f"{peer}_main", "root", "root, ns_steps=4", "sophia"]
    given(step.FLAGS, layers=1, compiled_layers=1, runs=1)
    given(scaling.FLAGS, optimizers="root,sophia")
    assert step.run(tmp_path) == 0
    rows = rows_of(tmp_path / "step.csv")
    assert [row["optimizer"] for row in rows] == names
    # Counted, not timed: AdamW holds two moments, ROOT one on its matrices.
    assert float(rows[0]["GFLOPs"]) < float(rows[1]["GFLOPs"]) + 0.1
    assert (tmp_path / "step.png").stat().st_size > 0


def test_steps_of_stacks(tmp_path, monkeypatch, given, peer):
    layers = {"query": (2, 8, 8), "up": (2, 8, 24), "norm": (2, 8)}
    shapes = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in layers.items()}
    monkeypatch.setattr(step, "llama_shapes", lambda _: {"layers": shapes})
    monkeypatch.setattr(timing, "_SIDES", (16,))
    given(step.FLAGS, layers=2, compiled_layers=2, runs=1, stacked=True)
    given(scaling.FLAGS, optimizers="root")
    assert step.run(tmp_path) == 0
    rows = rows_of(tmp_path / "step_stacked.csv")
    own = ["root", "root, ns_steps=4", "root, in one chunk"]
    assert [row["optimizer"] for row in rows] == ["adamw", peer, f"{peer}_main", *own]
    assert "--stacked --optimizers=root" in (tmp_path / "step_stacked.md").read_text()
    given(scaling.FLAGS, optimizers="moun")
    with pytest.raises(UserError, match="--optimizers: given 'moun', allowed"):
        step.run(tmp_path)


def test_the_suite_of_memory(tmp_path, monkeypatch, given, peer):
    layers = {"query": (2, 8, 8), "up": (2, 8, 24), "norm": (2, 8)}
    shapes = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in layers.items()}
    for module in (memory, step):
        monkeypatch.setattr(module, "llama_shapes", lambda _: {"layers": shapes})
    given(step.FLAGS)
    given(memory.FLAGS, methods=f"{peer},muon", joined="2")
    assert memory.run(tmp_path) == 0
    rows = rows_of(tmp_path / "memory.csv")
    names = ["optax_muon_main", peer, "muon"]
    assert [row["optimizer"] for row in rows] == [*names, *names, "root"]
    assert len({row["parameters"] for row in rows}) == 3
    assert all(float(row["/ optax main"]) > 0 for row in rows)
    given(memory.FLAGS, methods="moun")
    with pytest.raises(UserError, match="--methods: given 'moun', allowed"):
        memory.run(tmp_path)


def test_the_suite_of_training_steps(tmp_path, monkeypatch, given, peer):
    """The runner's own steps, in bfloat16 and with microbatches, as on a GPU."""
    given(step.FLAGS, model="tiny", runs=1, dtype="bfloat16")
    given(scaling.FLAGS, optimizers=peer)
    given(train.FLAGS, batch=4, context=8, accumulate=2, vocabulary=16)
    sizes = {"layers": 1, "width": 128, "heads": 2, "hidden": 192}
    settings = [f"--config.model.{name}={size}" for name, size in sizes.items()]
    monkeypatch.setattr(train, "_SETTINGS", [*train._SETTINGS, *settings])
    assert train.run(tmp_path) == 0
    rows = rows_of(tmp_path / "train.csv")
    assert [row["optimizer"] for row in rows] == ["adamw", peer]
    assert float(rows[0]["/ adamw"]) == 1
    # AdamW holds two moments, Muon one on its matrices, which are most of it.
    assert float(rows[1]["state, MB"]) < 0.7 * float(rows[0]["state, MB"])
    shares = [float(row["share of the update"].rstrip("%")) for row in rows]
    assert 0 < shares[0] < shares[1] < 100
    assert "bfloat16" in (tmp_path / "train.md").read_text()
    assert (tmp_path / "train.png").stat().st_size > 0


def test_the_blocks_of_a_llama():
    layers = 3
    leaves = jax.tree.leaves(step.blocks("130M", layers))
    assert len(leaves) == 9 * layers
    matrices = sorted(x.shape for x in leaves if len(x.shape) == 2)
    assert len(matrices) == 7 * layers
    assert set(matrices) == {(768, 768), (768, 2048), (2048, 768)}


def test_the_suite_of_dual_norms(tmp_path, monkeypatch):
    monkeypatch.setattr(dual_norm, "WIDTHS", (16,))
    monkeypatch.setattr(dual_norm, "STEPS", 3)
    assert dual_norm.run(tmp_path) == 0
    rows = {row["dual_norm"]: row for row in rows_of(tmp_path / "dual_norm.csv")}
    assert list(rows) == ["newton_schulz", "lanczos", "frobenius"]
    # Of matrices of full rank, Frobenius' norm is the least by far.
    medians = {way: float(row["median"]) for way, row in rows.items()}
    assert medians["frobenius"] < 0.6 < medians["newton_schulz"] < medians["lanczos"]
