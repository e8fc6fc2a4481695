"""Truth for one to three latent dimensions, by other routes than `Reference` takes.

- `log_p_by_boxes`, brute force: Gauss-Legendre on upright boxes, cut until all is tame on each. Nothing of
  it is refica's: the decoder is that of autograd_model, there are no modes, no lattices, no bounds from
  layers. A box is dropped where the integrand, judged by corners and mid-points with a generous allowance,
  is exp(-DEPTH) of the largest value seen.
- `separable`: one-dimensional models side by side, their latents rotated: log p(x) is the sum of theirs.
- `straight`: an affine map dressed up as a polynomial of degree 2, which nobody recognises as affine.
- `ring`: g(z) = ‖z‖² for m = 2, whose posterior is a ridge bent into a circle, with a closed form.
"""

import itertools
import math

import autograd_model
import numpy as np
from scipy import special

import refica as ri

DEPTH = 50.0
"""What is exp(-50) of the peak is left out: with 1e6 boxes still below 1e-15."""

ALLOWANCE = 2.0
"""How many times farther than at the sampled points of a box g may move inside it."""

TAME = 1.5
"""A box is integrated where g moves by at most so many sigma from its centre, and it is at most 1 wide."""

STEEP = 8.0
"""... and the exponent varies by at most so much on it."""

ROWS = 2**16
"""Points evaluated at a time."""


