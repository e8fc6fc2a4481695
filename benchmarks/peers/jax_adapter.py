"""The model in JAX, float64: pure functions of a list of (weight, bias), with jit and grad.

Integrals are sums over a uniform grid in log space. The number of its points is the case's hint.
"""

# notation: N observations, n data, m latent, K nodes, L draws

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.scipy.stats import multivariate_normal, norm
from scipy import optimize

jax.config.update("jax_enable_x64", True)

ACTIVATIONS = {
    "identity": lambda a: a,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),  # the default is the approximation by a tanh
    "softplus": jax.nn.softplus,
    "sin": jnp.sin,
}


def activation(layer):
    """Return the function that a layer names."""
    if layer.activation == "leaky_relu":
        return partial(jax.nn.leaky_relu, negative_slope=layer.slope)
    return ACTIVATIONS[layer.activation]


def unpack(description):
    """Return the parameters of a map as a pytree, and the function apply(parameters, z)."""
    if hasattr(description, "exponents"):
        exponents = np.array(description.exponents)

        def power(coefficients, z):
            return jnp.prod(z[..., None, :] ** exponents, axis=-1) @ coefficients.T

        return jnp.array(description.coefficients), power
    functions = [activation(layer) for layer in description.layers]

    def network(parameters, z):
        h = z
        for (W, b), f in zip(parameters, functions, strict=True):
            h = f(h @ W.T + b)
        return h

    return [(jnp.array(layer.weight), jnp.array(layer.bias)) for layer in description.layers], network


