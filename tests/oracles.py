"""Truth from elsewhere: the worked example with its known digits, and composite Gauss-Legendre panels."""

import json
from pathlib import Path

import autograd_model
import numpy as np

import refica as ri

# mathematics, section 7: W1, b1, W2, b2 and one observation
THETA = np.array([1.5, -2.0, 0.7, 0.3, 0.1, -0.5, 1.0, -0.5, 0.8, 0.4, 1.2, -0.9, 0.1, -0.2])
X = np.array([[0.5, -0.25]])
KINKS = -THETA[3:6] / THETA[0:3]

SIGMA2 = (1.0, 0.1, 0.01, 1e-3, 1e-4)
DIGITS = {
    "tanh": (
        -2.9083724698303578,
        -2.0110450891291042,
        -2.1610949994049498,
        -13.816159006209140,
        -140.70804658329380,
    ),
    "leaky relu": (
        -2.8162095361644760,
        -1.8986851157693194,
        -3.5712593692295845,
        -30.203339570370858,
        -307.86995377269158,
    ),
    "square": (
        -1.2917136232852654,
        -1.3227720643840694,
        -1.4113145545215114,
        -1.4181873407781088,
        -1.4188635213247739,
    ),
}


def worked_example(name, sigma2):
    """The model and the observation of a column of the table."""
    if name == "square":  # g(z) = z², x = 1
        return ri.NonlinearICA(ri.Polynomial(1, 1, 2), [0.0, 0.0, 1.0], sigma2), np.array([[1.0]])
    activation = "tanh" if name == "tanh" else ri.leaky_relu(0.1)
    return ri.NonlinearICA(ri.MLP((1, 3, 2), activation=activation), THETA, sigma2), X


def golden():
    """The proved cases of tests/data/golden_m1.json, each as (model, x, case).

    The numbers were enclosed by rigorous ball arithmetic (Arb's integrator) outside of this project's
    code; ``[value, radius]`` encloses the true number. The file is a verbatim copy, every digit kept.
    """
    text = (Path(__file__).parent / "data" / "golden_m1.json").read_text(encoding="utf-8")
    found = []
    for case in json.loads(text):
        *hidden, output = case["activations"]
        decoder = ri.MLP(case["sizes"], activation=hidden[0] if hidden else "tanh", output_activation=output)
        theta = np.concatenate([np.ravel(part) for layer in case["layers"] for part in layer.values()])
        found.append((ri.NonlinearICA(decoder, theta, case["sigma2"]), np.array([case["x"]]), case))
    return found


def panels(edges, order=20):
    """Nodes (K, 1) and Lebesgue log weights (K,): Gauss-Legendre on each of the given panels."""
    t, w = np.polynomial.legendre.leggauss(order)
    half = np.diff(edges)[:, None] / 2.0
    z = edges[:-1, None] + half * (t + 1.0)
    return z.reshape(-1, 1), np.log(half * w).ravel()


def panels_for(model, kinks=(), radius=30.0):
    """Panels on [-radius, radius], one for each two posterior widths 1/sqrt(1 + |J|²/σ²) met on the way
    and two for each unit, with a cut at each kink."""
    probe = np.linspace(-radius, radius, 4001)[:, None]
    still = np.zeros(model.decoder.n_params)
    J = np.linalg.norm(model.decoder.jvp(model.theta, probe, still, np.ones_like(probe)), axis=1)
    each = (2.0 + 0.5 * np.sqrt(1.0 + J**2 / model.sigma2)) * (2.0 * radius / 4000)
    passed = np.cumsum(each) - each[0]
    edges = np.interp(np.linspace(0.0, passed[-1], int(passed[-1]) + 2), passed, probe[:, 0])
    return panels(np.unique(np.concatenate([edges, kinks])))


def log_p_by_panels(model, x, kinks=(), radius=30.0):
    """log p(x_i), (N,), for m = 1, with no rule, no sum and no formula of refica's."""
    z, log_w = panels_for(model, kinks, radius)
    parts = [
        autograd_model.log_marginal(model.decoder, model.theta, model.sigma2, row[None], z, log_w)
        for row in x
    ]
    return np.concatenate(parts)


def kinks_of(model):
    """Where a relu net with one hidden layer and one latent has its kinks."""
    (W, b), *_ = model.decoder.unpack(model.theta)
    with np.errstate(divide="ignore"):
        kinks = -b / W[:, 0]
    return kinks[np.abs(kinks) < 30.0]
