"""How good is each gradient estimator of the VAE, and do its bounds hold? Exercise 3 against the truth.

``python -m benchmarks estimators``: bias and variance of the stochastic gradients against gradients without
noise; the signal-to-noise ratio of the two IWAE gradients for φ against the number of samples, with a figure;
the bound and the gap ledger on 2000 random cases. About five minutes of processor time. ``quick`` behind it
takes a twentieth of the draws and cases and writes nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import refica as ri
from benchmarks._results import FOLDER, write_result
from refica.plot.canvas import BLUE, figure_png, new_figure
from refica.vae import elbo_and_gradient
from refica.vae.evidence import nodes_of
from refica.vae.importance import ESTIMATORS, iwae_and_gradient

DRAWS = 100_000
"""Gradients whose mean and variance are taken."""

LATENTS = 1024
"""Latents in a call: as many copies of the observation, each with noise of its own, as that allows."""

SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Numbers of samples L of the importance-weighted bound."""

SNR_DRAWS = 40_000
"""Gradients at each of them."""

ORDER, GRID = 300, 81
"""Order of the Gauss-Hermite rule for the ELBO's gradient, and points of the grid over each noise for that of
IWAE with two samples."""

CASES = {1: 1600, 2: 380, 3: 20}
"""Random models, one observation each, for the bound and the ledger, by latent dimension."""

KINDS = ("tanh", "sigmoid", "softplus", "sin", "gelu", "relu", "leaky_relu", "polynomial")

ORANGE = "#D55E00"


