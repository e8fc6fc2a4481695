"""Is a gradient that of a function? Component by component, and by the slope of Taylor remainders.

A difference quotient needs a step, and any fixed step is wrong somewhere. Here the error of the yardstick
is measured beside it: the complex step (Squire and Trapp, SIAM Review 40, 1998) has none to speak of where
a function accepts complex arguments; differences are extrapolated until their tableau says how good they
are (Ridders 1978). The Taylor test asks no tolerance at all. With a right gradient the odd remainder

    R(h) = ½ |f(x + h v) - f(x - h v) - 2 h ∇f(x)·v|

falls like h³, with a wrong one like h, down to the noise of f, which is measured from a table of
differences (Moré and Wild, SIAM J. Sci. Comput. 33, 2011).
"""

# notation: p components; x (p,); v (p,) a direction; h steps; R remainders

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from refica.validation import Array, check_array, check_choice, check_count, check_generator, check_number

__all__ = ["GradientCheck", "TaylorSlope", "check_gradient", "complex_step", "extrapolate", "taylor_slope"]

Function: TypeAlias = Callable[[Array], Any]

STEP = 1e-30
"""The complex step: so small that its square is lost in any rounding."""

ROUNDING = 1e-12
"""What the complex step is taken to be off by, relative to the largest component: a component that is a sum
of terms as large as that one has no more correct digits."""

MIDDLE = 2.0
"""The slope halfway between that of a right gradient, 3, and that of a wrong one, 1."""

ABOVE_NOISE = 10.0
"""Remainders count that are so many times the noise of f."""

HALVINGS = 40
"""Steps of a Taylor test, each half of the one before: to 1e-12 of the first."""

FIRST_STEP = 0.125
"""The longest step, relative to max(1, |x|): a right gradient shows its slope well below it."""

GROUP = 4
"""Remainders, those at the smallest steps that count, through which the slope is fitted."""


NOISE_SPACINGS = (1e-10, 1e-8, 1e-6)
"""Distances, relative to the longest step, of the points between which noise is measured: what varies over
less than a millionth of it is taken for noise."""


class TaylorSlope(NamedTuple):
    """What a Taylor test says of a directional derivative.

    ``slope``: of log R against log h at the smallest steps above the noise; nan where all remainders are
    noise. ``resolution``: the error of the directional derivative that would have been seen, in its units.
    ``passed``: whether the slope is nearer to 3 (right) than to 1 (wrong), or there is no remainder.
    """

    slope: float
    resolution: float
    passed: bool


@dataclass(frozen=True, slots=True, eq=False)
class GradientCheck:
    """The result of `check_gradient`; true if the gradient passed.

    Attributes
    ----------
    relative_error : (p,)
        |gradient - derivative| / |derivative| of each component, 0 for 0/0, inf for a derivative of 0.
    derivative : (p,)
        The partial derivatives by ``route``.
    uncertainty : (p,)
        Estimated absolute error of each of these.
    route : str
        "complex step" or "differences".
    slopes : tuple of TaylorSlope
        One for each random direction.
    wrong : tuple of int
        The components that are wrong.
    passed : bool
        No component is wrong and no Taylor test failed.
    message : str
        The verdict in words.
    """

    relative_error: Array
    derivative: Array
    uncertainty: Array
    route: str
    slopes: tuple[TaylorSlope, ...]
    wrong: tuple[int, ...]
    passed: bool
    message: str

    def __bool__(self) -> bool:
        """Whether the gradient passed."""
        return self.passed

    def __repr__(self) -> str:
        """Show the verdict, not arrays."""
        return f"GradientCheck(passed={self.passed}, {self.message!r})"


