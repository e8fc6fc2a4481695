"""Truth for piecewise-affine decoders in 60 digits, by routes that share no code with refica.

One latent dimension: knots by bisection-free algebra, unit by unit and layer by layer, in mpmath; on each
piece the integrands are polynomials of degree at most 2 times a Gaussian, so that truncated moments in
closed form (normal tails, with digits to spare for their cancellation) give value, gradient and posterior.
Two: the cells of the network by clipping polygons; the integral over each by Green's theorem, as
integrals over its edges.
"""

import itertools

import mpmath as mp

DIGITS = 60
TINY = mp.mpf(10) ** -100  # a zero this near to a knot is the knot itself, found again
SPARE = 140  # closed-form moments cancel: t² / 2.3 digits at t standard deviations from an edge


class Network:
    """An MLP with activations x -> x or slope x, in mpmath."""

    def __init__(self, decoder, theta):
        self.sizes = decoder.sizes
        self.layers = []
        for (W, b), act in zip(decoder.unpack(theta), decoder.activations, strict=True):
            slope = mp.mpf(1.0 if act.name == "identity" else act.slope)
            rows = [[mp.mpf(float(w)) for w in row] for row in W]
            self.layers.append((rows, [mp.mpf(float(c)) for c in b], slope))

    def signals(self, z):
        """The inputs and pre-activations of every layer at a point z (list), and the output."""
        inputs, before = [], []
        h = list(z)
        for W, b, slope in self.layers:
            a = [mp.fdot(row, h) + c for row, c in zip(W, b, strict=True)]
            inputs.append(h)
            before.append(a)
            h = [v if v > 0 else slope * v for v in a]
        return inputs, before, h

    def __call__(self, z):
        return self.signals(z)[2]

    def theta_vjp(self, z, cotangent):
        """J_θ(z)ᵀ c, flat in refica's order."""
        inputs, before, _ = self.signals(z)
        bar, parts = list(cotangent), []
        for (W, _, slope), h, a in reversed(list(zip(self.layers, inputs, before, strict=True))):
            bar = [c * (1 if v > 0 else slope) for c, v in zip(bar, a, strict=True)]
            parts.append([c * v for c in bar for v in h] + list(bar))
            bar = [mp.fsum(c * row[j] for c, row in zip(bar, W, strict=True)) for j in range(len(h))]
        return [v for part in reversed(parts) for v in part]

    def knots(self):
        """Where a network of one latent dimension bends, sorted."""
        knots = []
        for depth, (_, b, slope) in enumerate(self.layers):
            if slope == 1:
                continue
            found = []
            for left, right in pieces_between(knots):
                p, q = two_points(left, right)
                ap, aq = self.signals([p])[1][depth], self.signals([q])[1][depth]
                for u in range(len(b)):
                    if ap[u] != aq[u]:
                        zero = p - ap[u] * (q - p) / (aq[u] - ap[u])
                        if left + TINY < zero < right - TINY:
                            found.append(zero)
            knots = sorted(knots + found)
        return knots


def pieces_between(knots):
    ends = [-mp.inf, *knots, mp.inf]
    return [(a, b) for a, b in itertools.pairwise(ends) if a < b]


def two_points(left, right):
    if mp.isinf(left) and mp.isinf(right):
        return mp.mpf(0), mp.mpf(1)
    if mp.isinf(left):
        return right - 2, right - 1
    if mp.isinf(right):
        return left + 1, left + 2
    return left + (right - left) / 4, left + 3 * (right - left) / 4


def truncated_moments(mean, sd, left, right):
    """∫ t^k exp(-t²/2) dt over the piece for k = 0, 1, 2, with t = (z - mean)/sd."""
    alpha, beta = (left - mean) / sd, (right - mean) / sd

    def tail(t):
        return mp.sqrt(mp.pi / 2) * mp.erfc(t / mp.sqrt(2))

    m0 = tail(-beta) - tail(-alpha) if alpha + beta < 0 else tail(alpha) - tail(beta)

    def edge(t, k):
        return mp.mpf(0) if mp.isinf(t) else t**k * mp.exp(-t * t / 2)

    m1 = edge(alpha, 0) - edge(beta, 0)
    m2 = m0 + edge(alpha, 1) - edge(beta, 1)
    return m0, m1, m2