def main(arguments: Sequence[str] = ()) -> None:
    """Measure, print, and write ``results/estimators.json`` and ``.png``."""
    share = 20 if "quick" in arguments else 1
    vae, x = fitted()
    quality = measure_quality(vae, x, DRAWS // share)
    settings = {"affine decoder, q too wide": wide(), "tanh decoder, after 1000 steps": (vae, x)}
    ratios = {name: measure_ratios(name, *setting, SNR_DRAWS // share) for name, setting in settings.items()}
    ledger = measure_ledger(share)
    if share > 1:
        return
    (FOLDER / "estimators.png").write_bytes(figure_png(draw(ratios)))
    path = write_result("estimators", {"estimators": quality, "signal_to_noise": ratios, "ledger": ledger})
    print(f"\nwritten to {path}")


def fitted() -> tuple[ri.VAE, np.ndarray]:
    """A VAE some way through its training (m = 1, n = 2, 4 hidden units each), and one observation."""
    rng = np.random.default_rng(3)
    decoder = ri.MLP((1, 4, 2))
    truth = ri.NonlinearICA(decoder, decoder.init(rng), sigma2=0.1)
    _, x = truth.sample(500, rng)
    start = ri.initial_vae(ri.NonlinearICA(decoder, decoder.init(rng), sigma2=0.5), x, hidden=4, rng=rng)
    return ri.fit_vae(start, x, rng=0, max_iter=1000).vae, x[:1]


def wide() -> tuple[ri.VAE, np.ndarray]:
    """An affine decoder (m = 1, n = 2) with a q 1.5 times as wide as the posterior and off by a fifth of its
    width: its importance weights are bounded."""
    W, sigma2 = np.array([1.0, 0.5]), 0.1
    model = ri.NonlinearICA(ri.MLP((1, 2)), np.append(W, [0.0, 0.0]), sigma2)
    s2 = 1.0 / (1.0 + W @ W / sigma2)
    phi = np.concatenate([s2 * W / sigma2, [0.0, 0.0], [0.2 * np.sqrt(s2), np.log(2.25 * s2)]])
    return ri.VAE(model, ri.MLP((2, 2)), phi), np.array([[0.5, -0.25]])


# -----------------------------------------------------------------------------------------------------
# Bias and variance
# -----------------------------------------------------------------------------------------------------


def measure_quality(vae: ri.VAE, x: np.ndarray, draws: int) -> dict[str, Any]:
    """Deviation of mean gradients from the one without noise, in standard errors, and the spread of one."""
    elbo_truth = flat(ri.elbo_quadrature(vae, x, ORDER).gradient)
    iwae_truth = expected_iwae_gradient(vae, x, 2, GRID)
    coarser = expected_iwae_gradient(vae, x, 2, GRID - 16)
    print(f"gradient of IWAE with 2 samples by quadrature: to {np.abs(iwae_truth - coarser).max():.1e}")
    cases: list[tuple[str, Callable[..., Any], int, np.ndarray]] = [
        ("ELBO", elbo_and_gradient, 1, elbo_truth),
        ("ELBO", elbo_and_gradient, 10, elbo_truth),
        *((f"IWAE, {kind}", with_estimator(kind), 2, iwae_truth) for kind in ESTIMATORS),
    ]
    table, rng = {}, np.random.default_rng(0)
    print(f"{'estimator':32}{'samples':>8}{'deviation':>11}{'bias':>10}{'sd of θ, σ²':>13}{'sd of φ':>10}")
    for name, estimate, L, truth in cases:
        mean, variance = moments(vae, x, estimate, L, draws, rng)
        sd, error = np.sqrt(variance), np.sqrt(variance / draws)
        split = vae.model.decoder.n_params + 1
        row = {
            "samples": L,
            "draws": draws,
            "largest_deviation_in_standard_errors": float(np.abs((mean - truth) / error).max()),
            "bias_relative_to_the_gradient": float(np.linalg.norm(mean - truth) / np.linalg.norm(truth)),
            "sd_theta_sigma2": float(np.linalg.norm(sd[:split])),
            "sd_phi": float(np.linalg.norm(sd[split:])),
        }
        table[f"{name}, {L}"] = row
        print(
            f"{name:32}{L:8}{row['largest_deviation_in_standard_errors']:11.2f}"
            f"{row['bias_relative_to_the_gradient']:10.1e}{row['sd_theta_sigma2']:13.3f}{row['sd_phi']:10.3f}"
        )
    return table


def with_estimator(kind: str) -> Callable[..., Any]:
    """The gradient of IWAE with one of its estimators."""
    return lambda *arguments: iwae_and_gradient(*arguments, kind)


def arguments_of(vae: ri.VAE) -> tuple[Any, ...]:
    """What the plain formulas take before the data and the noise."""
    return vae.model.decoder, vae.encoder, vae.model.theta, vae.model.sigma2, vae.phi


def flat(by: Any) -> np.ndarray:
    """The gradient in (θ, σ², φ) as one vector."""
    return np.concatenate([by.theta, [by.sigma2], by.phi])


def moments(
    vae: ri.VAE,
    x: np.ndarray,
    estimate: Callable[..., Any],
    L: int,
    draws: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the gradient of one observation from L samples, each (p + 1 + q,).

    From sums over copies in a call, which are independent: their variance is so many times that of one.
    """
    copies = max(1, LATENTS // L)
    sums = []
    for _ in range(max(2, draws // copies)):
        noise = rng.standard_normal((L, copies, vae.model.latent_dim))
        sums.append(flat(estimate(*arguments_of(vae), np.repeat(x, copies, axis=0), noise)[1]))
    return np.mean(sums, axis=0) / copies, np.var(sums, axis=0, ddof=1) / copies


def expected_iwae_gradient(vae: ri.VAE, x: np.ndarray, L: int, points: int) -> np.ndarray:
    """Gradient of E IWAE_L(x) by a product of grids over the L noises, m = 1."""
    t, weight = nodes_of(ri.uniform_grid(points, 8.0), 1)
    total = np.zeros(vae.model.decoder.n_params + 1 + len(vae.phi))
    for ks in itertools.product(range(points), repeat=L):
        noise = t[list(ks)][:, None]
        total += weight[list(ks)].prod() * flat(iwae_and_gradient(*arguments_of(vae), x, noise)[1])
    return total


# -----------------------------------------------------------------------------------------------------
# Signal and noise
# -----------------------------------------------------------------------------------------------------


def measure_ratios(name: str, vae: ri.VAE, x: np.ndarray, draws: int) -> dict[str, Any]:
    """‖E ∇_φ‖ / sqrt(tr cov ∇_φ) of both IWAE gradients, which have one expectation: the mean of the doubly
    reparameterised one is taken for both, since that of the plain one drowns in its noise."""
    split = vae.model.decoder.n_params + 1
    rng = np.random.default_rng(1)
    found: dict[str, Any] = {"samples": list(SAMPLES), "draws": draws}
    found |= {kind: [] for kind in (*ESTIMATORS, "difference_in_standard_errors")}
    print(f"\n{name}\n{'samples':>8}{'plain':>10}{'doubly r.':>10}{'difference':>12}")
    for L in SAMPLES:
        each = [moments(vae, x, with_estimator(kind), L, draws, rng) for kind in ESTIMATORS]
        (plain, plain_variance), (doubly, doubly_variance) = (
            (mean[split:], variance[split:]) for mean, variance in each
        )
        signal = np.linalg.norm(doubly)
        for kind, variance in zip(ESTIMATORS, (plain_variance, doubly_variance), strict=True):
            found[kind].append(float(signal / np.sqrt(variance.sum())))
        error = np.sqrt((plain_variance + doubly_variance) / draws)
        apart = float(np.abs((plain - doubly) / error).max())
        found["difference_in_standard_errors"].append(apart)
        print(f"{L:8}{found['plain'][-1]:10.3f}{found['doubly-reparameterised'][-1]:10.3f}{apart:12.2f}")
    return found


def draw(ratios: dict[str, dict[str, Any]]) -> Any:
    """The figure: a panel for each setting, signal-to-noise ratio against the number of samples."""
    figure = new_figure(8.0, 3.6)
    looks = {"plain": (ORANGE, "s", -0.5), "doubly-reparameterised": (BLUE, "o", 0.5)}
    axes = figure.subplots(1, len(ratios), sharex=True, sharey=True)
    for ax, (name, found) in zip(axes, ratios.items(), strict=True):
        L = np.array(found["samples"], dtype=float)
        for kind, (colour, marker, slope) in looks.items():
            ax.plot(L, found[kind], marker=marker, color=colour, markersize=5, linewidth=1.4, label=kind)
            rate = found[kind][2] * (L / L[2]) ** slope
            ax.plot(L, rate, color=colour, linewidth=0.8, linestyle=":")
        ax.set(xscale="log", yscale="log", xlabel="samples L")
        ax.set_xticks(L, [f"{count:g}" for count in L])
        ax.minorticks_off()
        ax.set_title(name, fontsize=10, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("signal-to-noise ratio in φ")
    handles, labels = axes[0].get_legend_handles_labels()
    labels = [f"{label} (dotted: its rate, 1/√L or √L)" for label in labels]
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


# -----------------------------------------------------------------------------------------------------
# The bound and the ledger
# -----------------------------------------------------------------------------------------------------


def measure_ledger(share: int) -> dict[str, Any]:
    """Violations of ELBO <= log p(x) and of the signs of the gaps beyond the errors, by latent dimension."""
    table = {}
    print(
        f"\n{'':6}{'cases':>6}{'ELBO above':>11}{'gap < 0':>9}{'2 ways':>9}{'conv.':>7}"
        f"{'median error':>14}{'s':>8}"
    )
    for m, count in CASES.items():
        began = time.process_time()
        rows = [ledger_row(m, seed) for seed in range(count // share)]
        seconds = time.process_time() - began
        found = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        table[f"m = {m}"] = row = {
            "cases": len(rows),
            "elbo_quadrature_above_log_p_beyond_errors": int(found["above"].sum()),
            "gaps_below_zero_beyond_errors": int(found["negative"].sum()),
            "gap_is_not_the_divergence_to_1e-8_or_the_error": int(found["apart"].sum()),
            "converged": int(found["converged"].sum()),
            "difference_of_the_two_ways_max_where_the_error_is_below_1e-8": float(
                found["difference"][found["error"] <= 1e-8].max(initial=0.0)
            ),
            "error_median": float(np.median(found["error"])),
            "approximation_median": float(np.median(found["approximation"])),
            "amortisation_median": float(np.median(found["amortisation"])),
            "seconds_per_case": seconds / len(rows),
        }
        print(
            f"m = {m:2}{row['cases']:6}{row['elbo_quadrature_above_log_p_beyond_errors']:11}"
            f"{row['gaps_below_zero_beyond_errors']:9}"
            f"{row['gap_is_not_the_divergence_to_1e-8_or_the_error']:9}{row['converged']:7}"
            f"{row['error_median']:14.1e}{row['seconds_per_case']:8.3f}"
        )
    return table


def ledger_row(m: int, seed: int) -> dict[str, float]:
    """One random model and encoder, one observation: what must hold, and how large things are."""
    vae, x = random_case(m, seed)
    found, bound = ri.gaps(vae, x), ri.elbo_quadrature(vae, x, 20 if m < 3 else 12, gradient=False)
    error, log_p = float(found.error[0]), float(found.log_p[0])
    difference = abs(float(found.kl[0]) - (log_p - float(found.elbo[0])))
    return {
        "above": float(bound.per_observation[0] > log_p + error + bound.error[0]),
        "negative": float(min(found.approximation[0], found.amortisation[0]) < -error),
        "apart": float(difference > max(1e-8 * max(1.0, abs(log_p)), error)),
        "converged": float(found.converged[0]),
        "difference": difference / max(1.0, abs(log_p)),
        "error": error / max(1.0, abs(log_p)),
        "approximation": float(found.approximation[0]),
        "amortisation": float(found.amortisation[0]),
    }


def random_case(m: int, seed: int) -> tuple[ri.VAE, np.ndarray]:
    """One hidden layer of 3 to 8 units or degree 3; n from m to 4; σ² from 1e-3 to 10; the encoder regresses
    the model's latents, then is disturbed; a fifth of the observations are off the model."""
    rng = np.random.default_rng([m, seed])
    kind, n = KINDS[seed % len(KINDS)], int(rng.integers(m, 5))
    decoder: Any = ri.Polynomial(m, n, 3) if kind == "polynomial" else None
    if decoder is None:
        decoder = ri.MLP((m, int(rng.integers(3, 9)), n), kind)
    model = ri.NonlinearICA(decoder, decoder.init(rng), 10.0 ** rng.uniform(-3, 1))
    _, x = model.sample(200, rng)
    vae = ri.initial_vae(model, x, hidden=8, rng=rng)
    vae = vae.replace(phi=vae.phi + 0.1 * rng.standard_normal(len(vae.phi)))
    return vae, x[:1] + (x.std(axis=0) * rng.standard_normal(n) if seed % 5 == 0 else 0.0)
