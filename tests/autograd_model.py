"""The model a second time, in autograd.numpy: written from mathematics alone, so that it shares no
formula, no ordering and no branch with refica. Slow and plain on purpose.

Kinks are not its business: autograd takes the mean of both sides at a tie, refica the left one.
"""

# notation: N observations, n data, m latent, K nodes; x (N, n); z (K, m) shared or (N, K, m)

import itertools

import autograd.numpy as np
from autograd import grad, jacobian
from autograd.scipy.special import erfc, logsumexp


def activate(act, a):
    """The activation named by a refica activation, from its definition."""
    if act.name == "identity":
        return a
    if act.name == "tanh":
        return np.tanh(a)
    if act.name == "sigmoid":
        return np.exp(-np.logaddexp(0.0, -a))  # autograd's expit loses the tail of its derivative: s (1 - s)
    if act.name == "gelu":
        return 0.5 * a * erfc(-a / np.sqrt(2.0))  # 1 + erf would lose the left tail
    if act.name == "softplus":
        return np.logaddexp(0.0, a)
    if act.name == "sin":
        return np.sin(a)
    slope = 0.0 if act.name == "relu" else act.slope
    return np.where(a > 0.0, a, slope * a)


def monomials(m, degree):
    """Exponents by the definition: all of total degree at most ``degree``; graded, then z1 before z2."""
    every = itertools.product(range(degree + 1), repeat=m)
    return sorted((e for e in every if sum(e) <= degree), key=lambda e: (sum(e), [-i for i in e]))


def decode(decoder, theta, z):
    """g_θ(z) for z (..., m), (..., n); ``decoder`` is only read for its sizes and names."""
    if hasattr(decoder, "degree"):
        powers = [np.prod(z ** np.array(e), axis=-1) for e in monomials(decoder.latent_dim, decoder.degree)]
        coefficients = np.reshape(theta, (decoder.data_dim, len(powers)))
        return np.matmul(np.stack(powers, axis=-1), coefficients.T)
    h, position = z, 0
    hidden = [decoder.activation] * (len(decoder.sizes) - 2)
    for inputs, outputs, act in zip(
        decoder.sizes, decoder.sizes[1:], [*hidden, decoder.output_activation], strict=False
    ):
        weights = np.reshape(theta[position : position + inputs * outputs], (outputs, inputs))
        position += inputs * outputs
        bias = theta[position : position + outputs]
        position += outputs
        h = activate(act, np.matmul(h, weights.T) + bias)
    return h


def log_joint(decoder, theta, sigma2, x, z):
    """log N(x_i; g(z_k), σ² I) + log N(z_k; 0, I), (N, K)."""
    r = x[:, None, :] - decode(decoder, theta, z)
    log_x = -np.sum(r**2, axis=-1) / (2.0 * sigma2) - x.shape[1] / 2.0 * np.log(2.0 * np.pi * sigma2)
    log_z = -np.sum(z**2, axis=-1) / 2.0 - z.shape[-1] / 2.0 * np.log(2.0 * np.pi)
    return log_x + log_z


def log_marginal(decoder, theta, sigma2, x, z, log_weight):
    """log Σ_k exp(log_weight_k) p(x_i, z_k), (N,)."""
    return logsumexp(log_joint(decoder, theta, sigma2, x, z) + log_weight, axis=1)


def objective_gradient(model, x, z, log_weight, *, density):
    """Gradient in (θ, σ²) of Σ_i log p(x_i), or of Σ_i p(x_i)."""

    def objective(theta, sigma2):
        log_p = log_marginal(model.decoder, theta, sigma2, x, z, log_weight)
        return np.sum(np.exp(log_p) if density else log_p)

    return grad(objective, argnum=(0, 1))(np.array(model.theta), model.sigma2)


def decoder_gradient(decoder, theta, z, cotangent):
    """Gradient in (θ, z) of Σ_k c_k · g_θ(z_k)."""
    return grad(lambda t, u: np.sum(cotangent * decode(decoder, t, u)), argnum=(0, 1))(theta, z)


def linear_log_density(m, n, theta, sigma2, x):
    """log N(x_i; b, W Wᵀ + σ² I), (N,), the closed form of an affine decoder's marginal."""
    W, b = np.reshape(theta[: m * n], (n, m)), theta[m * n :]
    C = np.matmul(W, W.T) + sigma2 * np.eye(n)
    r = x - b
    quadratic = np.sum(r * np.linalg.solve(C, r.T).T, axis=1)
    return -0.5 * quadratic - 0.5 * np.linalg.slogdet(C)[1] - 0.5 * n * np.log(2.0 * np.pi)


def linear_scores(m, n, theta, sigma2, x):
    """Gradient of each log p(x_i) of an affine decoder, (N, p + 1), by the closed form."""
    by_theta = jacobian(lambda t: linear_log_density(m, n, t, sigma2, x))(theta)
    by_sigma2 = jacobian(lambda s: linear_log_density(m, n, theta, s, x))(sigma2)
    return np.concatenate([by_theta, by_sigma2[:, None]], axis=1)