def log_p_by_boxes(model, x, order=12):
    """log p(x) for one observation x (n,) and m <= 3."""
    m, n = model.latent_dim, model.data_dim
    constant = 0.5 * m * math.log(2 * math.pi) + 0.5 * n * math.log(2 * math.pi * model.sigma2)
    leaves, half = _leaves(model, x)
    t, w = np.polynomial.legendre.leggauss(order)
    t = np.array(list(itertools.product(t, repeat=m)))
    log_w = np.log([math.prod(each) for each in itertools.product(w, repeat=m)])
    parts = []
    for c, r in _batches(leaves, half, max(1, ROWS // len(t))):
        z = c[:, None, :] + r[:, None, :] * t
        F = _exponent(model, x, z.reshape(-1, m)).reshape(len(c), -1)
        parts.append(np.logaddexp.reduce(log_w - F + np.log(r).sum(axis=1)[:, None], axis=None))
    return float(np.logaddexp.reduce(parts)) - constant


def _leaves(model, x):
    """Centres and half-widths (B, m) of the boxes that matter."""
    m, sigma = model.latent_dim, math.sqrt(model.sigma2)
    offsets = np.array(list(itertools.product((0.0, -1.0, 1.0), repeat=m)))  # the centre comes first
    probe = {1: 4001, 2: 101, 3: 31}[m]
    mesh = np.stack(np.meshgrid(*[np.linspace(-8, 8, probe)] * m, indexing="ij"), axis=-1).reshape(-1, m)
    least = _exponent(model, x, mesh).min()
    R = math.sqrt(2 * (least + DEPTH + 10 * m))
    per_axis = math.ceil(2 * R / 0.5)
    axis = -R + 2 * R / per_axis * (np.arange(per_axis) + 0.5)
    c = np.stack(np.meshgrid(*[axis] * m, indexing="ij"), axis=-1).reshape(-1, m)
    r = np.full_like(c, R / per_axis)
    done = []
    while len(c):
        keep, tame, along, values = [], [], [], []
        for b, h in _batches(c, r, max(1, ROWS // len(offsets))):
            z = b[:, None, :] + h[:, None, :] * offsets
            g = autograd_model.decode(model.decoder, model.theta, z)
            move = np.linalg.norm(g - g[:, :1], axis=-1) / sigma
            distance = np.linalg.norm(x - g[:, 0], axis=-1) / sigma
            nearest = np.maximum(np.abs(b) - h, 0.0)
            least_F = 0.5 * np.maximum(distance - ALLOWANCE * move.max(axis=1), 0.0) ** 2
            least_F += 0.5 * (nearest**2).sum(axis=1)
            keep.append(least_F)
            F = 0.5 * ((x - g) ** 2).sum(axis=-1) / model.sigma2 + 0.5 * (z**2).sum(axis=-1)
            steep = np.ptp(F, axis=1) > STEEP
            tame.append((move.max(axis=1) <= TAME) & (h.max(axis=1) <= 0.5) & ~steep)
            single = np.abs(offsets).sum(axis=1) == 1
            moved = np.array([move[:, single & (offsets[:, a] != 0)].max(axis=1) for a in range(m)])
            along.append((moved.T + h) * (h > 1e-12))
            values.append(0.5 * distance**2 + 0.5 * (b**2).sum(axis=1))
        keep, tame, along, values = map(np.concatenate, (keep, tame, along, values))
        least = min(least, values.min())
        matters = keep <= least + DEPTH
        done.append((c[matters & tame], r[matters & tame]))
        cut = matters & ~tame
        c, r, a = c[cut], r[cut].copy(), along[cut].argmax(axis=1)
        i = np.arange(len(c))
        r[i, a] *= 0.5
        shift = np.zeros_like(c)
        shift[i, a] = r[i, a]
        c, r = np.concatenate([c - shift, c + shift]), np.concatenate([r, r])
    return (np.concatenate(part) for part in zip(*done, strict=True))


def _exponent(model, x, z):
    """‖x - g(z)‖²/2σ² + ‖z‖²/2 for z (K, m), (K,)."""
    r = x - autograd_model.decode(model.decoder, model.theta, z)
    return 0.5 * (r**2).sum(axis=1) / model.sigma2 + 0.5 * (z**2).sum(axis=1)


def _batches(c, r, size):
    for start in range(0, len(c), size):
        yield c[start : start + size], r[start : start + size]


def straight(m, n, sigma2, rng, rank):
    """A model that is affine in truth, with a Jacobian of the given rank, and the same as an affine MLP."""
    W = rng.standard_normal((n, m))
    U, singular, V = np.linalg.svd(W, full_matrices=False)
    W = (U * np.where(np.arange(len(singular)) < rank, singular, 0.0)) @ V
    b = rng.standard_normal(n)
    decoder = ri.Polynomial(m, n, 2)
    coefficients = np.zeros((n, len(decoder.exponents)))
    coefficients[:, 0], coefficients[:, 1 : 1 + m] = b, W
    affine = ri.NonlinearICA(ri.MLP((m, n)), np.concatenate([W.ravel(), b]), sigma2)
    return ri.NonlinearICA(decoder, coefficients.ravel(), sigma2), affine


def separable(activation, m, sigma2, rng):
    """A model with g(z) = (g_1(y_1), .., g_m(y_m)), y = R z, R a rotation, and the models of the g_j."""
    h = 4
    parts = [ri.MLP((1, h, 1), activation) for _ in range(m)]
    thetas = [part.init(rng) for part in parts]
    decoder = ri.MLP((m, m * h, m), activation)
    theta = np.zeros(decoder.n_params)
    (W1, b1), (W2, b2) = decoder.unpack(theta)
    R = np.linalg.qr(rng.standard_normal((m, m)))[0]
    for j, (part, own) in enumerate(zip(parts, thetas, strict=True)):
        (V1, c1), (V2, c2) = part.unpack(own)
        rows = slice(j * h, (j + 1) * h)
        W1[rows], b1[rows] = V1 @ R[j : j + 1], c1
        W2[j, rows], b2[j] = V2[0], c2[0]
    singles = [ri.NonlinearICA(part, own, sigma2) for part, own in zip(parts, thetas, strict=True)]
    return ri.NonlinearICA(decoder, theta, sigma2), singles


def ring(sigma2):
    """The model x = z1² + z2² + noise."""
    return ri.NonlinearICA(ri.Polynomial(2, 1, 2), [0.0, 0.0, 0.0, 1.0, 0.0, 1.0], sigma2)


def ring_log_p(x, sigma2):
    """‖Z‖² has density exp(-s/2)/2: p(x) = exp(-x/2 + σ²/8) Φ((x - σ²/2)/σ) / 2."""
    return -math.log(2.0) - x / 2.0 + sigma2 / 8.0 + special.log_ndtr((x - sigma2 / 2.0) / math.sqrt(sigma2))
