"""The truth about log p(x), from ball arithmetic: an interval that certainly holds it (Arb, by python-flint).

One latent dimension is integrated by Arb's own adaptive integrator, whose result is a ball with the error
in it; kinks are cut out first. Two and three dimensions are made of such integrals: where the outputs fall
into m groups, each of which sees one coordinate of the latent space, p(x) is the product of the groups' own.
Rotating the latent space and the outputs then makes a dense decoder of that. The rotations have integer
columns of integer length and all numbers few bits, so that the floats of the model are exactly those meant.

Nothing is shared with `refica` but the layout of theta.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import flint
import numpy as np
from flint import acb, acb_mat, arb, arb_mat
from scipy import ndimage, optimize

import refica as ri
from refica.activations import as_activation

PRECISION = 90  # bits, beside those that the largest exponent takes
TOLERANCE = arb(2) ** -56  # of an integral, relative
EVALUATIONS = 2 * 10**5  # of an integrand, before Arb gives up: an infinite ball, which decides nothing
BITS = 18  # of every weight, so that small integers times it, and sums of such, are exact

# Orthogonal columns of integers, all of the same integer length.
ROTATIONS = {
    1: (np.array([[1.0]]), 1.0),
    2: (np.array([[3.0, -4.0], [4.0, 3.0]]), 5.0),
    3: (np.array([[2.0, 3.0, 6.0], [3.0, -6.0, 2.0], [6.0, 2.0, -3.0]]), 7.0),
}

ROUNDING_SLACK = (
    *(
        f"refica.{module}.U"
        for module in ("certified", "bounds.enclosure", "bounds.layers", "bounds.brackets")
    ),
    "refica.bounds.taylor.U",
    "refica.bounds.layers.SLOPE",
    "refica.bounds.brackets.WEIGHT",
    "refica.certified.SUM",
)  # every constant that stands for rounding


@contextmanager
def without_rounding_slack() -> Iterator[None]:
    """The bounds as they would be, were floats exact."""
    with ExitStack() as stack:
        for name in ROUNDING_SLACK:
            stack.enter_context(mock.patch(name, 0.0))
        yield


class Line(NamedTuple):
    """A decoder of one latent: layers (W, b, activation name), or coefficients (n, degree + 1)."""

    layers: list[tuple[Any, Any, str]]
    coefficients: Any = None


class Case(NamedTuple):
    """A model, one observation (n,), what is special about it, and what computes log p(x) as an arb."""

    model: ri.NonlinearICA
    x: np.ndarray
    kind: str
    log_p: Callable[[], Any]


def contains(lower: float, upper: float, truth: Any) -> bool:
    """Whether the whole ball lies in [lower, upper]."""
    return bool(arb(float(lower)) <= truth) and bool(truth <= arb(float(upper)))


def is_sharp(truth: Any) -> bool:
    """Whether the ball is far smaller than any rounding slack, so that it can judge bounds of doubles."""
    return bool(truth.is_finite()) and float(truth.rad()) < 1e-15 * (1.0 + abs(float(truth.mid())))


def log_p_of_line(line: Line, x: np.ndarray, sigma2: float, evaluations: int = EVALUATIONS) -> Any:
    """log p(x) for one latent dimension."""
    shift, R = _peak_and_radius(line, x, sigma2)
    flint.ctx.prec = PRECISION + math.frexp(1.0 + abs(shift))[1]
    if _is_piecewise_affine(line):
        flint.ctx.prec *= 2  # differences of erfc on narrow pieces cancel
        total = sum((_affine_piece(piece, x, sigma2, shift) for piece in _pieces(line, R)), arb(0))
    else:
        total = acb.integral(
            lambda z, analytic: _integrand(line, z, analytic, x, sigma2, shift),
            -R, R, rel_tol=TOLERANCE, abs_tol=TOLERANCE / 2**20, eval_limit=evaluations,
        ).real  # fmt: skip
    tail = (arb(-0.5) * R * R + shift).exp()  # 2 Φ(-R) sqrt(2π) < 2 exp(-R²/2) / R
    total += arb(tail / 2, tail / 2)
    return total.log() - shift - (len(x) * (2 * arb.pi() * arb(sigma2)).log() + (2 * arb.pi()).log()) / 2


def _is_piecewise_affine(line: Line) -> bool:
    return line.coefficients is None and all("relu" in name or name == "identity" for *_, name in line.layers)


def _affine_piece(piece: tuple[Any, Any, Any], x: np.ndarray, sigma2: float, shift: float) -> Any:
    """∫ exp(shift - ‖x - A z - B‖²/2σ² - z²/2) dz from left to right, a difference of erfc."""
    left, right, units = piece
    s = arb(sigma2)
    P = 1 + sum((A * A for A, _ in units), arb(0)) / s
    mean = sum((A * (arb(float(x_d)) - B) for x_d, (A, B) in zip(x, units, strict=True)), arb(0)) / s / P
    squared = sum(((arb(float(x_d)) - B) ** 2 for x_d, (_, B) in zip(x, units, strict=True)), arb(0))
    a, b = ((end - mean) * (P / 2).sqrt() for end in (left, right))
    if a + b < 0:  # both ends on the side where erfc is small
        a, b = -b, -a
    mass = a.erfc() - b.erfc()
    return (arb.pi() / (2 * P)).sqrt() * (shift + (P * mean * mean - squared / s) / 2).exp() * mass


def _integrand(line: Line, z: Any, analytic: bool, x: np.ndarray, sigma2: float, shift: float) -> Any:
    squared = acb(0)
    for x_d, g_d in zip(x, _decode(line, z, analytic), strict=True):
        squared += (arb(float(x_d)) - g_d) ** 2
    return (shift - squared / (2 * arb(sigma2)) - z * z / 2).exp()


def _decode(line: Line, z: Any, analytic: bool) -> list:
    if line.coefficients is not None:
        return [sum((arb(float(c)) * z**k for k, c in enumerate(row)), acb(0)) for row in line.coefficients]
    h = [z]
    for W, b, name in line.layers:
        a = acb_mat(W.tolist()) * acb_mat([[v] for v in h]) + acb_mat([[b_u] for b_u in b.tolist()])
        h = [_activate(name, a[u, 0], analytic) for u in range(len(b))]
    return h


def _activate(name: str, a: Any, analytic: bool) -> Any:
    if name == "identity":
        return a
    if name == "tanh":
        return a.tanh()
    if name == "sigmoid":
        return 1 / (1 + (-a).exp())
    if name == "softplus":
        return (1 + a.exp()).log(analytic=analytic)
    if name == "sin":
        return a.sin()
    if name == "gelu":
        return a * (1 + (a / arb(2).sqrt()).erf()) / 2
    raise ValueError(name)


def _slope(name: str) -> float:
    return {"relu": 0.0, "leaky_relu": 0.01}.get(name) or float(name.partition("(")[2].rstrip(")") or 0.0)


def _pieces(line: Line, R: float) -> list[tuple[Any, Any, Any]]:
    """The intervals of [-R, R] between kinks: left, right, and slope and intercept of each output there."""
    pieces = [(arb(-R), arb(R), [(arb(1), arb(0))])]
    for W, b, name in line.layers:
        cut = []
        for left, right, units in pieces:
            A = [
                sum((arb(float(w)) * unit[0] for w, unit in zip(row, units, strict=True)), arb(0))
                for row in W
            ]
            B = [
                sum((arb(float(w)) * unit[1] for w, unit in zip(row, units, strict=True)), arb(float(b_u)))
                for row, b_u in zip(W, b, strict=True)
            ]
            kinks = (
                [] if name == "identity" else [-B_u / A_u for A_u, B_u in zip(A, B, strict=True) if A_u != 0]
            )
            inside = sorted((t for t in kinks if t > left and t < right), key=lambda t: float(t.mid()))
            for start, end in itertools.pairwise([left, *inside, right]):
                middle = (start + end) / 2
                slope = [
                    arb(1) if name == "identity" or A_u * middle + B_u > 0 else arb(_slope(name))
                    for A_u, B_u in zip(A, B, strict=True)
                ]
                there = [(s * A_u, s * B_u) for s, A_u, B_u in zip(slope, A, B, strict=True)]
                cut.append((start, end, there))
        pieces = cut
    return pieces


def _peak_and_radius(line: Line, x: np.ndarray, sigma2: float) -> tuple[float, float]:
    """A shift that brings the integrand's peak near 1, and R such that the rest is below exp(-60)."""
    z = np.concatenate([np.linspace(-12, 12, 20_001), np.linspace(-4000, 4000, 20_001)])
    F = -0.5 * (((_floats(line, z) - x[:, None]) ** 2).sum(axis=0) / sigma2 + z**2)
    peak = float(F.max())
    return -peak, math.sqrt(2.0 * (60.0 - peak))


