"""The model in PyTorch, float64: a Sequential of Linear layers, torch.distributions, autograd.

Integrals are sums over a uniform grid in log space. The number of its points is the case's hint.
"""

# notation: N observations, n data, m latent, K nodes, L draws

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

torch.set_default_dtype(torch.float64)

ACTIVATIONS = {
    "identity": nn.Identity,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "softplus": lambda: nn.Softplus(threshold=40.0),  # beyond 20, the default, it is off by 2e-9
}


class Sin(nn.Module):
    """sin(a)."""

    def forward(self, a):
        """Return the value."""
        return torch.sin(a)


class Polynomial(nn.Module):
    """Σ_j c_dj z^α_j."""

    def __init__(self, exponents, coefficients):
        super().__init__()
        self.exponents = torch.tensor(exponents)
        self.coefficients = nn.Parameter(torch.tensor(coefficients))

    def forward(self, z):
        """Return the value."""
        return (z[..., None, :] ** self.exponents).prod(-1) @ self.coefficients.T


def build(description):
    """Return the module that a case describes."""
    if hasattr(description, "exponents"):
        return Polynomial(description.exponents, description.coefficients)
    modules = []
    for layer in description.layers:
        fan_out, fan_in = layer.weight.shape
        linear = nn.Linear(fan_in, fan_out)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(layer.weight))
            linear.bias.copy_(torch.tensor(layer.bias))
        if layer.activation == "leaky_relu":
            activation = nn.LeakyReLU(layer.slope)
        else:
            activation = Sin() if layer.activation == "sin" else ACTIVATIONS[layer.activation]()
        modules += [linear, activation]
    return nn.Sequential(*modules)


def log_given(decoder, sigma2, x, z):
    """log p(x_i | z_k), (N, K); z (K, m) or (N, K, m)."""
    likelihood = Independent(Normal(decoder(z), torch.sqrt(sigma2)), 1)
    return likelihood.log_prob(x[:, None, :])


def log_prior(z):
    """log p(z)."""
    return Normal(0.0, 1.0).log_prob(z).sum(-1)


def grid(case):
    """Return nodes (K, m) and the logarithm of their volume."""
    m, points, radius = case.model.latent_dim, case.hint["points_per_axis"], case.hint["radius"]
    axis = torch.linspace(-radius, radius, points)
    z = torch.cartesian_prod(*[axis] * m).reshape(-1, m)
    return z, m * math.log(2 * radius / (points - 1))


def parts(case):
    """Return decoder, σ² and data of a case."""
    sigma2 = torch.tensor(case.model.sigma2, requires_grad=True)
    return build(case.model.decoder), sigma2, torch.tensor(case.x) if case.x is not None else None


def log_evidence(case, decoder, sigma2, x):
    """log p(x_i) by a sum over the grid."""
    z, volume = grid(case)
    return torch.logsumexp(log_given(decoder, sigma2, x, z) + log_prior(z), 1) + volume


def with_gradient(value, decoder, sigma2, encoder=None):
    """Return a value and its gradient by autograd."""
    value.backward()
    answer = {"value": value.item(), "theta": flat(decoder), "sigma2": sigma2.grad.item()}
    return answer if encoder is None else {**answer, "phi": flat(encoder)}


def flat(module):
    """Return the gradients of a module's parameters in their order."""
    return torch.cat([p.grad.reshape(-1) for p in module.parameters()]).numpy()


def encoded(case, x):
    """Return q(z | x), its encoder, and the draws z (N, L, m) that the noise makes."""
    encoder = build(case.encoder)
    mu, log_s2 = encoder(x).chunk(2, dim=-1)
    q = Normal(mu, torch.exp(0.5 * log_s2))
    z = q.loc[:, None] + q.scale[:, None] * torch.tensor(case.noise).transpose(0, 1)
    return q, encoder, z


def elbos(case, decoder, sigma2, x):
    """Return ELBO(x_i) and the encoder."""
    q, encoder, z = encoded(case, x)
    prior = Normal(torch.zeros_like(q.loc), torch.ones_like(q.loc))
    return log_given(decoder, sigma2, x, z).mean(1) - kl_divergence(q, prior).sum(-1), encoder


