"""Meta-gradients: the learning rate is learned through a few steps of the method.

A rate may be a traced number, so the optimizer is made inside of the function that is
differentiated. What the last loss says about the rate comes back through the states.
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


def main(steps=30, inner_steps=3):
    params = init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (32, 8))
    y = jnp.sin(x[:, :4])
    table = optlab.describe(params, optlab.cosmos(1e-2, rank=4))

    def last_loss(log_rate):
        tx = optlab.cosmos(jnp.exp(log_rate), rank=4)
        p, state = params, tx.init(params)
        for _ in range(inner_steps):
            updates, state = tx.update(jax.grad(loss)(p, x, y), state, p)
            p = optax.apply_updates(p, updates)
        return loss(p, x, y)

    meta_step = jax.jit(jax.value_and_grad(last_loss))
    log_rate, losses = jnp.log(1e-3), []
    for _ in range(steps):
        value, gradient = meta_step(log_rate)
        log_rate -= 0.5 * jnp.sign(gradient)
        losses.append(value)
    return losses, table


if __name__ == "__main__":
    losses, table = main()
    print(table)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
