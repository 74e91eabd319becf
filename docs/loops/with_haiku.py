"""dm-haiku: `update` without parameters, since nothing decays.

`layout="haiku"` says that a leaf `b` is a bias, in a stack of layers too, and
`stacked` names the stack that `hk.layer_stack` makes.
"""

import haiku as hk
import jax
import jax.numpy as jnp
import optax

import optlab


def net(x):
    def layer(x):
        return x + jnp.tanh(hk.Linear(8, name="up")(x))

    x = hk.experimental.layer_stack(3, name="blocks")(layer)(x)
    return hk.Linear(4, name="head")(x)


def main(steps=100):
    model = hk.without_apply_rng(hk.transform(net))
    x = jax.random.normal(jax.random.key(1), (32, 8))
    y = jnp.sin(x[:, :4])
    params = model.init(jax.random.key(0), x)
    roles = optlab.default_roles(stacked="blocks", layout="haiku")
    tx = optlab.cosmos(1e-2, rank=4, roles=roles)
    table = optlab.describe(params, tx)
    state = tx.init(params)

    def loss(params):
        return jnp.mean((model.apply(params, x) - y) ** 2)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for _ in range(steps):
        params, state, value = step(params, state)
        losses.append(value)
    return losses, table


if __name__ == "__main__":
    losses, table = main()
    print(table)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
