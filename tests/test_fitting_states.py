"""States made for other leaves or other roles are refused, with the leaf's name."""

import jax
import jax.numpy as jnp
import pytest

import optlab
from optlab.registry import get, names
from optlab.roles import EMBEDDING, VECTOR, Matrix, leaf_name
from tests.helpers.conformance import ROLES, extras, make, zoo

every_entry = pytest.mark.parametrize("name", names())


def changed(path, value):
    """The zoo with another leaf at a path, or without it."""
    tree = zoo()
    *way, last = path.split("/")
    inside = tree
    for key in way:
        inside = inside[key]
    if value is None:
        del inside[last]
    else:
        inside[last] = jnp.zeros(value)
    return tree


def update(name, state, **kwargs):
    """Traces one update of the zoo with this state."""
    tx = make(name, **kwargs)

    def step(grads, state):
        return tx.update(grads, state, grads, **extras(name, grads))

    return jax.eval_shape(step, zoo(), state)


@every_entry
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("wide/kernel", (8, 4)),  # turned round
        ("tall/kernel", (1, 4)),  # would be broadcast
        ("square/kernel", None),
        ("layers/kernel", (2, 6, 9)),
        ("head/kernel", (6, 12)),
        ("norm/scale", (1,)),
        ("temperature", None),
    ],
)
def test_a_state_for_other_leaves_names_the_leaf(name, path, value):
    state = jax.eval_shape(make(name).init, changed(path, value))
    with pytest.raises(ValueError, match=f"state: '{path}'"):
        update(name, state)


def other_role(path, role):
    """The zoo's roles but for one leaf."""
    return lambda at, leaf: role if leaf_name(at) == path else ROLES(at, leaf)


@pytest.mark.parametrize(
    "name",
    [n for n in names() if get(n).takes("roles")],
)
@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("attention/query/kernel", Matrix((0, 1), (2,))),
        ("layers/kernel", Matrix((0, 1), (2,))),
        ("wide/kernel", EMBEDDING),
        ("head/kernel", Matrix((0,), (1,))),
        ("layers/bias", EMBEDDING),
        ("square/kernel", VECTOR),
    ],
)
def test_a_state_for_other_roles_names_the_leaf(name, path, role):
    roles = other_role(path, role)
    state = jax.eval_shape(make(name, roles=roles).init, zoo())
    if same(state, jax.eval_shape(make(name).init, zoo())):
        update(name, state)
        return
    with pytest.raises(ValueError, match=f"state: '{path}'"):
        update(name, state)


def same(one, other):
    """Whether two states have the same leaves of the same shapes."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.shape == b.shape for a, b in pairs)


def test_roles_matter_to_the_states_of_the_matrix_methods():
    roles = other_role("wide/kernel", EMBEDDING)
    differ = {
        name
        for name in ("cosmos", "lanton", "muon", "root", "soap")
        if not same(
            jax.eval_shape(make(name, roles=roles).init, zoo()),
            jax.eval_shape(make(name).init, zoo()),
        )
    }
    assert differ == {"cosmos", "lanton", "muon", "root", "soap"}


def test_the_message_says_what_is_there_and_what_is_needed():
    state = make("adamw").init(changed("wide/kernel", (8, 4)))
    with pytest.raises(ValueError, match="state") as error:
        make("adamw").update(zoo(), state, zoo())
    assert str(error.value) == (
        "state: 'wide/kernel' of shape (4, 8) does not fit the state, where "
        "'0/mu/wide/kernel' of shape (4, 8) has shape (8, 4); the state was made for "
        "other shapes or other roles"
    )


def test_a_state_may_hold_more_than_has_gradients():
    tx = optlab.lion(1e-3)
    grads = changed("square/kernel", None)
    fitting = make("lion").init(zoo())
    with pytest.raises(ValueError, match="square/kernel"):
        tx.update(zoo(), make("lion").init(grads), zoo())
    optlab.state.check_fit(tx.init, grads, fitting)
