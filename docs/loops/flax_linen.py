"""Flax linen: `TrainState` takes a method as it takes one of optax."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.training.train_state import TrainState

import optlab


class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(images))
        x = nn.LayerNorm(name="norm")(x.mean((1, 2)))
        return nn.Dense(10, name="head")(x)


def main(steps=100):
    net = Net()
    images = jax.random.normal(jax.random.key(1), (8, 6, 6, 3))
    labels = jnp.arange(8)
    params = net.init(jax.random.key(0), images)["params"]
    tx = optlab.root(1e-2, adam_learning_rate=3e-2)
    table = optlab.describe(params, tx)
    state = TrainState.create(apply_fn=net.apply, params=params, tx=tx)

    @jax.jit
    def step(state):
        def loss(params):
            logits = jax.nn.log_softmax(state.apply_fn({"params": params}, images))
            return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], 1))

        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), value

    losses = []
    for _ in range(steps):
        state, value = step(state)
        losses.append(value)
    return losses, table


if __name__ == "__main__":
    losses, table = main()
    print(table)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