def check_gradient(
    f: Function,
    grad: Function | Any,
    x: Any,
    *,
    rtol: float = 1e-8,
    route: str = "auto",
    directions: int = 3,
    rng: Any = 0,
) -> GradientCheck:
    """Compare a gradient with the function that it is said to be the gradient of.

    Parameters
    ----------
    f : callable
        From an array (p,) to a number; it never sees ``x`` itself, but copies.
    grad : callable or array_like (p,)
        The gradient, as a function of the same argument or at ``x``.
    x : array_like (p,)
        Where to compare them.
    rtol : float
        Relative error > 0 up to which a component is right. What its yardstick may be off by is allowed
        beside it: about 1e-12 of the largest component for the complex step, what the extrapolation of the
        differences says otherwise.
    route : str
        "complex step", "differences", or "auto": the complex step if f takes complex arguments and agrees
        with differences along one direction, so that ``abs`` or ``real`` in f do no harm.
    directions : int
        Number of random directions, >= 1, for the Taylor test, each of at most some hundred values of f.
    rng : int or numpy.random.Generator
        For these directions.

    Raises
    ------
    TypeError, ValueError
        For arrays that are not finite or of another shape, or a value of f that is not a finite number; or
        if the complex step was asked for and f does not take complex arguments.

    Examples
    --------
    >>> f = lambda x: np.sum(np.exp(x) * x)
    >>> check = check_gradient(f, lambda x: np.exp(x) * (1.0 + x), [0.3, -0.7])
    >>> check.passed, check.route
    (True, 'complex step')
    >>> wrong = check_gradient(f, lambda x: np.exp(x) * (1.0001 + x), [0.3, -0.7])
    >>> wrong.passed, wrong.wrong, [round(each.slope) for each in wrong.slopes]
    (False, (0, 1), [1, 1, 1])
    """
    x = check_array("x", x, ("p",))
    gradient = check_array("grad", grad(x.copy()) if callable(grad) else grad, x.shape)
    rtol, rng = check_number("rtol", rtol, above=0.0), check_generator(rng)
    route = check_choice("route", route, ("auto", "complex step", "differences"))
    check_number("f(x)", np.asarray(f(x.copy()))[()])
    if route == "auto":
        route = "complex step" if _is_analytic(f, x, rng) else "differences"
    if route == "complex step":
        derivative = complex_step(f, x)
        uncertainty = np.full(len(x), ROUNDING * np.abs(derivative).max())
    else:
        derivative, uncertainty = np.transpose([_along_axis(f, x, j) for j in range(len(x))])
    off = np.abs(gradient - derivative)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(off == 0.0, 0.0, off / np.abs(derivative))
    wrong = tuple(np.flatnonzero(off > rtol * np.abs(derivative) + uncertainty).tolist())
    slopes = []
    for _ in range(check_count("directions", directions)):
        v = rng.standard_normal(len(x))
        v /= np.linalg.norm(v)
        slopes.append(taylor_slope(f, float(gradient @ v), x, v))
    passed = not wrong and all(each.passed for each in slopes)
    message = _words(relative, uncertainty / np.maximum(np.abs(derivative), 1e-300), wrong, slopes, route)
    return GradientCheck(relative, derivative, uncertainty, route, tuple(slopes), wrong, passed, message)


def complex_step(f: Function, x: Array) -> Array:
    """Return the partial derivatives Im f(x + i h e_j) / h, (p,), of an f that takes complex arguments.

    Raises
    ------
    TypeError
        If it does not, or returns no complex number.
    """
    derivative = np.empty(len(x))
    for j in range(len(x)):
        moved = x.astype(complex)
        moved[j] += 1j * STEP
        derivative[j] = _imaginary(f, moved)
    return derivative


def taylor_slope(f: Function, derivative: float, x: Array, v: Array) -> TaylorSlope:
    """Test a directional derivative ∇f(x)·v of f by the slope of its Taylor remainders, see the module."""
    first = FIRST_STEP * max(1.0, float(np.abs(x).max()))
    h = first * 0.5 ** np.arange(HALVINGS)
    both = np.array([[_real(f, x + step * v), _real(f, x - step * v)] for step in h])
    usable = np.isfinite(both).all(axis=1)  # the longest steps may leave the domain of f
    h, both = h[usable], both[usable]
    if not len(h):
        return TaylorSlope(math.nan, math.inf, False)
    R = 0.5 * np.abs(both[:, 0] - both[:, 1] - 2.0 * h * derivative)
    noise = max(_noise(f, x, v, first), np.finfo(float).eps * float(np.abs(both[-1]).max()))
    noise = noise + np.finfo(float).eps * np.abs(h * derivative)  # of the difference itself
    run = _last_run(ABOVE_NOISE * noise < R)
    if not len(run):
        return TaylorSlope(math.nan, float((ABOVE_NOISE * noise[0] + R[0]) / h[0]), True)
    group = run[-GROUP:]
    slope = float(np.polyfit(np.log(h[group]), np.log(R[group]), 1)[0])
    after = run[-1] + 1
    if after < len(h):
        # Where the last remainder above the noise is followed by one far below, as when a kink is passed, it
        # is not h times an error: that would be more than a third of it.
        drop = float(np.log2(R[run[-1]] / max(R[after], noise[after])))
        slope = max(slope, drop) if drop > MIDDLE else slope
    return TaylorSlope(slope, float(R[run[-1]] / h[run[-1]]), slope > MIDDLE)


