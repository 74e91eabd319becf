import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.trainer import checksums
from experiments.trainer.checkpoints import CheckpointError, Checkpoints
from experiments.trainer.state import TrainState, leaf_names
from optlab import sharding

P = jax.sharding.PartitionSpec


def state_of(step: int) -> TrainState:
    key = jax.random.key(step)
    params = {
        "a": jax.random.normal(key, (16, 8)),
        "b": {"c": jax.random.normal(key, (8,), jnp.bfloat16)},
    }
    return TrainState(
        step=jnp.int32(step),
        params=params,
        opt_state=optax.adam(0.1).init(params),
        key=jax.random.fold_in(key, 3),
        bad_steps=jnp.int32(step % 3),
    )


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    bits = jax.tree.map(lambda x: x, (a, b))
    for x, y in zip(*map(jax.tree.leaves, bits), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)  # noqa: PLW2901
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of steps 2 and 3; that of 1 is gone."""
    run = Checkpoints(tmp_path / "checkpoints", print)
    for step in (1, 2, 3):
        run.save(state_of(step), {"next_index": 10 * step})
    run.wait()
    run.close()
    return tmp_path / "checkpoints"


def restore(folder, like=None):
    said = []
    run = Checkpoints(folder, said.append)
    found = run.restore(abstract(like or state_of(0)))
    run.close()
    return found, said


def test_the_newest_comes_back_to_the_bit(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["2", "3"]
    (state, position), said = restore(saved)
    assert_same(state, state_of(3))
    assert position == {"next_index": 30}
    assert not said


def test_nothing_is_nothing(tmp_path):
    assert restore(tmp_path / "none") == (None, [])
    assert not (tmp_path / "none").exists()


def spoil(folder, how):
    files = [path for path in folder.rglob("*") if path.is_file()]
    # The values of the parameters, and what leads to them.
    arrays = [path for path in (folder / "params").rglob("d/*")]
    contents = {path: bytearray(path.read_bytes()) for path in arrays}
    if how == "truncated":
        for path, content in contents.items():
            path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        for path in files:
            path.write_bytes(b"")
    elif how == "missing":
        for path in arrays:
            path.unlink()
    elif how == "no place":
        (folder / "place" / "metadata").unlink()
    elif how == "changed":
        # In the middle of the values, where no format's own checksum need be.
        for path, content in contents.items():
            content[len(content) // 2] ^= 1
            path.write_bytes(content)


@pytest.mark.parametrize(
    "how", ["truncated", "empty", "missing", "no place", "changed"]
)
def test_a_spoilt_one_is_set_aside_for_the_one_before(saved, how):
    spoil(saved / "3", how)
    (state, position), said = restore(saved)
    assert_same(state, state_of(2))
    assert position == {"next_index": 20}
    assert len(said) == 1
    assert "checkpoint of step 3 is corrupt" in said[0]
    assert "\n" not in said[0]
    # The step can be saved again, and the next start has nothing to complain of.
    run = Checkpoints(saved, print)
    run.save(state_of(3), {"next_index": 30})
    run.wait()
    run.close()
    found, said = restore(saved)
    assert_same(found[0], state_of(3))
    assert not said


def test_all_spoilt_is_nothing(saved):
    spoil(saved / "2", "truncated")
    spoil(saved / "3", "truncated")
    found, said = restore(saved)
    assert found is None
    assert len(said) == 2


def test_an_unfinished_one_is_no_checkpoint(saved):
    (saved / "3").rename(saved / "4.orbax-checkpoint-tmp-1")
    (state, _), said = restore(saved)
    assert_same(state, state_of(2))
    assert not said


def test_a_folder_that_cannot_be_written_is_one_plain_error(tmp_path):
    (tmp_path / "file").write_text("")
    run = Checkpoints(tmp_path / "file" / "checkpoints", print)
    with pytest.raises(CheckpointError) as caught:
        run.save(state_of(1), {})
    assert "\n" not in caught.value.strerror


def test_any_changed_bit_changes_the_checksum():
    state = state_of(1)._replace(key=jnp.zeros(2, jnp.uint32))
    before = checksums.of_arrays(state)
    assert list(before) == leaf_names(state)
    rng = np.random.default_rng(0)
    for _ in range(40):
        words = np.asarray(state.params["a"]).view(np.uint32).copy()
        words[rng.integers(16), rng.integers(8)] ^= np.uint32(1) << rng.integers(32)
        changed = state._replace(params=state.params | {"a": words.view(np.float32)})
        after = checksums.of_arrays(changed)
        assert {name for name in before if before[name] != after[name]} == {"params/a"}
    # Against the same sum in Python's own integers.
    words = np.asarray(state.params["a"]).view(np.uint32).ravel().tolist()
    total = sum(word * (2 * i + 1) for i, word in enumerate(words)) % 2**32
    assert before["params/a"] == total


def test_it_comes_back_on_another_mesh(tmp_path):
    def lay_out(state, count):
        mesh = sharding.make_mesh({"data": count}, jax.devices()[:count])

        def place(x):
            spec = P("data") if x.ndim and x.shape[0] % count == 0 else P()
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                spec = P()
            return jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))

        return jax.tree.map(place, state)

    state = lay_out(state_of(5), 8)
    for count in (4, 1, 8):
        folder = tmp_path / str(count)
        run = Checkpoints(folder, print)
        run.save(state, {})
        run.wait()
        run.close()
        like = lay_out(state_of(5), count)
        (state, _), said = restore(folder, like)
        assert not said
        assert_same(state, state_of(5))
        for found, wanted in zip(*map(jax.tree.leaves, (state, like)), strict=True):
            assert found.sharding.is_equivalent_to(wanted.sharding, found.ndim)


ERRORS = (errno.EIO, errno.EACCES, errno.EMFILE, errno.ENOSPC, errno.ESTALE)


@pytest.mark.parametrize("where", ["orbax", "tensorstore", "folder"])
def test_an_error_of_the_machine_is_no_corrupt_file(saved, monkeypatch, where):
    def names():
        return sorted(path for path in saved.rglob("*"))

    before = names()
    for code in ERRORS:
        fault = OSError(code, os.strerror(code), str(saved / "3" / "params"))
        run = Checkpoints(saved, print)

        def failing(*_, fault=fault, code=code):
            if where == "orbax":
                raise RuntimeError("in a thread") from fault
            if where == "tensorstore":
                raise ValueError(f"Error reading: [os_error_code='{code}']")
            raise FileNotFoundError("orbax takes a closed folder for a missing one")

        def closed(*_, fault=fault, **__):
            raise fault

        with monkeypatch.context() as patch:
            patch.setattr(run, "_restore", failing)
            if where == "folder":
                patch.setattr("builtins.open", closed)
            with pytest.raises(CheckpointError, match=os.strerror(code)) as caught:
                run.restore(abstract(state_of(0)))
        assert caught.value.errno == code
        run.close()
        assert names() == before
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", closed)
        with pytest.raises(OSError, match="Stale"):
            Checkpoints(saved, print).restore(abstract(state_of(0)))


def test_no_changed_bit_gives_another_place_in_the_data(saved):
    path = saved / "3" / "place" / "metadata"
    content = path.read_bytes()
    at = content.index(b'"next_index": 30') + len(b'"next_index": ')
    rng = np.random.default_rng(0)
    # Both digits of it, and any others.
    bits = [8 * at + i for i in range(16)] + rng.integers(
        8 * len(content), size=8
    ).tolist()
    outcomes = []
    for bit in bits:
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        run = Checkpoints(saved, lambda _: None, read_only=True)
        state, position = run.restore(abstract(state_of(0)), only=("rest",))
        run.close()
        step = int(state.step)
        assert position == {"next_index": 10 * step}
        outcomes.append(step)
    assert outcomes[:16] == [2] * 16


def test_a_renamed_checkpoint_is_none(saved):
    (saved / "3").rename(saved / "7")
    (state, position), said = restore(saved)
    assert int(state.step) == 2 and position == {"next_index": 20}
    assert "it holds the state of step 3" in said[0] or "place in the data" in said[0]


def test_nothing_is_renamed_where_none_is_whole(saved):
    for step in ("2", "3"):
        spoil(saved / step, "truncated")
    restore(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["2", "3"]