def _floats(line: Line, z: np.ndarray) -> np.ndarray:
    """g at many z, (n, K), roughly."""
    if line.coefficients is not None:
        return np.stack([np.polyval(row[::-1], z) for row in line.coefficients])
    h = z[None]
    for W, b, name in line.layers:
        h = as_activation("name", name)(np.asarray(W) @ h + np.asarray(b)[:, None])
    return h


def few_bits(number: Any) -> Any:
    """The number rounded to BITS bits."""
    mantissa, power = np.frexp(number)
    return np.ldexp(np.round(np.ldexp(mantissa, BITS)), power - BITS)


def assemble(lines: list[Line], xs: list[np.ndarray], sigma2: float, mix: bool) -> tuple[Any, np.ndarray]:
    """The model of m lines in a rotated latent space, and its observation (n,).

    Line i sees t_i = u_i·z, u_i column i of the rotation over its length L: the weights a of its first
    layer become a u_iᵀ = (a / L) (integer column)ᵀ, so a is given as L times a number of few bits. With
    ``mix`` the outputs (as many as latents) are turned by L times the rotation too, and σ² is L² as large.
    """
    m = len(lines)
    columns, L = ROTATIONS[m]
    x, turn, scale = np.concatenate(xs), np.eye(sum(map(len, xs))), 1.0
    if mix:
        turn, scale = columns, L * L
    if lines[0].coefficients is not None:
        decoder, theta = _assemble_polynomial(lines, turn)
    else:
        decoder, theta = _assemble_mlp(lines, turn)
    return ri.NonlinearICA(decoder, theta, sigma2 * scale), turn @ x