def _last_run(above: Array) -> Array:
    """The last run of at least `GROUP` consecutive True: single remainders rise above the noise by chance."""
    runs = np.split(np.arange(len(above)), np.flatnonzero(np.diff(above)) + 1)
    long = [run for run in runs if len(run) >= GROUP and above[run[0]]]
    return long[-1] if long else np.empty(0, dtype=int)


def extrapolate(f: Callable[[float], float], h: float) -> tuple[float, float]:
    """Return f'(0) and its estimated error by Ridders' extrapolation of central differences.

    It starts from step h, or a shorter one where f is not finite there.
    """
    shrink, size = 1.4, 12
    for _ in range(HALVINGS):
        if math.isfinite(f(h)) and math.isfinite(f(-h)):
            break
        h *= 0.5
    table = np.zeros((size, size))
    best, error = math.nan, math.inf
    for i in range(size):
        step = h / shrink**i
        up, down = f(step), f(-step)
        table[0, i] = (up - down) / (2.0 * step)
        rounding = np.finfo(float).eps * max(abs(up), abs(down)) / step
        factor = 1.0
        for j in range(1, i + 1):
            factor *= shrink**2
            table[j, i] = (factor * table[j - 1, i] - table[j - 1, i - 1]) / (factor - 1.0)
            distance = max(abs(table[j, i] - table[j - 1, i]), abs(table[j, i] - table[j - 1, i - 1]))
            if distance + rounding <= error:
                best, error = float(table[j, i]), float(distance + rounding)
    return best, error


def _along_axis(f: Function, x: Array, j: int) -> tuple[float, float]:
    """∂f/∂x_j and twice its estimated error by differences."""
    e = np.zeros(len(x))
    e[j] = 1.0
    derivative, error = _along(f, x, e, max(1.0, abs(float(x[j]))))
    return derivative, 2.0 * error


def _along(f: Function, x: Array, v: Array, scale: float) -> tuple[float, float]:
    """∇f·v by differences and its estimated error: the better of two first steps."""
    tries = [extrapolate(lambda t: _real(f, x + t * v), first * scale) for first in (0.1, 0.003)]
    return min(tries, key=lambda found: found[1])


def _is_analytic(f: Function, x: Array, rng: np.random.Generator) -> bool:
    """Whether the complex step works and agrees with differences along a random direction."""
    v = rng.standard_normal(len(x))
    v /= np.linalg.norm(v)
    try:
        along = _imaginary(f, x + 1j * STEP * v)
    except TypeError:
        return False
    found, error = _along(f, x, v, max(1.0, float(np.abs(x).max())))
    return abs(along - found) <= 10.0 * error + 1e-6 * max(abs(found), abs(along))


def _imaginary(f: Function, moved: Array) -> float:
    """Im f / h at an argument moved by the complex step.

    Raises
    ------
    TypeError
        If f returns no complex number, or raises an error, or drops the imaginary part with a warning.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            value = f(moved)
    except Exception as error:  # whatever f may do with an argument it was not written for
        raise TypeError(f"f does not take complex arguments: {error}") from error
    if not np.iscomplexobj(value) or np.ndim(value) != 0 or not np.isfinite(value):
        raise TypeError(f"f must return a finite complex number for complex arguments, got {value!r}")
    return float(np.imag(value)) / STEP


def _real(f: Function, x: Array) -> float:
    """f as a float; nan outside of its domain."""
    try:
        with np.errstate(all="ignore"):
            return float(f(x))
    except (ArithmeticError, ValueError):
        return math.nan


def _noise(f: Function, x: Array, v: Array, scale: float) -> float:
    """The noise of f along short lines, from its sixth differences: those of the smooth part vanish there,
    those of noise of variance s² have variance s² binomial(12, 6)."""
    found = []
    for spacing in NOISE_SPACINGS:
        values = [_real(f, x + t * spacing * scale * v) for t in range(-6, 7)]
        found.append(float(np.sqrt(np.mean(np.diff(values, 6) ** 2) / math.comb(12, 6))))
    return max(found)


def _words(
    relative: Array, unsure: Array, wrong: tuple[int, ...], slopes: list[TaylorSlope], route: str
) -> str:
    """The verdict in a sentence or two."""
    failed = [each for each in slopes if not each.passed]
    if not wrong:
        words = f"every component agrees with the {route} (largest relative error {relative.max():.2g})"
    else:
        worst = max(wrong, key=lambda j: relative[j])
        words = (
            f"{len(wrong)} of {len(relative)} components differ from the {route}, most component {worst} "
            f"(relative error {relative[worst]:.2g}, yardstick good to {unsure[worst]:.1g})"
        )
    if failed:
        words += f"; Taylor remainders fall like h^{failed[0].slope:.2f}, those of a right gradient like h^3"
    return words