def line_truth(decoder, theta, sigma2, x, gradient=True):
    """log p(x), its gradient in theta and in sigma2, posterior mean and variance, of one observation.

    Also the size of the summed contributions to each entry of the theta gradient.
    """
    with mp.workdps(DIGITS + SPARE):
        net, n = Network(decoder, theta), len(x)
        x, sigma2 = [mp.mpf(float(v)) for v in x], mp.mpf(float(sigma2))
        total, first, second, by_sigma2 = mp.mpf(0), mp.mpf(0), mp.mpf(0), mp.mpf(0)
        by_theta, size = None, None
        parts = []
        for left, right in pieces_between(net.knots()):
            p, q = two_points(left, right)
            gp, gq = net([p]), net([q])
            A = [(v - u) / (q - p) for u, v in zip(gp, gq, strict=True)]
            B = [u - a * p for u, a in zip(gp, A, strict=True)]
            r = [v - b for v, b in zip(x, B, strict=True)]
            precision = 1 + mp.fdot(A, A) / sigma2
            mean, sd = mp.fdot(A, r) / sigma2 / precision, 1 / mp.sqrt(precision)
            rest = [v - a * mean for v, a in zip(r, A, strict=True)]
            peak = -mp.fdot(rest, rest) / (2 * sigma2) - mean**2 / 2
            m = truncated_moments(mean, sd, left, right)
            scale = mp.exp(peak) * sd
            total += scale * m[0]
            first += scale * (mean * m[0] + sd * m[1])
            second += scale * (mean**2 * m[0] + 2 * mean * sd * m[1] + sd**2 * m[2])
            parts.append((scale, m, mean, sd, p, q))
        constant = -n * mp.log(2 * mp.pi * sigma2) / 2 - mp.log(2 * mp.pi) / 2
        result = {"log_p": mp.log(total) + constant, "mean": first / total}
        result["var"] = second / total - result["mean"] ** 2
        if not gradient:
            return result
        for scale, m, mean, sd, p, q in parts:
            # the integrands at three points of the piece, as a parabola in t = (z - mean)/sd
            at = [p, (p + q) / 2, q]
            t = [(z - mean) / sd for z in at]
            rows = []
            for z in at:
                r = [v - g for v, g in zip(x, net([z]), strict=True)]
                rows.append(
                    [
                        *net.theta_vjp([z], [v / sigma2 for v in r]),
                        (mp.fdot(r, r) / sigma2 - n) / (2 * sigma2),
                    ]
                )
            values = [integrate_parabola(t, column, m) * scale / total for column in zip(*rows, strict=True)]
            by_sigma2 += values[-1]
            by_theta = (
                values[:-1] if by_theta is None else [a + b for a, b in zip(by_theta, values, strict=False)]
            )
            sizes = [abs(v) for v in values[:-1]]
            size = sizes if size is None else [a + b for a, b in zip(size, sizes, strict=True)]
        return result | {"theta": by_theta, "sigma2": by_sigma2, "size": size}


def integrate_parabola(t, values, moments):
    """∫ f(t) exp(-t²/2) dt of the parabola through three points, from the moments 0, 1, 2."""
    (t0, t1, t2), (f0, f1, f2) = t, values
    d01, d12 = (f1 - f0) / (t1 - t0), (f2 - f1) / (t2 - t1)
    c2 = (d12 - d01) / (t2 - t0)
    c1 = d01 - c2 * (t0 + t1)
    c0 = f0 - t0 * (c1 + c2 * t0)
    return c0 * moments[0] + c1 * moments[1] + c2 * moments[2]


def plane_truth(decoder, theta, sigma2, x, digits=40):
    """log p(x) for two latent dimensions: cells by clipping polygons, each integral by Green's theorem.

    Right to some 20 digits where the cells' unconstrained peaks are not above exp(50) times p(x).
    """
    with mp.workdps(digits):
        net, n = Network(decoder, theta), len(x)
        x, sigma2 = [mp.mpf(float(v)) for v in x], mp.mpf(float(sigma2))
        total = mp.fsum(gaussian_over_polygon(polygon, A, c, x, sigma2) for polygon, A, c in net.polygons())
        return mp.log(total) - n * mp.log(2 * mp.pi * sigma2) / 2 - mp.log(2 * mp.pi)


BOX = 50  # the prior outside is exp(-1250)


