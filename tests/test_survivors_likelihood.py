"""Sizes of tiles, floors of exponents, the bound on rounding: untested until mutants showed it."""

import math

import numpy as np
import pytest

import refica as ri
from refica import likelihood
from refica.likelihood import Nodes, tiles


def test_the_bound_on_rounding_is_the_formula_that_it_states():
    """4 u (E + (1 + ‖x‖) sqrt(2 E / σ²)) with E = |log p| + n/2 |log 2πσ²| + n."""
    x, sigma2, log_p = np.array([[3.0, 4.0], [0.0, 0.0]]), 0.01, np.array([-7.0, 2.0])
    E = np.abs(log_p) + abs(math.log(2.0 * math.pi * sigma2)) + 2.0
    want = 4.0 * np.finfo(float).eps * (E + np.array([6.0, 1.0]) * np.sqrt(2.0 * E / sigma2))
    np.testing.assert_allclose(likelihood.rounding_error(x, sigma2, log_p), want, rtol=1e-14)


@pytest.mark.parametrize(("n", "K"), [(1, 50), (3, 50), (3, 1000), (7, 10**5)])
def test_a_tile_is_as_large_as_its_bound_lets_it_be(n, K):
    decoder = ri.MLP((1, n))
    z = np.linspace(-3.0, 3.0, K)[:, None]
    x = np.zeros((3000, n))
    rows = [
        tile.rows.stop - tile.rows.start
        for tile, _ in zip(
            tiles(decoder, np.zeros(2 * n), 1.0, x, Nodes(z, np.zeros(K))), range(2), strict=False
        )
    ]
    want = max(1, min(3000, likelihood.TILE // (K * (n + 1))))
    assert rows[0] == pytest.approx(want, rel=0.02)
    assert rows[0] == 1 or rows[0] * K * (n + 1) <= likelihood.TILE


def test_nodes_of_ones_own_come_in_blocks_that_a_decoder_takes_at_once():
    K = 100
    z, x = np.zeros((200, K, 1)), np.zeros((200, 2))
    found = tiles(ri.MLP((1, 2)), np.zeros(4), 1.0, x, Nodes(z, np.zeros((200, K))))
    assert next(found).rows == slice(0, likelihood.DECODER_ROWS // K)


def test_what_is_nothing_beside_one_has_a_normal_square():
    assert np.exp(likelihood.NOTHING) ** 2 >= np.finfo(float).tiny
    assert np.exp(likelihood.NOTHING) * 2**20 < np.finfo(float).eps ** 2
