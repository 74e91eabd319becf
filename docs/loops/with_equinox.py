"""Equinox: a module is the tree of parameters, and its weights are `(out, in)`.

`layout="torch"` says so. Whatever in the module is no floating array (functions,
integers) has no gradient, and `update` takes the module as it is.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

import optlab


class Net(eqx.Module):
    conv: eqx.nn.Conv2d
    head: eqx.nn.Linear
    activation: callable

    def __init__(self, key):
        conv, head = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(3, 4, 3, key=conv)
        self.head = eqx.nn.Linear(4, 10, key=head)
        self.activation = jax.nn.relu

    def __call__(self, image):
        return self.head(self.activation(self.conv(image)).mean((1, 2)))


def loss(net, images, labels):
    logits = jax.nn.log_softmax(jax.vmap(net)(images))
    return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], 1))


def main(steps=100):
    net = Net(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (8, 3, 6, 6))
    labels = jnp.arange(8)
    roles = optlab.default_roles(layout="torch")
    tx = optlab.lanton(3e-2, roles=roles, weight_decay=0.01)
    params = eqx.filter(net, eqx.is_inexact_array)
    table = optlab.describe(params, tx)
    state = tx.init(params)

    @eqx.filter_jit
    def step(net, state):
        value, grads = eqx.filter_value_and_grad(loss)(net, images, labels)
        updates, state = tx.update(grads, state, net)
        return eqx.apply_updates(net, updates), state, value

    losses = []
    for _ in range(steps):
        net, state, value = step(net, state)
        losses.append(value)
    return losses, table


if __name__ == "__main__":
    losses, table = main()
    print(table)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
