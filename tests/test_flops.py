"""The FLOPs counter on programs whose operations are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments.flops import Flops, count_flops

A = jax.ShapeDtypeStruct((6, 4), jnp.float32)
B = jax.ShapeDtypeStruct((4, 5), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((4, 4), jnp.float32)
MATMUL = 2 * 6 * 4 * 4


def test_matrix_products():
    assert count_flops(jnp.matmul, A, B) == Flops(matmul=2 * 6 * 4 * 5)
    batched = count_flops(
        lambda x, y: jnp.einsum("bij,bkj->bik", x, y),
        jnp.ones((3, 6, 4)),
        jnp.ones((3, 5, 4)),
    )
    assert batched.matmul == 2 * 3 * 6 * 4 * 5
    assert batched.total == sum(batched) == batched.matmul


def test_elementwise_and_reductions():
    flops = count_flops(lambda x: jnp.sum(jnp.sin(x) * x), A)
    assert flops == Flops(elementwise=24 + 24 + 24)
    assert count_flops(lambda x: x.T.reshape(3, 8)[:2], A).total == 0


def test_what_is_not_used_does_not_count():
    assert count_flops(lambda x, y: (x @ y, x + x)[1], A, B) == Flops(elementwise=24)


def test_what_needs_no_argument_does_not_count():
    def with_identity(x):
        return jax.lax.fori_loop(0, 5, lambda _, y: y + jnp.eye(6, 4), x)

    def with_itself(x):
        return jax.lax.fori_loop(0, 5, lambda _, y: y + x, x)

    assert count_flops(with_identity, A) == count_flops(with_itself, A)
    drawn = count_flops(lambda: jax.random.normal(jax.random.key(0), (6, 4)))
    assert drawn.elementwise >= 24


def nested(x, s):
    """Five products in a scan of a remat of a jit of custom derivatives."""

    @jax.custom_vjp
    def product(c):
        return c @ s

    product.defvjp(lambda c: (c @ s, None), lambda _, g: (g @ s.T,))
    step = jax.checkpoint(jax.jit(product))
    return jax.lax.scan(lambda c, _: (step(c), None), x, length=5)[0]


def relu_product(x, s):
    return jax.nn.relu(x) @ s


def test_loops_and_calls():
    def counted(x, s):
        def body(carry):
            return carry[0] + 3, carry[1] @ s

        return jax.lax.while_loop(lambda c: c[0] < 10, body, (1, x))[1]

    def counted_to_a_carried_bound(x, s):
        def body(carry):
            return carry[0] + 1, carry[1], carry[2] @ s

        return jax.lax.while_loop(lambda c: c[0] < c[1], body, (0, 4, x))[2]

    def unrolled_by_fori(x, s):
        return jax.lax.fori_loop(2, 9, lambda _, c: c @ s, x)

    assert count_flops(nested, A, SQUARE).matmul == 5 * MATMUL
    assert count_flops(relu_product, A, SQUARE) == Flops(MATMUL, 24)
    assert count_flops(counted, A, SQUARE).matmul == 3 * MATMUL
    assert count_flops(counted_to_a_carried_bound, A, SQUARE).matmul == 4 * MATMUL
    assert count_flops(unrolled_by_fori, A, SQUARE).matmul == 7 * MATMUL


def test_a_gradient_under_remat_computes_the_forward_twice():
    def loss(x, s):
        return jnp.sum(jax.checkpoint(lambda c: jnp.tanh(c @ s))(x) ** 2)

    once = count_flops(loss, A, SQUARE).matmul
    grad = count_flops(jax.grad(loss, argnums=(0, 1)), A, SQUARE).matmul
    assert grad == 4 * once


def test_an_unknown_loop_asks_for_its_length():
    def newton(x):
        return jax.lax.while_loop(lambda c: jnp.sum(c) > 1, lambda c: c @ c, x)

    with pytest.raises(ValueError, match="while_trips"):
        count_flops(newton, SQUARE)
    assert count_flops(newton, SQUARE, while_trips=3).matmul == 3 * 2 * 4**3


def test_the_most_expensive_branch_counts():
    def branches(x, s):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ s @ s, lambda: jnp.sin(x))

    assert count_flops(branches, A, SQUARE).matmul == 2 * MATMUL
    assert count_flops(branches, A, SQUARE, cheapest_branch=True).matmul == 0


def test_shard_map_counts_every_device():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def body(x, y):
        return x @ y

    sharded = jax.shard_map(body, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"))
    assert count_flops(sharded, jnp.ones((16, 4)), B).matmul == 2 * 16 * 4 * 5


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [(1, "VALID", 1, 1), (1, "SAME", 1, 1), (2, "SAME", 2, 1), (1, "SAME", 1, 3)],
)
def test_convolutions_and_their_gradients_equal_xla(stride, padding, dilation, groups):
    """XLA, too, counts only the products that take part."""
    x, w = jnp.ones((2, 9, 8, 6)), jnp.ones((3, 2, 6 // groups, 9))

    def conv(x, w):
        return jax.lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            padding,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def input_gradient(x, w):
        return jax.vjp(lambda x: conv(x, w), x)[1](conv(x, w) * 0 + 1)

    for fn in (conv, input_gradient) if groups == 1 else (conv,):
        xla = jax.jit(fn).lower(x, w).cost_analysis()["flops"]
        ours = count_flops(fn, x, w)
        assert ours.matmul == pytest.approx(xla, rel=0.02)
    if padding == "VALID":
        assert count_flops(conv, x, w).matmul == 2 * (2 * 7 * 7 * 9) * (3 * 2 * 6)


def test_factorizations():
    def factorization(fn, *args):
        return count_flops(fn, *args).factorization

    n, m = 4, 6
    assert factorization(jnp.linalg.cholesky, SQUARE) == round(n**3 / 3)
    assert factorization(jnp.linalg.eigh, SQUARE) == 9 * n**3
    qr = 2 * m * n**2 - 2 * n**3 / 3  # the same again to form Q
    assert factorization(jnp.linalg.qr, A) == pytest.approx(2 * qr, abs=1)
    only_r = factorization(lambda x: jnp.linalg.qr(x, mode="r"), A)
    assert only_r <= 2 * qr + 1
    thin = factorization(lambda x: jnp.linalg.svd(x, full_matrices=False), A)
    assert thin == min(14 * m * n**2 + 8 * n**3, 6 * m * n**2 + 20 * n**3)
    values = factorization(lambda x: jnp.linalg.svd(x, compute_uv=False), A)
    assert values == round(4 * m * n**2 - 4 * n**3 / 3)
    solve = factorization(jax.scipy.linalg.solve_triangular, SQUARE, B)
    assert solve == n**2 * 5
    full_solve = factorization(jnp.linalg.solve, SQUARE, B)
    assert full_solve == round(2 * n**3 / 3) + 2 * n**2 * 5
    batched = factorization(jnp.linalg.eigh, jnp.ones((3, 2, 4, 4)))
    assert batched == 6 * 9 * n**3


def test_sorts_and_transforms():
    x = jax.ShapeDtypeStruct((3, 64), jnp.float32)
    assert count_flops(jnp.sort, x).factorization == 3 * 64 * 6
    assert count_flops(lambda x: jax.lax.top_k(x, 4), x).factorization == 3 * 64 * 6
    z = jax.ShapeDtypeStruct((3, 64), jnp.complex64)
    assert count_flops(jnp.fft.fft, z).factorization == 5 * 3 * 64 * 6


def test_what_cannot_be_counted_is_refused():
    def opaque(x):
        return jax.pure_callback(np.sin, x, x)

    with pytest.raises(ValueError, match="pure_callback"):
        count_flops(opaque, jnp.ones(3))


def test_xla_agrees_on_a_program_without_loops():
    def loss(p, x):
        return jnp.mean(jnp.tanh(x @ p) ** 2)

    args = jnp.ones((64, 64)), jnp.ones((128, 64))
    compiled = jax.jit(jax.value_and_grad(loss)).lower(*args).compile()
    ours = count_flops(jax.value_and_grad(loss), *args)
    assert ours.matmul == 2 * 2 * 128 * 64 * 64
    assert math.isclose(ours.total, compiled.cost_analysis()["flops"], rel_tol=0.02)
