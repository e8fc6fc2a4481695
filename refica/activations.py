"""Activations: each with its value and its derivative, by hand.

A formula per class; the classes hold no state but the slope of `LeakyReLU`, so two activations with
the same name are equal. Kinks: the derivative of relu and leaky relu at 0 is the slope on the left
(0 for relu), where automatic differentiation may give a mean of both sides.

Values and derivatives accept complex arguments too (differentiation by the complex step), taking the
branch by the real part, and are safe from overflow for real ones: ``softplus(800) == 800``,
``sigmoid(-800) == 0``.

For the proved bounds on log p(x) each also knows, in exact mathematics, its image of an interval, that
of its derivative, and how far it strays from its tangent on a complex disc. Nothing else needs these.
"""

# notation: a pre-activation, any shape; every function acts elementwise

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy import special

from refica.validation import Array, check_choice, check_number, shown

__all__ = ["ACTIVATIONS", "Activation", "Enclosable", "LeakyReLU", "as_activation", "leaky_relu"]


class Activation(Protocol):
    """What a layer needs: a name, the value and the derivative.

    ``gain`` is the factor on the standard deviation 1/sqrt(fan_in) of initial weights which keeps
    the size of signals from layer to layer (He et al. 2015 for the relu family).
    """

    @property
    def name(self) -> str:
        """The name by which `as_activation` finds it again."""

    @property
    def gain(self) -> float:
        """Factor on 1/sqrt(fan_in) for initial weights."""

    def __call__(self, a: Array) -> Array:
        """Value, same shape as ``a``."""

    def derivative(self, a: Array) -> Array:
        """Derivative, same shape as ``a``."""


