"""Flax NNX: `nnx.Optimizer` takes a method as it takes one of optax."""

import jax
import jax.numpy as jnp
from flax import nnx

import optlab


class Net(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.head = nnx.Linear(8, 11, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        return self.head(x + self.attention(x))


def loss(net, tokens):
    logits = jax.nn.log_softmax(net(tokens))
    return -jnp.mean(jnp.take_along_axis(logits, tokens[..., None], -1))


def main(steps=100):
    net = Net(nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(1), (4, 6), 0, 11)
    tx = optlab.soap(1e-2)
    table = optlab.describe(nnx.state(net, nnx.Param), tx)
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)

    @nnx.jit
    def step(net, optimizer, tokens):
        value, grads = nnx.value_and_grad(loss)(net, tokens)
        optimizer.update(net, grads)
        return value

    losses = [step(net, optimizer, tokens) for _ in range(steps)]
    return losses, table


if __name__ == "__main__":
    losses, table = main()
    print(table)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