def flat(tree):
    """Return a pytree of gradients as one vector, in the order of the parameters."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree_util.tree_leaves(tree)])


def log_given(apply, theta, sigma2, x, z):
    """log p(x_i | z_k), (N, K); z (K, m) or (N, K, m)."""
    return norm.logpdf(x[:, None, :], apply(theta, z), jnp.sqrt(sigma2)).sum(-1)


def log_prior(z):
    """log p(z)."""
    return norm.logpdf(z).sum(-1)


def grid(case):
    """Return nodes (K, m) and the logarithm of their volume."""
    m, points, radius = case.model.latent_dim, case.hint["points_per_axis"], case.hint["radius"]
    axis = jnp.linspace(-radius, radius, points)
    z = jnp.stack(jnp.meshgrid(*[axis] * m, indexing="ij"), axis=-1).reshape(-1, m)
    return z, m * jnp.log(2 * radius / (points - 1))


def log_evidence(apply, z, volume, x):
    """Return log p(x_i) as a function of (θ, σ²), by a sum over the grid."""

    def log_p(theta, sigma2):
        return logsumexp(log_given(apply, theta, sigma2, x, z) + log_prior(z), axis=1) + volume

    return log_p


def draws(encode, phi, x, noise):
    """Return μ, log s² and z = μ + s ε, (N, L, m)."""
    mu, log_s2 = jnp.split(encode(phi, x), 2, axis=-1)
    return mu, log_s2, mu[:, None] + jnp.exp(0.5 * log_s2)[:, None] * noise.swapaxes(0, 1)


def elbos(apply, encode, x, noise, theta, sigma2, phi):
    """Return ELBO(x_i)."""
    mu, log_s2, z = draws(encode, phi, x, noise)
    kl = 0.5 * jnp.sum(mu**2 + jnp.exp(log_s2) - 1.0 - log_s2, axis=-1)
    return log_given(apply, theta, sigma2, x, z).mean(axis=1) - kl


class Jax:
    """The adapter: one function for each level."""

    def decoder(self, case):
        """Return g(z_k)."""
        theta, apply = unpack(case.model.decoder)
        return np.asarray(jax.jit(apply)(theta, case.z))

    def decoder_gradient(self, case):
        """Return the gradient of Σ_k c_k · g(z_k)."""
        theta, apply = unpack(case.model.decoder)
        by_theta, by_z = jax.grad(lambda t, z: jnp.sum(case.cotangent * apply(t, z)), argnums=(0, 1))(
            theta, jnp.array(case.z)
        )
        return {"theta": flat(by_theta), "z": np.asarray(by_z)}

    def log_joint(self, case):
        """Return log p(x_i, z_k)."""
        theta, apply = unpack(case.model.decoder)
        z = jnp.array(case.z)
        return np.asarray(log_given(apply, theta, case.model.sigma2, case.x, z) + log_prior(z))

    def monte_carlo(self, case):
        """Return log 1/K Σ_k p(x_i | z_k)."""
        theta, apply = unpack(case.model.decoder)
        terms = log_given(apply, theta, case.model.sigma2, case.x, jnp.array(case.z))
        return np.asarray(logsumexp(terms, axis=1) - jnp.log(terms.shape[1]))

    def log_marginal(self, case):
        """Return log p(x_i)."""
        theta, apply = unpack(case.model.decoder)
        return np.asarray(jax.jit(log_evidence(apply, *grid(case), case.x))(theta, case.model.sigma2))

    def gradient(self, case):
        """Return Σ_i log p(x_i) and its gradient."""
        return self._value_and_gradient(case, lambda log_p: log_p)

    def density(self, case):
        """Return Σ_i p(x_i) and its gradient."""
        return self._value_and_gradient(case, jnp.exp)

    def _value_and_gradient(self, case, of):
        theta, apply = unpack(case.model.decoder)
        log_p = log_evidence(apply, *grid(case), case.x)
        total = jax.jit(jax.value_and_grad(lambda t, s: of(log_p(t, s)).sum(), argnums=(0, 1)))
        value, (by_theta, by_sigma2) = total(theta, case.model.sigma2)
        return {"value": float(value), "theta": flat(by_theta), "sigma2": float(by_sigma2)}

    def posterior(self, case):
        """Return mean and covariance of p(z | x_i)."""
        theta, apply = unpack(case.model.decoder)
        z, _ = grid(case)
        share = jax.nn.softmax(log_given(apply, theta, case.model.sigma2, case.x, z) + log_prior(z), axis=1)
        mean = share @ z
        centred = z - mean[:, None]
        covariance = jnp.einsum("ik,ikl,ikm->ilm", share, centred, centred)
        return {"mean": np.asarray(mean), "covariance": np.asarray(covariance)}

    def elbo(self, case):
        """Return ELBO(x_i)."""
        theta, apply = unpack(case.model.decoder)
        phi, encode = unpack(case.encoder)
        return np.asarray(elbos(apply, encode, case.x, case.noise, theta, case.model.sigma2, phi))

    def elbo_gradient(self, case):
        """Return Σ_i ELBO(x_i) and its gradient."""
        theta, apply = unpack(case.model.decoder)
        phi, encode = unpack(case.encoder)

        def total(*parameters):
            return elbos(apply, encode, case.x, case.noise, *parameters).sum()

        value, by = jax.value_and_grad(total, argnums=(0, 1, 2))(theta, case.model.sigma2, phi)
        return {"value": float(value), "theta": flat(by[0]), "sigma2": float(by[1]), "phi": flat(by[2])}

    def iwae(self, case):
        """Return IWAE(x_i)."""
        theta, apply = unpack(case.model.decoder)
        phi, encode = unpack(case.encoder)
        mu, log_s2, z = draws(encode, phi, case.x, case.noise)
        log_q = norm.logpdf(z, mu[:, None], jnp.exp(0.5 * log_s2)[:, None]).sum(-1)
        log_w = log_given(apply, theta, case.model.sigma2, case.x, z) + log_prior(z) - log_q
        return np.asarray(logsumexp(log_w, axis=1) - jnp.log(log_w.shape[1]))

    def optimum(self, case):
        """Return the best affine model, or the best σ² for a decoder."""
        return best_sigma2(case) if case.model is not None else best_affine(case)


def minimise(loss, start):
    """Minimise by BFGS with JAX's gradients."""
    both = jax.jit(jax.value_and_grad(loss))

    def numpy_both(u):
        value, by = both(u)
        return float(value), np.asarray(by)

    return optimize.minimize(numpy_both, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x


def best_sigma2(case):
    """Maximise Σ_i log p(x_i) over log σ², the decoder fixed."""
    theta, apply = unpack(case.model.decoder)
    log_p = log_evidence(apply, *grid(case), case.x)

    def loss(u):
        return -log_p(theta, jnp.exp(u[0])).sum()

    best = minimise(loss, np.log([case.model.sigma2]))
    return {"value": -float(loss(best)), "sigma2": float(np.exp(best[0]))}


def best_affine(case):
    """Maximise the marginal likelihood of an affine decoder, N(b, W Wᵀ + σ² I), from a random start."""
    x, m = jnp.array(case.x), case.latent_dim
    n = x.shape[1]

    def parts(u):
        W, b = u[: n * m].reshape(n, m), u[n * m : n * m + n]
        return b, W @ W.T + jnp.exp(u[-1]) * jnp.eye(n), jnp.exp(u[-1])

    def loss(u):
        b, C, _ = parts(u)
        return -multivariate_normal.logpdf(x, b, C).sum()

    spread = float(x.std())
    W = spread * np.random.default_rng(0).standard_normal(n * m)
    best = minimise(loss, np.concatenate([W, x.mean(axis=0), [2 * np.log(spread / 2)]]))
    b, C, sigma2 = parts(best)
    return {
        "value": -float(loss(best)),
        "sigma2": float(sigma2),
        "mean": np.asarray(b),
        "covariance": np.asarray(C),
    }