class Enclosable(Activation, Protocol):
    """What the proved bounds need beside value and derivative, f and f' below.

    Each is a statement of exact mathematics; `refica.bounds` adds slack for the rounding of its
    evaluation. Intervals and radii may be infinite.
    """

    @property
    def roundoff(self) -> float:
        """c such that the computed f(a) is right to c u (1 + |f(a)|), u = 2^-53 the unit roundoff.

        It supposes that elementary functions of NumPy and SciPy are right to 4 units in the last place.
        """

    def image(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Smallest interval that holds f(a) for every a in [lower, upper]."""

    def slopes(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Smallest interval that holds f'(a) for every a in [lower, upper], one-sided ones at a kink."""

    def remainder(self, a: Array, radius: Array) -> Array:
        """E >= |f(a + w) - f(a) - f'(a) w| for every complex |w| <= radius; inf if f is not analytic there.

        So f maps the disc into the disc of radius |f'(a)| radius + E about f(a). E rises with the radius.
        """


@dataclass(frozen=True, slots=True)
class Identity:
    """a."""

    name = "identity"
    gain = 1.0
    roundoff = 0.0

    def __call__(self, a: Array) -> Array:
        """Return a."""
        return a

    def derivative(self, a: Array) -> Array:
        """Return 1."""
        return np.ones_like(a)

    def image(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Return the interval itself."""
        return lower, upper

    def slopes(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Return [1, 1]."""
        return np.ones_like(lower), np.ones_like(upper)

    def remainder(self, a: Array, radius: Array) -> Array:
        """Return 0."""
        return np.zeros_like(radius)


@dataclass(frozen=True, slots=True)
class Tanh:
    """tanh(a)."""

    name = "tanh"
    gain = 5.0 / 3.0
    roundoff = 8.0

    def __call__(self, a: Array) -> Array:
        """Return tanh(a)."""
        return np.tanh(a)

    def derivative(self, a: Array) -> Array:
        """Return 1 - tanh(a)²."""
        return _sech2(a)

    def image(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Return the values at the ends: tanh rises."""
        return np.tanh(lower), np.tanh(upper)

    def slopes(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Return the derivative at the points farthest from 0 and nearest to it."""
        farthest = np.maximum(np.abs(lower), np.abs(upper))
        nearest = np.maximum(np.maximum(lower, -upper), 0.0)
        return _sech2(farthest), _sech2(nearest)

    def remainder(self, a: Array, radius: Array) -> Array:
        """Return r sinh r (r/3 + |t|) / (cosh a · D), t = tanh a, D <= |cosh(a + w)| on the disc.

        The addition theorem gives f(a + w) - f(a) = sinh w / (cosh a cosh(a + w)), and from that
        f(a + w) - f(a) - w / cosh² a = (sinh w - w cosh w - t w sinh w) / (cosh a cosh(a + w)). By their
        power series |sinh w| <= sinh r and |w cosh w - sinh w| <= r cosh r - sinh r <= r² sinh r / 3.
        """
        return radius * _tanh_on_disc(a, radius) * (radius / 3.0 + np.abs(np.tanh(a)))


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """1 / (1 + exp(-a)), without overflow on either side."""

    name = "sigmoid"
    gain = 4.0
    roundoff = 8.0

    def __call__(self, a: Array) -> Array:
        """Return the sigmoid; exp is only ever taken of a number with real part <= 0."""
        right = np.real(a) >= 0
        e = np.exp(np.where(right, -a, a))
        return np.where(right, 1.0, e) / (1.0 + e)

    def derivative(self, a: Array) -> Array:
        """Return s(a) s(-a) = exp(-|a|) / (1 + exp(-|a|))²."""
        e = np.exp(-_even(a))
        return e / (1.0 + e) ** 2

    def image(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Return the values at the ends: the sigmoid rises."""
        return self(lower), self(upper)

    def slopes(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Return a quarter of those of tanh at a/2, since s(a) = (1 + tanh(a/2)) / 2."""
        least, greatest = Tanh().slopes(0.5 * lower, 0.5 * upper)
        return 0.25 * least, 0.25 * greatest

    def remainder(self, a: Array, radius: Array) -> Array:
        """Return half that of tanh at a/2 with radius r/2."""
        return 0.5 * Tanh().remainder(0.5 * a, 0.5 * radius)


@dataclass(frozen=True, slots=True)
class LeakyReLU:
    """a for a > 0, slope * a otherwise; relu is slope 0."""

    slope: float

    @property
    def name(self) -> str:
        """``relu``, ``leaky_relu`` (slope 0.01) or ``leaky_relu(slope)``."""
        return {0.0: "relu", 0.01: "leaky_relu"}.get(self.slope, f"leaky_relu({self.slope!r})")

    @property
    def gain(self) -> float:
        """sqrt(2 / (1 + slope²)), He et al. 2015."""
        return math.sqrt(2.0 / (1.0 + self.slope**2))

    @property
    def roundoff(self) -> float:
        """One product, or none."""
        return 1.0 if self.slope else 0.0

    def __call__(self, a: Array) -> Array:
        """Return a or slope * a."""
        return np.where(np.real(a) > 0, a, self.slope * a)

    def derivative(self, a: Array) -> Array:
        """Return 1 for a > 0, slope otherwise (at the kink too)."""
        return np.where(np.real(a) > 0, 1.0, self.slope)

    def image(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Return the least and greatest of the values at the ends and, between them, at the kink."""
        ends = self._at(lower), self._at(upper)
        inside = (lower < 0) & (upper > 0)
        least = np.minimum(*ends)
        return np.where(inside, np.minimum(least, 0.0), least), np.maximum(*ends)

    def slopes(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Return 1 right of the kink, the slope left of it, the interval between both across it."""
        left, right = (1.0 if self.slope > 1 else self.slope), (self.slope if self.slope > 1 else 1.0)
        least = np.where(lower >= 0, 1.0, np.where(upper <= 0, self.slope, left))
        return least, np.where(lower >= 0, 1.0, np.where(upper <= 0, self.slope, right))

    def remainder(self, a: Array, radius: Array) -> Array:
        """Return 0 where the disc keeps clear of the kink (or is a point), inf where it touches it."""
        touches = (radius > 0) & (radius >= np.abs(a)) & (self.slope != 1.0)
        return np.where(touches, np.inf, 0.0)

    def secant(self, lower: Array, upper: Array) -> tuple[Array, Array, Array]:
        """Return λ, v and E with |f(a) - v - λ a| <= E on [lower, upper]: halfway from the chord to the kink.

        With l = min(lower, 0) and u = max(upper, 0) the chord has λ = (u - slope l) / (u - l), and is
        farthest from f at 0, by (1 - slope) (-l) u / (u - l).
        """
        left, right = np.minimum(lower, 0.0), np.maximum(upper, 0.0)
        length = np.maximum(right - left, np.finfo(float).tiny)
        gap = (1.0 - self.slope) * (-left) * (right / length)
        return (right - self.slope * left) / length, 0.5 * gap, 0.5 * np.abs(gap)

    def _at(self, end: Array) -> Array:
        """The value at the end of an interval, which may be infinite: 0 inf is 0 here."""
        return np.where(end > 0, end, self.slope * end if self.slope else 0.0)


@dataclass(frozen=True, slots=True)
class GELU:
    """a Φ(a), exactly (with erf, no tanh approximation); Hendrycks and Gimpel 2016."""

    name = "gelu"
    gain = math.sqrt(2.0)
    roundoff = 16.0

    def __call__(self, a: Array) -> Array:
        """Return a Φ(a)."""
        return a * special.ndtr(a)

    def derivative(self, a: Array) -> Array:
        """Return Φ(a) + a φ(a)."""
        return special.ndtr(a) + a * np.exp(-0.5 * a * a) / math.sqrt(2.0 * math.pi)

    def image(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Return the values at the ends, and at the minimum if it lies between: f falls, then rises."""
        lower, upper = np.maximum(lower, -_GELU_ZERO), np.maximum(upper, -_GELU_ZERO)
        ends = self(lower), self(upper)
        inside = (lower < _GELU_LOWEST) & (upper > _GELU_LOWEST)
        return np.where(inside, self(np.asarray(_GELU_LOWEST)), np.minimum(*ends)), np.maximum(*ends)

    def slopes(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Return f' at the ends, and at ±√2 if they lie between: f'' = (2 - a²) φ(a) changes sign there."""
        lower, upper = (np.clip(end, -_GELU_ZERO, _GELU_ZERO) for end in (lower, upper))
        ends = self.derivative(lower), self.derivative(upper)
        root = np.sqrt(2.0)
        least = np.where((lower < -root) & (upper > -root), self.derivative(-root), np.minimum(*ends))
        return least, np.where((lower < root) & (upper > root), self.derivative(root), np.maximum(*ends))

    def remainder(self, a: Array, radius: Array) -> Array:
        """Return r²/2 sup |f''| with f'' = (2 - z²) φ(z) and z = a + w.

        |2 - z²| <= |2 - a²| + 2 |a| r + r², and |φ(z)| = exp(-Re z² / 2) / √2π, where
        -Re z² = y² - (a + x)² for w = x + iy is at most -(|a| - r)² if r < |a|/2, otherwise r² - a²/2.
        """
        size = np.abs(a)
        with np.errstate(over="ignore", invalid="ignore"):
            exponent = np.where(radius < 0.5 * size, -((size - radius) ** 2), radius**2 - 0.5 * a * a)
            factor = np.abs(2.0 - a * a) + 2.0 * size * radius + radius**2
            bound = 0.5 * radius**2 * factor * np.exp(0.5 * exponent) / math.sqrt(2.0 * math.pi)
        return np.where(np.isfinite(radius), bound, np.inf)


@dataclass(frozen=True, slots=True)
class Softplus:
    """log(1 + exp(a)) as max(a, 0) + log1p(exp(-|a|))."""

    name = "softplus"
    gain = 1.5
    roundoff = 8.0

    def __call__(self, a: Array) -> Array:
        """Return log(1 + exp(a))."""
        return np.where(np.real(a) >= 0, a, 0.0) + np.log1p(np.exp(-_even(a)))

    def derivative(self, a: Array) -> Array:
        """Return the sigmoid of a."""
        return Sigmoid()(a)

    def image(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Return the values at the ends: softplus rises."""
        return self(lower), self(upper)

    def slopes(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Return the sigmoid at the ends."""
        return Sigmoid().image(lower, upper)

    def remainder(self, a: Array, radius: Array) -> Array:
        """Return r/2 times the bound B(r) on |s(a + w) - s(a)|, s = f' the sigmoid: half that of tanh at a/2.

        f(a + w) - f(a) - s(a) w = ∫₀¹ (s(a + v w) - s(a)) w dv, and as B(r)/r rises with r, B(v r) <= v B(r).
        """
        return 0.25 * radius * _tanh_on_disc(0.5 * a, 0.5 * radius)


@dataclass(frozen=True, slots=True)
class Sin:
    """sin(a)."""

    name = "sin"
    gain = 1.5
    roundoff = 8.0

    def __call__(self, a: Array) -> Array:
        """Return sin(a)."""
        return np.sin(a)

    def derivative(self, a: Array) -> Array:
        """Return cos(a)."""
        return np.cos(a)

    def image(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Return the values at the ends, 1 and -1 where a crest (π/2 + 2πk) or a trough lies between."""
        return _wave(np.sin, 0.5 * math.pi, lower, upper)

    def slopes(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Return the same for the cosine, whose crests are at 2πk."""
        return _wave(np.cos, 0.0, lower, upper)

    def remainder(self, a: Array, radius: Array) -> Array:
        """Return (cosh r - 1) (|sin a| + |cos a| r/3).

        sin(a + w) - sin a - w cos a = sin a (cos w - 1) + cos a (sin w - w); the power series give
        |cos w - 1| <= cosh r - 1 and |sin w - w| <= sinh r - r <= (cosh r - 1) r/3.
        """
        with np.errstate(over="ignore"):
            return 2.0 * np.sinh(0.5 * radius) ** 2 * (np.abs(np.sin(a)) + np.abs(np.cos(a)) * radius / 3.0)


def leaky_relu(slope: float = 0.01) -> LeakyReLU:
    """Return the leaky relu with the given slope for negative arguments.

    Parameters
    ----------
    slope : float
        Any finite number: 0 is relu, 1 the identity.

    Raises
    ------
    TypeError, ValueError
        If the slope is not a finite number.
    """
    return LeakyReLU(check_number("slope", slope))


ACTIVATIONS: dict[str, Enclosable] = {
    activation.name: activation
    for activation in (
        Identity(), Tanh(), Sigmoid(), LeakyReLU(0.0), LeakyReLU(0.01), GELU(), Softplus(), Sin(),
    )
}  # fmt: skip
"""The activations by name."""


def as_activation(name: str, value: Any) -> Activation:
    """Return the activation that ``value`` is or names (``"leaky_relu(0.1)"`` included).

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    value : Activation or str
        An activation or one of `ACTIVATIONS`.

    Raises
    ------
    ValueError
        If the name is not known.
    """
    if not isinstance(value, str):
        if callable(value) and callable(getattr(value, "derivative", None)):
            return value
        raise TypeError(f"{name} must be an activation or the name of one, got {shown(value)}")
    sloped = re.fullmatch(r"leaky_relu\(([^()]*)\)", value)
    if sloped:
        try:
            return leaky_relu(float(sloped[1]))
        except ValueError:
            raise ValueError(f"{name} has a slope that is not a finite number: {value!r}") from None
    return ACTIVATIONS[check_choice(name, value, ACTIVATIONS)]


def _even(a: Array) -> Array:
    """|a| for real a; for complex a the branch of ±a with real part >= 0, which is analytic."""
    return np.where(np.real(a) >= 0, a, -a)


_GELU_LOWEST = -0.7517915246935645  # where gelu is least: the root of Φ(a) + a φ(a)
_GELU_ZERO = 40.0  # beyond it gelu is 0 or a, and its derivative 0 or 1, to within exp(-790)


def _sech2(a: Array) -> Array:
    """1 - tanh(a)² = 4 e / (1 + e)² with e = exp(-2|a|): right to a few ulp however small it is."""
    e = np.exp(-2.0 * _even(a))
    return 4.0 * e / (1.0 + e) ** 2


def _tanh_on_disc(a: Array, radius: Array) -> Array:
    """Bound sinh r / (cosh a · D) on |tanh(a + w) - tanh a| for complex |w| <= r; inf where D is 0.

    |cosh z|² = sinh² Re z + cos² Im z, so D² = sinh²(|a| - r) + cos² r, less the first term if r > |a|
    and the second if r > π/2. cosh a is not taken to overflow: were it inf, the bound would be 0.
    """
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        real = np.sinh(np.maximum(np.abs(a) - radius, 0.0))
        imaginary = np.where(radius < 1.57, np.cos(radius), 0.0)
        bound = np.sinh(radius) / (np.cosh(np.minimum(np.abs(a), 700.0)) * np.hypot(real, imaginary))
    return np.where(np.isnan(bound), np.inf, bound)


def _wave(wave: Callable[[Array], Array], crest: float, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Image of intervals under a sine wave with a crest at ``crest`` (and at every 2π from there)."""

    def holds(point: float) -> Array:
        # A point just beyond an end counts as inside: that can only widen the image.
        first, last = (lower - point) / (2.0 * math.pi), (upper - point) / (2.0 * math.pi)
        margin = 1e-9 * (1.0 + np.abs(first))
        return np.floor(last + margin) >= np.ceil(first - margin)

    with np.errstate(invalid="ignore"):
        ends = wave(lower), wave(upper)
    return (
        np.where(holds(crest + math.pi), -1.0, np.fmin(*ends)),
        np.where(holds(crest), 1.0, np.fmax(*ends)),
    )