def _assemble_mlp(lines: list[Line], turn: np.ndarray) -> tuple[Any, np.ndarray]:
    columns, L = ROTATIONS[len(lines)]
    theta, sizes = [], [len(lines)]
    depth = len(lines[0].layers)
    for k in range(depth):
        blocks = [np.asarray(line.layers[k][0]) for line in lines]
        b = np.concatenate([line.layers[k][1] for line in lines])
        if k == 0:
            W = np.concatenate([block / L * column for block, column in zip(blocks, columns.T, strict=True)])
        else:
            W = np.zeros((len(b), sum(block.shape[1] for block in blocks)))
            row = column = 0
            for block in blocks:
                W[row : row + block.shape[0], column : column + block.shape[1]] = block
                row, column = row + block.shape[0], column + block.shape[1]
        if k == depth - 1:
            W, b = turn @ W, turn @ b
        sizes.append(len(b))
        theta += [W.ravel(), b]
    names = [name for *_, name in lines[0].layers]
    return ri.MLP(sizes, names[0], names[-1]), np.concatenate(theta)


def _assemble_polynomial(lines: list[Line], turn: np.ndarray) -> tuple[Any, np.ndarray]:
    """Σ_k c_k (L t)^k with L t = column·z, expanded by the multinomial theorem; c_k is given times L^k."""
    m, degree = len(lines), len(lines[0].coefficients[0]) - 1
    columns, L = ROTATIONS[m]
    n = sum(len(line.coefficients) for line in lines)
    decoder = ri.Polynomial(m, n, degree)
    C = np.zeros((n, len(decoder.exponents)))
    for j, alpha in enumerate(decoder.exponents):
        k = sum(alpha)
        ways = math.factorial(k) // math.prod(map(math.factorial, alpha))
        row = 0
        for i, line in enumerate(lines):
            there = slice(row, row + len(line.coefficients))
            C[there, j] = line.coefficients[:, k] / L**k * ways * np.prod(columns[:, i] ** np.array(alpha))
            row = there.stop
    return decoder, (turn @ C).ravel()


