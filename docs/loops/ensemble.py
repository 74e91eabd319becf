"""An ensemble: `jax.vmap` over seeds of the whole training, as purejaxrl does it.

Each member sees matrices without the ensemble's axis, so the roles need not name it.
The state is made inside of `vmap`, so the step count stays one number for all members,
and a method that renews its bases now and then does not renew them at every step.
"""

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


def main(steps=100, seeds=3):
    x = jax.random.normal(jax.random.key(1), (32, 8))
    y = jnp.sin(x[:, :4])
    tx = optlab.scion(1e-2, hidden_radius=3.0, embedding_radius=10.0)
    table = optlab.describe(jax.eval_shape(init, jax.random.key(0)), tx)

    def train(key):
        params = init(key)

        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, x, y)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[1]

    losses = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), seeds))
    return losses.T, table


if __name__ == "__main__":
    losses, table = main()
    print(table)
    print(f"losses {losses[0]} -> {losses[-1]}")
