"""Plain dictionaries: one jitted step, and the table of what happens to each leaf."""

import jax
import jax.numpy as jnp
import optax

import optlab


def init(key):
    up, down = jax.random.split(key)
    return {
        "up": {"kernel": 0.5 * jax.random.normal(up, (8, 16)), "bias": jnp.zeros(16)},
        "head": {"kernel": 0.1 * jax.random.normal(down, (16, 4))},
    }


def loss(params, x, y):
    hidden = jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"])
    return jnp.mean((hidden @ params["head"]["kernel"] - y) ** 2)


def main(steps=100):
    params = init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (32, 8))
    y = jnp.sin(x[:, :4])
    tx = optlab.cosmos(2e-2, rank=4, weight_decay=0.01)
    table = optlab.describe(params, tx)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params, x, y)
        updates, state = tx.update(grads, state, params)
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