def random_case(rng: np.random.Generator, m: int, kind: str, activation: str) -> Case:
    """A random decoder of m lines with σ² in 1e-6 to 10, and one observation.

    ``kind``: "model" (x drawn from it), "outlier" (moved away by .3 to 30, to 10 for m > 1), "dead" (units
    that see nothing, or that nothing sees), "large" (first weights 5 to 20 times larger).
    """
    _, L = ROTATIONS[m]
    sigma2 = float(few_bits(10.0 ** rng.uniform(-6, 1)))
    mix = m > 1 and rng.random() < 0.5
    depth, degree = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    # Outputs that are turned are linear in the last layer; of the others a quarter is bent.
    last = activation if not mix and rng.random() < 0.25 else "identity"
    lines, xs = [], []
    for _ in range(m):
        n = 1 if mix else int(rng.integers(1, 4 if m == 1 else 3))
        line = _random_line(rng, kind, activation, last, n, depth, degree, L)
        x = _floats(line, rng.standard_normal(1))[:, 0] + math.sqrt(sigma2) * rng.standard_normal(n)
        if kind == "outlier":
            x = x + rng.standard_normal(n) * 10 ** rng.uniform(-0.5, 1.5 if m == 1 else 1.0)
        lines.append(line)
        xs.append(few_bits(x))
    model, x = assemble(lines, xs, sigma2, mix)

    def log_p() -> Any:
        truth = sum((log_p_of_line(*each, sigma2) for each in zip(lines, xs, strict=True)), arb(0))
        flint.ctx.prec = 2 * PRECISION
        return truth - (len(x) * arb(L).log() if mix else 0)

    return Case(model, x, kind, log_p)


def _random_line(
    rng: np.random.Generator, kind: str, activation: str, last: str, n: int, depth: int, degree: int, L: float
) -> Line:
    large = rng.uniform(5, 20) if kind == "large" else 1.0
    if activation == "polynomial":
        scale = [large ** (k > 0) / math.sqrt(math.factorial(k)) for k in range(degree + 1)]
        C = few_bits(rng.standard_normal((n, degree + 1)) * scale / L ** np.arange(degree + 1))
        return Line([], C * L ** np.arange(degree + 1))
    gain = as_activation("activation", activation).gain
    sizes = [1, *(int(rng.integers(1, 9)) for _ in range(depth)), n]
    layers = []
    for k, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        W = few_bits(rng.standard_normal((fan_out, fan_in)) * gain / math.sqrt(fan_in))
        b = few_bits(rng.standard_normal(fan_out) * (1.0 if k < depth else 0.1))
        if k == 0:
            W = few_bits(W * large / L) * L
        if kind == "dead":
            if k < depth:  # sees nothing
                W[0], b[0] = 0.0, rng.choice([0.0, -1.0, 0.5])
            if k > 0 and fan_in > 1:  # nothing sees it
                W[:, 1] = 0.0
        layers.append((W, b, activation if k < depth else last))
    return Line(layers)


# ---------------------------------------------------------- dense smooth decoders, m = 2 (or 3, slowly)