def polygons(net):
    """The cells of a network inside a box, each with the affine map A z + c on it."""
    corners = [(mp.mpf(s) * BOX, mp.mpf(t) * BOX) for s, t in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    found = [(corners, [[mp.mpf(1), mp.mpf(0)], [mp.mpf(0), mp.mpf(1)]], [mp.mpf(0)] * 2)]
    for W, b, slope in net.layers:
        before, found = found, []
        for corners, A, c in before:
            rows = [[mp.fdot(w, column) for column in zip(*A, strict=True)] for w in W]
            shift = [mp.fdot(w, c) + v for w, v in zip(W, b, strict=True)]
            cut = [(corners, [], [])]
            for row, v in zip(rows, shift, strict=True):
                cut = [
                    (part, [*signs, sign], None)
                    for polygon, signs, _ in cut
                    for sign, part in zip((1, slope), clip(polygon, row, v), strict=True)
                    if len(part) > 2
                ]
            for polygon, signs, _ in cut:
                found.append((
                    polygon,
                    [[s * r for r in row] for s, row in zip(signs, rows, strict=True)],
                    [s * v for s, v in zip(signs, shift, strict=True)],
                ))  # fmt: skip
    return found


Network.polygons = polygons


def clip(polygon, row, shift):
    """The parts of a convex polygon (counter-clockwise) where row·z + shift is positive, and is not."""
    values = [mp.fdot(row, z) + shift for z in polygon]
    sides = []
    for sign in (1, -1):
        part = []
        for (z, v), (z2, v2) in zip(
            zip(polygon, values, strict=True),
            zip(polygon[1:] + polygon[:1], values[1:] + values[:1], strict=True),
            strict=True,
        ):
            if sign * v > 0 or (v == 0 and sign == -1):
                part.append(z)
            if v * v2 < 0:
                share = v / (v - v2)
                part.append(tuple(p + share * (q - p) for p, q in zip(z, z2, strict=True)))
        sides.append(part)
    return sides


def gaussian_over_polygon(polygon, A, c, x, sigma2):
    """∫ exp(-‖x - A z - c‖²/2σ² - ‖z‖²/2) dz over a polygon: whitened, a bivariate normal probability."""
    r = [v - u for v, u in zip(x, c, strict=True)]
    a, b = list(zip(*A, strict=True))
    L11 = 1 + mp.fdot(a, a) / sigma2
    L12, L22 = mp.fdot(a, b) / sigma2, 1 + mp.fdot(b, b) / sigma2
    det = L11 * L22 - L12**2
    ra, rb = mp.fdot(r, a) / sigma2, mp.fdot(r, b) / sigma2
    mean = ((L22 * ra - L12 * rb) / det, (L11 * rb - L12 * ra) / det)
    rest = [v - u * mean[0] - w * mean[1] for v, u, w in zip(r, a, b, strict=True)]
    peak = -mp.fdot(rest, rest) / (2 * sigma2) - mp.fdot(mean, mean) / 2
    if peak < -mp.mp.dps * 4 and peak < -200:
        return mp.mpf(0)
    root = mp.sqrt(L11)
    white = [
        (root * ((z[0] - mean[0]) + L12 / L11 * (z[1] - mean[1])), mp.sqrt(det / L11) * (z[1] - mean[1]))
        for z in polygon
    ]
    edges = zip(white, white[1:] + white[:1], strict=True)
    return mp.exp(peak) / mp.sqrt(det) * mp.fsum(edge_integral(p, q) for p, q in edges)


def edge_integral(p, q):
    """∫ (1 - exp(-ρ²/2)) dθ along the edge from p to q, seen from the origin: ∮ of it is the integral of
    exp(-ρ²/2) over the inside. With s along the edge, h its signed distance, dθ = h ds / (h² + s²)."""
    length = mp.hypot(q[0] - p[0], q[1] - p[1])
    if length == 0:
        return mp.mpf(0)
    u = ((q[0] - p[0]) / length, (q[1] - p[1]) / length)
    h = p[0] * u[1] - p[1] * u[0]
    first, last = mp.fdot(p, u), mp.fdot(q, u)
    far = mp.sqrt(2 * mp.mp.dps * mp.log(10)) + 1  # beyond, exp(-s²/2) is nothing
    inner = [min(max(v, -far), far) for v in (first, last)]

    def angle(s, t):
        return mp.atan2(t, h) - mp.atan2(s, h) if h != 0 else mp.mpf(0)

    total = angle(first, inner[0]) + angle(inner[1], last)
    if inner[0] < inner[1] and h != 0:
        pieces = mp.linspace(inner[0], inner[1], int(mp.ceil((inner[1] - inner[0]) / 2)) + 1)
        total += mp.quad(
            lambda s: -mp.expm1(-(h * h + s * s) / 2) * h / (h * h + s * s), pieces, method="gauss-legendre"
        )
    return total
