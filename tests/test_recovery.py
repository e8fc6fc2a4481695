"""Recovery of latents against known answers, brute force and closed forms."""

import functools
import importlib
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refica.recovery import mcc_chance, procrustes, r_squared, recovery

# Sums over a thousand numbers near 1, some of them squared and divided by each other.
ROUNDING = 1e-12

seeds = st.integers(0, 2**32 - 1)
dims = st.integers(1, 5)


@pytest.fixture(autouse=True, scope="module")
def chance_is_simulated_once():
    """Of each dimension: it does not depend on the latents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("refica.recovery"), "mcc_chance", functools.cache(mcc_chance))
        yield


def latents(seed, m, N=200):
    return np.random.default_rng(seed).standard_normal((N, m))


def rotation(seed, m):
    Q, R = np.linalg.qr(np.random.default_rng([seed, 1]).standard_normal((m, m)))
    return Q * np.sign(np.diag(R))


def perfect(found, m):
    """Whether all but the MCC are 1."""
    return (
        abs(found.procrustes_r2 - 1.0) < ROUNDING
        and abs(found.affine_r2 - 1.0) < ROUNDING
        and np.allclose(found.canonical_correlations, np.ones(m), rtol=0.0, atol=ROUNDING)
    )


@given(seeds, dims)
def test_rotated_latents_are_recovered(seed, m):
    Z, Q = latents(seed, m), rotation(seed, m)
    found = recovery(Z, Z @ Q)
    assert perfect(found, m)
    assert np.allclose(Z @ Q @ procrustes(Z, Z @ Q), Z, rtol=0.0, atol=ROUNDING)
    assert 0.0 <= found.mcc <= 1.0


def test_a_rotation_by_45_degrees_has_an_mcc_of_one_half_root_two():
    Z = latents(0, 2, N=200_000)
    half = math.sqrt(0.5)
    found = recovery(Z, Z @ np.array([[half, -half], [half, half]]))
    assert perfect(found, 2)
    assert found.mcc == pytest.approx(half, abs=0.005)  # about 2/√N
    assert found.mcc < found.mcc_chance


@given(seeds, dims, st.randoms(use_true_random=False))
def test_permutation_and_signs_are_removed_by_every_measure(seed, m, random):
    Z = latents(seed, m)
    order = random.sample(range(m), m)
    signs = [random.choice([-1.0, 1.0]) for _ in range(m)]
    found = recovery(Z, Z[:, order] * signs)
    assert perfect(found, m)
    assert found.mcc == pytest.approx(1.0, abs=ROUNDING)


@given(seeds, dims)
def test_an_affine_map_is_removed_by_the_affine_measures_only(seed, m):
    Z, Q = latents(seed, m), rotation(seed, m)
    found = recovery(Z, 3.0 * Z @ Q @ np.diag(1.0 + np.arange(m)) + 5.0)
    assert found.affine_r2 == pytest.approx(1.0, abs=ROUNDING)
    assert np.allclose(found.canonical_correlations, 1.0, rtol=0.0, atol=ROUNDING)
    assert found.procrustes_r2 < 0.0


def test_r_squared_of_three_numbers():
    Z = [[1.0], [3.0], [-1.0]]  # mean 1, deviations 0, 2, -2
    assert r_squared(Z, Z) == 1.0
    assert r_squared(Z, [[1.0], [1.0], [1.0]]) == 0.0
    assert r_squared(Z, [[2.0], [3.0], [-1.0]]) == 1.0 - 1.0 / 8.0
    assert r_squared(Z, [[-1.0], [-3.0], [1.0]]) == 1.0 - 44.0 / 8.0
    assert recovery(Z, [[-1.0], [-3.0], [1.0]]).procrustes_r2 == pytest.approx(1.0, abs=ROUNDING)
    # E = Z + 1 on one row of three: Q = ±1, so that only the sign is removed.
    assert recovery(Z, [[-2.0], [-3.0], [1.0]]).procrustes_r2 == pytest.approx(0.875, abs=ROUNDING)


def test_neither_a_shift_nor_a_scale_is_forgiven_by_the_orthogonal_map():
    Z = latents(1, 2, N=5000)
    variance = Z.var(axis=0).mean()
    # ‖Z - (Z + c)‖² = N m c², and shrinking by s leaves (1 - s)² of the variance (the mean is near 0).
    assert recovery(Z, Z + 0.5).procrustes_r2 == pytest.approx(1.0 - 0.25 / variance, abs=0.01)
    assert recovery(Z, 0.8 * Z).procrustes_r2 == pytest.approx(1.0 - 0.04, abs=1e-3)


@pytest.mark.parametrize("m", [1, 2, 4])
def test_independent_noise_explains_nothing(m):
    N = 20_000
    found = recovery(latents(2, m, N), latents(3, m, N))
    small = 5.0 / math.sqrt(N)
    assert found.affine_r2 < small
    assert found.canonical_correlations.max() < 2.0 * small
    assert found.mcc < small
    assert found.procrustes_r2 == pytest.approx(-1.0, abs=0.1)  # twice the variance of Z is left


@given(seeds, st.integers(1, 3), st.floats(0.0, 2.0))
def test_every_measure_against_brute_force(seed, m, noise):
    Z = latents(seed, m, N=60)
    E = Z @ latents(seed + 1, m, N=m) + noise * latents(seed + 2, m, N=60)
    found = recovery(Z, E)
    design = np.column_stack([np.ones(60), E])
    residual = Z - design @ np.linalg.lstsq(design, Z, rcond=None)[0]
    left = np.sum(residual**2) / np.sum((Z - Z.mean(axis=0)) ** 2)
    assert found.affine_r2 == pytest.approx(1.0 - left, abs=1e-9)
    both = np.abs(np.atleast_2d(np.corrcoef(Z.T, E.T)))
    C = both[:m, m:]
    best = max(np.mean([C[i, j] for i, j in enumerate(p)]) for p in itertools.permutations(range(m)))
    assert found.mcc == pytest.approx(best, abs=1e-9)
    # Canonical correlations squared are the eigenvalues of Szz⁻¹ Sze See⁻¹ Sez.
    S = np.cov(Z.T, E.T)
    zz, ze, ee = S[:m, :m], S[:m, m:], S[m:, m:]
    squared = np.linalg.eigvals(np.linalg.solve(zz, ze) @ np.linalg.solve(ee, ze.T)).real
    expected = np.sqrt(np.clip(np.sort(squared)[::-1], 0.0, 1.0))
    # The square root and nearly collinear columns of E take digits.
    assert np.allclose(found.canonical_correlations, expected, rtol=0.0, atol=1e-4)


@settings(max_examples=20)  # each tries 362 maps
@given(seeds, st.floats(0.0, 2.0))
def test_no_rotation_or_reflection_of_the_plane_does_better(seed, noise):
    Z = latents(seed, 2, N=50)
    E = Z @ rotation(seed, 2) + noise * latents(seed + 1, 2, N=50)
    best = recovery(Z, E).procrustes_r2
    for angle in np.linspace(0.0, 2.0 * np.pi, 181):
        c, s = math.cos(angle), math.sin(angle)
        for Q in ([[c, -s], [s, c]], [[c, s], [s, -c]]):
            assert r_squared(Z, E @ Q) <= best + ROUNDING


@given(seeds, st.integers(2, 5))
def test_the_best_map_is_orthogonal_whatever_the_estimate(seed, m):
    Z = latents(seed, m)
    for E in (Z * 0.0, np.ones_like(Z), Z * ([1.0] + [0.0] * (m - 1)), latents(seed + 1, m)):
        Q = procrustes(Z, E)
        assert np.allclose(Q.T @ Q, np.eye(m), rtol=0.0, atol=ROUNDING)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e8 / 3.0, 1e-300])
@pytest.mark.parametrize("m", [1, 3])
def test_a_constant_estimate_explains_exactly_nothing(constant, m):
    Z = latents(4, m, N=1000)
    found = recovery(Z, np.full_like(Z, constant))
    assert found.affine_r2 == 0.0
    assert found.mcc == 0.0
    assert np.array_equal(found.canonical_correlations, np.zeros(m))
    if abs(constant) < 1e-3:
        assert found.procrustes_r2 == pytest.approx(0.0, abs=0.01)
    else:
        assert math.isfinite(found.procrustes_r2)


def test_a_collapsed_coordinate_counts_as_nothing():
    Z = latents(5, 3, N=1000)
    found = recovery(Z, Z * [1.0, 1.0, 0.0])
    assert found.mcc == pytest.approx(2.0 / 3.0, abs=ROUNDING)
    assert found.affine_r2 == pytest.approx(2.0 / 3.0, abs=0.05)
    assert found.canonical_correlations == pytest.approx([1.0, 1.0, 0.0], abs=ROUNDING)


def test_scales_do_not_matter_to_the_affine_measures():
    Z = latents(6, 3, N=300)
    plain, scaled = recovery(Z, Z), recovery(Z, Z * [1e-150, 1.0, 1e100])
    assert scaled.affine_r2 == pytest.approx(plain.affine_r2, abs=ROUNDING)
    assert scaled.mcc == pytest.approx(1.0, abs=ROUNDING)
    assert scaled.canonical_correlations == pytest.approx([1.0, 1.0, 1.0], abs=ROUNDING)


@pytest.mark.parametrize(("m", "level"), [(3, 0.827), (5, 0.730)])
def test_the_chance_level_is_that_of_the_literature(m, level):
    # Three digits are known, and 20 000 rotations leave a standard error below 0.0006.
    assert mcc_chance(m, rotations=20_000) == pytest.approx(level, abs=0.0025)
    assert mcc_chance(m) == pytest.approx(level, abs=0.007)


def test_the_chance_level_in_closed_form():
    # m = 1: Q = ±1. m = 2: the mean of max(|cos|, |sin|) over the circle.
    assert mcc_chance(1) == 1.0
    exact = 2.0 * math.sqrt(2.0) / math.pi
    assert mcc_chance(2) == pytest.approx(exact, abs=0.008)
    errors = [mcc_chance(2, seed=seed) - exact for seed in range(30)]
    assert np.std(errors) < 0.003
    assert abs(np.mean(errors)) < 4.0 * np.std(errors) / math.sqrt(30)


def test_the_chance_level_is_reproducible_and_reported():
    assert mcc_chance(3) == mcc_chance(3)
    assert mcc_chance(3, seed=1) != mcc_chance(3)
    assert mcc_chance(2, rotations=1) == mcc_chance(2, rotations=1)
    Z = latents(7, 3)
    assert recovery(Z, Z).mcc_chance == mcc_chance(3)


def test_unrelated_rotations_of_latents_score_the_chance_level():
    Z = latents(8, 3, N=2000)
    mean = np.mean([recovery(Z, Z @ rotation(seed, 3)).mcc for seed in range(60)])
    assert mean == pytest.approx(0.827, abs=0.04)  # 4 standard errors of 60 scores with sd .07


def test_the_measures_as_plain_values():
    Z = latents(9, 2)
    found = recovery(Z, Z)
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain.keys() == set(found.__dataclass_fields__)
    assert plain["canonical_correlations"] == found.canonical_correlations.tolist()


def test_inputs_are_not_changed_and_may_be_lists():
    Z, E = latents(10, 2), latents(11, 2)
    before = Z.copy(), E.copy()
    Z.setflags(write=False)
    E.setflags(write=False)
    first = recovery(Z, E)
    assert np.array_equal(Z, before[0])
    assert np.array_equal(E, before[1])
    assert recovery(Z.tolist(), np.asfortranarray(E)).mcc == first.mcc


@pytest.mark.parametrize("call", [recovery, procrustes, r_squared])
def test_bad_input_is_refused(call):
    Z = latents(12, 2)
    with pytest.raises(ValueError, match=r"z_estimated must have shape \(200, 2\), got \(200, 3\)"):
        call(Z, latents(12, 3))
    with pytest.raises(ValueError, match="z_estimated must be finite"):
        call(Z, Z * np.nan)
    with pytest.raises(ValueError, match="z_true must have at least 2 rows, got 1"):
        call(Z[:1], Z[:1])
    with pytest.raises(ValueError, match=r"z_true must have shape \(N, m\)"):
        call(Z[:, 0], Z[:, 0])


@pytest.mark.parametrize("call", [recovery, r_squared])
def test_true_latents_that_do_not_vary_are_refused(call):
    with pytest.raises(ValueError, match="z_true must vary"):
        call(np.full((10, 2), 0.1), latents(13, 2, N=10))


@pytest.mark.parametrize("arguments", [(0,), (2, 0), (2, 10, -1), (True,)])
def test_a_bad_chance_level_is_refused(arguments):
    with pytest.raises((TypeError, ValueError), match="must be an integer >="):
        mcc_chance(*arguments)