LEVELS = 70.0  # nats below the peak, where the trapezoidal sum ends
STEPS = (0.7, 0.5, 0.35, 0.25, 0.18, 0.13, 0.09)  # of the sum, in standard deviations of the mode
POINTS = 50_000  # of a sum: beyond, the case is left undecided


def random_dense_case(rng: np.random.Generator, m: int, kind: str, activation: str) -> Case:
    """A random smooth decoder that does not fall into lines, σ² in 1e-6 to 10, and one observation.

    Its weights are any floats. The truth is not proved: see `log_p_by_trapezoid`.
    """
    sigma2 = 10.0 ** rng.uniform(-6, 1)
    n = int(rng.integers(m, m + 3))
    if activation == "polynomial":
        decoder: Any = ri.Polynomial(m, n, int(rng.integers(1, 4)))
        theta = decoder.init(rng)
    else:
        hidden = [int(rng.integers(3, 9)) for _ in range(int(rng.integers(1, 3)))]
        decoder = ri.MLP((m, *hidden, n), activation, activation if rng.random() < 0.25 else "identity")
        theta = decoder.init(rng)
        W, b = next(decoder.unpack(theta))  # views
        if kind == "dead":
            W[0], b[0] = 0.0, rng.choice([0.0, -1.0, 0.5])
        W *= rng.uniform(2, 5) if kind == "large" else 1.0
    model = ri.NonlinearICA(decoder, theta, sigma2)
    x = model.sample(1, rng)[1][0]
    if kind == "outlier":
        x = x + rng.standard_normal(n) * 10 ** rng.uniform(-0.5, 0.5)
    return Case(model, x, kind, lambda: log_p_by_trapezoid(model, x))


def log_p_by_trapezoid(model: ri.NonlinearICA, x: np.ndarray) -> Any:
    """log p(x) of a smooth decoder by two trapezoidal sums in ball arithmetic, and how far they differ.

    The sums run over lattices c + L t h, t integer. The logarithm of their error falls as 1/h, or 1/h² where
    the integrand is entire, so the finer of two steps is right to 1.4 times the digits in which they agree,
    or twice. Points enter from the modes outwards, as far as the exponent is within LEVELS of its peak. If
    no two successive steps agree to 1e-16 the ball is infinite.
    """
    flint.ctx.prec = 2 * PRECISION
    modes, L = _modes_and_scale(model, x)
    before = None
    for h in STEPS:
        t = _active(model, x, modes, L * h)
        if t is None:
            break
        now = _sum_in_arb(model, x, modes[0], L, h, t)
        if before is not None and abs(float((now - before).mid())) < 1e-16 * (1.0 + abs(float(now.mid()))):
            return now + arb(0, abs(float((now - before).mid())) + 1e-25)
        before = now
    return arb(0, math.inf)


