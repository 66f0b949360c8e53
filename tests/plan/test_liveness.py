"""Peak memory by the order of a traced program, counted by hand."""

import jax
import jax.numpy as jnp

from vidlatent.plan.liveness import peak_bytes

ARRAY = 4000  # bytes of the array below
X = jax.ShapeDtypeStruct((1000,), jnp.float32)


def chain(x):
    for _ in range(5):
        x = jnp.sin(x)
    return x


def peak(function):
    return peak_bytes(jax.make_jaxpr(function)(X))


def backward(function):
    return peak(jax.grad(lambda x: function(x).sum()))


def repeated(function):
    return lambda x: jax.lax.scan(lambda c, _: (function(c), None), x, None, length=50)[0]


def test_a_chain_holds_two_arrays():
    assert peak(chain) == 2 * ARRAY


def test_backward_holds_what_forward_left():
    """Five cosines, the state, and what goes back."""
    assert 5 * ARRAY < backward(chain) <= 8 * ARRAY


def test_a_loop_keeps_five_arrays_a_turn_and_one_if_turns_are_computed_again():
    assert 250 * ARRAY < backward(repeated(chain)) < 270 * ARRAY
    again = backward(repeated(jax.checkpoint(chain)))
    assert 50 * ARRAY < again < 65 * ARRAY


def test_of_a_choice_the_larger_branch_counts():
    def choose(x):
        return jax.lax.cond(x[0] > 0, chain, lambda x: x @ jnp.ones((1000, 1000)), x)

    assert peak(choose) > 1000 * ARRAY