class Torch:
    """The adapter: one function for each level."""

    def decoder(self, case):
        """Return g(z_k)."""
        return build(case.model.decoder)(torch.tensor(case.z)).detach().numpy()

    def decoder_gradient(self, case):
        """Return the gradient of Σ_k c_k · g(z_k)."""
        decoder, z = build(case.model.decoder), torch.tensor(case.z, requires_grad=True)
        (torch.tensor(case.cotangent) * decoder(z)).sum().backward()
        return {"theta": flat(decoder), "z": z.grad.numpy()}

    def log_joint(self, case):
        """Return log p(x_i, z_k)."""
        decoder, sigma2, x = parts(case)
        z = torch.tensor(case.z)
        return (log_given(decoder, sigma2, x, z) + log_prior(z)).detach().numpy()

    def monte_carlo(self, case):
        """Return log 1/K Σ_k p(x_i | z_k)."""
        decoder, sigma2, x = parts(case)
        z = torch.tensor(case.z)
        return (torch.logsumexp(log_given(decoder, sigma2, x, z), 1) - math.log(len(z))).detach().numpy()

    def log_marginal(self, case):
        """Return log p(x_i)."""
        with torch.no_grad():
            return log_evidence(case, *parts(case)).numpy()

    def gradient(self, case):
        """Return Σ_i log p(x_i) and its gradient."""
        decoder, sigma2, x = parts(case)
        return with_gradient(log_evidence(case, decoder, sigma2, x).sum(), decoder, sigma2)

    def density(self, case):
        """Return Σ_i p(x_i) and its gradient."""
        decoder, sigma2, x = parts(case)
        return with_gradient(log_evidence(case, decoder, sigma2, x).exp().sum(), decoder, sigma2)

    def posterior(self, case):
        """Return mean and covariance of p(z | x_i)."""
        decoder, sigma2, x = parts(case)
        z, _ = grid(case)
        with torch.no_grad():
            share = torch.softmax(log_given(decoder, sigma2, x, z) + log_prior(z), 1)
            mean = share @ z
            centred = z - mean[:, None]
            covariance = torch.einsum("ik,ikl,ikm->ilm", share, centred, centred)
        return {"mean": mean.numpy(), "covariance": covariance.numpy()}

    def elbo(self, case):
        """Return ELBO(x_i)."""
        return elbos(case, *parts(case))[0].detach().numpy()

    def elbo_gradient(self, case):
        """Return Σ_i ELBO(x_i) and its gradient."""
        decoder, sigma2, x = parts(case)
        values, encoder = elbos(case, decoder, sigma2, x)
        return with_gradient(values.sum(), decoder, sigma2, encoder)

    def iwae(self, case):
        """Return IWAE(x_i)."""
        decoder, sigma2, x = parts(case)
        q, _, z = encoded(case, x)
        log_q = Normal(q.loc[:, None], q.scale[:, None]).log_prob(z).sum(-1)
        log_w = log_given(decoder, sigma2, x, z) + log_prior(z) - log_q
        return (torch.logsumexp(log_w, 1) - math.log(log_w.shape[1])).detach().numpy()

    def optimum(self, case):
        """Return the best affine model, or the best σ² for a decoder."""
        return best_sigma2(case) if case.model is not None else best_affine(case)


def minimise(loss, parameters):
    """Run L-BFGS until it stops moving; return the loss."""
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=5000, tolerance_grad=1e-11, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(5):
        optimiser.step(closure)
    return loss().item()


def best_sigma2(case):
    """Maximise Σ_i log p(x_i) over log σ², the decoder fixed."""
    decoder, sigma2, x = parts(case)
    log_sigma2 = torch.log(sigma2).detach().requires_grad_()
    value = minimise(lambda: -log_evidence(case, decoder, torch.exp(log_sigma2), x).sum(), [log_sigma2])
    return {"value": -value, "sigma2": log_sigma2.exp().item()}


def best_affine(case):
    """Maximise the marginal likelihood of an affine decoder, N(b, W Wᵀ + σ² I), from a random start."""
    x = torch.tensor(case.x)
    n = x.shape[1]
    spread = x.std()
    generator = torch.Generator().manual_seed(0)
    W = (spread * torch.randn(n, case.latent_dim, generator=generator)).requires_grad_()
    b = x.mean(0).clone().requires_grad_()
    log_sigma2 = (2 * torch.log(spread / 2)).clone().requires_grad_()

    def covariance():
        return W @ W.T + torch.exp(log_sigma2) * torch.eye(n)

    def loss():
        return -torch.distributions.MultivariateNormal(b, covariance()).log_prob(x).sum()

    value = minimise(loss, [W, b, log_sigma2])
    with torch.no_grad():
        return {
            "value": -value,
            "sigma2": log_sigma2.exp().item(),
            "mean": b.numpy(),
            "covariance": np.asarray(covariance()),
        }