def _exponent(model: ri.NonlinearICA, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """-‖x - g(z)‖²/2σ² - ‖z‖²/2 in floats, (K,)."""
    residual = x - model.decoder(model.theta, z)
    return -0.5 * ((residual**2).sum(axis=1) / model.sigma2 + (z**2).sum(axis=1))


def _modes_and_scale(model: ri.NonlinearICA, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The modes that matter, best first, (·, m), and L with L Lᵀ = (JᵀJ/σ² + I)⁻¹ at the best."""
    m = model.latent_dim
    per_axis = {2: 201, 3: 41}[m]
    axis = np.linspace(-10, 10, per_axis)
    z = np.stack(np.meshgrid(*[axis] * m, indexing="ij"), axis=-1).reshape(-1, m)
    F = _exponent(model, x, z).reshape((per_axis,) * m)
    highest = ndimage.maximum_filter(F, size=3) == F
    starts = z[highest.ravel()][np.argsort(-F[highest])][:40]
    found = []
    for start in starts:
        for scale in (1.0, 1e-3):  # from where the first search ends, on another scale
            best = optimize.minimize(
                lambda t, start=start, scale=scale: -_exponent(model, x, (start + scale * t)[None])[0],
                np.zeros(m), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-6, "maxiter": 2000},
            )  # fmt: skip
            start = start + scale * best.x
        found.append((best.fun, start))
    found.sort(key=lambda each: each[0])
    modes = np.array([mode for value, mode in found if value < found[0][0] + LEVELS])
    J = (
        model.decoder(model.theta, modes[0] + 1e-5 * np.eye(m))
        - model.decoder(model.theta, modes[0] - 1e-5 * np.eye(m))
    ) / 2e-5
    return modes, np.linalg.cholesky(np.linalg.inv(J @ J.T / model.sigma2 + np.eye(m)))


def _active(model: ri.NonlinearICA, x: np.ndarray, modes: np.ndarray, step: np.ndarray) -> Any:
    """The t (K, m) of lattice points modes[0] + step t joined to a mode above the level, or None."""
    m = modes.shape[1]
    around = np.array(list(itertools.product([-1, 0, 1], repeat=m)))
    floor = _exponent(model, x, modes).max() - LEVELS
    front = np.rint(np.linalg.solve(step, (modes - modes[0]).T).T).astype(int)
    front = np.unique((front[:, None] + around).reshape(-1, m), axis=0)
    active: set[tuple[int, ...]] = set()
    while len(front) and len(active) <= POINTS:
        front = front[_exponent(model, x, modes[0] + front @ step.T) > floor]
        active.update(map(tuple, front))
        front = {tuple(t) for t in (front[:, None] + around).reshape(-1, m)} - active
        front = np.array(sorted(front)).reshape(-1, m)
    return np.array(sorted(active)) if len(active) <= POINTS else None


def _sum_in_arb(
    model: ri.NonlinearICA, x: np.ndarray, centre: np.ndarray, L: np.ndarray, h: float, t: np.ndarray
) -> Any:
    """log Σ_t exp F(centre + L t h) h^m |det L|, with the constants of the model, in balls."""
    sigma2, m = arb(model.sigma2), len(centre)
    step = arb_mat(L.tolist()) * arb(h)
    z = _plus(arb_mat(t.tolist()) * step.transpose(), centre)
    K, total = len(t), arb(0)
    residuals = (_plus(_decode_rows(model.decoder, model.theta, z), -x)).entries()
    places = z.entries()
    n = len(x)
    shift = float(_exponent(model, x, centre[None])[0])
    for k in range(K):
        squared = sum((v * v for v in residuals[k * n : (k + 1) * n]), arb(0)) / sigma2
        total += (-(squared + sum((v * v for v in places[k * m : (k + 1) * m]), arb(0))) / 2 - shift).exp()
    constant = (n * (2 * arb.pi() * sigma2).log() + m * (2 * arb.pi()).log()) / 2
    return total.log() + shift + step.det().abs_upper().log() - constant


def _decode_rows(decoder: Any, theta: np.ndarray, z: Any) -> Any:
    """g at the rows of an arb_mat."""
    if isinstance(decoder, ri.Polynomial):
        monomials = [
            [
                math.prod((v**e for v, e in zip(row, alpha, strict=True)), start=arb(1))
                for alpha in decoder.exponents
            ]
            for row in z.tolist()
        ]
        return arb_mat(monomials) * arb_mat(theta.reshape(decoder.data_dim, -1).T.tolist())
    h = z
    for (W, b), activation in zip(decoder.unpack(theta), decoder.activations, strict=True):
        a = _plus(h * arb_mat(W.T.tolist()), b)
        h = arb_mat(a.nrows(), a.ncols(), [_real(activation.name, v) for v in a.entries()])
    return h


def _real(name: str, a: Any) -> Any:
    """An activation of a real ball."""
    return (1 + a.exp()).log() if name == "softplus" else _activate(name, a, False)


def _plus(rows: Any, b: np.ndarray) -> Any:
    """An arb_mat with b added to each row."""
    return rows + arb_mat(rows.nrows(), 1, [1] * rows.nrows()) * arb_mat([b.tolist()])
