"""The latent space of a fitted model, and the learning curves of fits."""

# notation: N observations, m latent

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refica.fit.result import Step
from refica.plot.canvas import BLUE, LIGHT, TRUTH, axes_for, bins, legend, marker_size, styles
from refica.recovery import procrustes, r_squared
from refica.validation import Array, check_array, check_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["latent", "learning_curves"]

REACH = 3.5
"""The prior's density is drawn up to this many standard deviations."""

LOGARITHMIC = 5.0
"""Time is on a logarithmic axis if the longest fit took more than this many times the shortest."""


def latent(mean: Any, *, truth: Any = None, name: str = "posterior mean", ax: Axes | None = None) -> Axes:
    """Draw the latent space: posterior means, against the truth where it is known.

    With a truth the means are first turned by the best orthogonal map, which the model cannot identify.

    - m = 1: a histogram with the prior N(0, 1); with a truth, the means against it.
    - m >= 2: the first two coordinates with the circles of 1, 2 and 3 standard deviations of the prior,
      coloured by the first coordinate of the truth.

    Posterior means vary less than the latents do, by the mean posterior variance.

    Parameters
    ----------
    mean : array_like (N, m)
        Posterior means, as of `refica.posterior`.
    truth : array_like (N, m), optional
        The latents behind the data.
    name : str
        What the means are, for the labels.
    ax : Axes, optional
        Where to draw; None makes a new figure.

    Raises
    ------
    ImportError
        If ax is None and matplotlib is missing.
    TypeError, ValueError
        For arrays that are not finite or not of the same shape.
    """
    mean = check_array("mean", mean, ("N", "m"))
    if truth is None:
        return (_latent_line if mean.shape[1] == 1 else _latent_plane)(axes_for(ax), mean, name)
    truth = check_array("truth", truth, mean.shape)
    mean = mean @ procrustes(truth, mean)
    removed = "sign" if mean.shape[1] == 1 else "rotation or reflection"
    note = f"R² = {r_squared(truth, mean):.4f} after the best {removed}"
    return (_latent_pairs if mean.shape[1] == 1 else _latent_plane)(axes_for(ax), mean, name, truth, note)


def _latent_line(ax: Axes, mean: Array, name: str) -> Axes:
    """m = 1: the histogram of the means and the density of the prior."""
    ax.hist(mean[:, 0], bins(mean), density=True, color=LIGHT, label=f"{name}s")
    z = np.linspace(-REACH, REACH, 401)
    p = np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
    ax.plot(z, p, color=TRUTH.colour, linestyle=TRUTH.line, linewidth=1.8, label="prior N(0, 1)")
    ax.set(xlabel="latent z (standard deviations of the prior)", ylabel="density")
    legend(ax, [f"{name}s", "prior N(0, 1)"])
    return ax


def _latent_pairs(ax: Axes, mean: Array, name: str, truth: Array, note: str) -> Axes:
    """m = 1: the means against the truth."""
    both = np.concatenate([mean, truth])
    ends = [float(both.min()), float(both.max())]
    ax.plot(ends, ends, color=TRUTH.colour, linewidth=1.0, zorder=1.5, label="mean = truth")
    size = marker_size(len(mean))
    ax.scatter(truth[:, 0], mean[:, 0], s=size, color=BLUE, alpha=0.6, linewidths=0, label="observations")
    ax.set_aspect("equal")
    ax.set(xlabel="true z", ylabel=f"{name} of z")
    legend(ax, ["observations", "mean = truth"], note)
    return ax


def _latent_plane(ax: Axes, mean: Array, name: str, truth: Array | None = None, note: str = "") -> Axes:
    """m >= 2: the first two coordinates of the means, with circles of the prior."""
    shade: dict[str, Any] = {"color": BLUE}
    if truth is not None:
        shade = {"c": truth[:, 0], "cmap": "viridis", "vmin": -2.5, "vmax": 2.5}
    size = 1.4 * marker_size(len(mean))
    points = ax.scatter(mean[:, 0], mean[:, 1], s=size, linewidths=0, label=f"{name}s", **shade)
    if truth is not None:
        ax.figure.colorbar(points, ax=ax, shrink=0.8, extend="both").set_label("true z1")
    turn = np.linspace(0.0, 2.0 * np.pi, 181)
    prior = "prior: 1, 2, 3 standard deviations"
    for radius in (1, 2, 3):
        across, up = radius * np.cos(turn), radius * np.sin(turn)
        ax.plot(across, up, color=TRUTH.colour, linestyle=TRUTH.line, linewidth=1.0, label=prior)
    limit = max(3.2, 1.05 * float(np.abs(mean[:, :2]).max()))
    ax.set_aspect("equal")
    ax.set(xlabel=f"{name} of z1", ylabel=f"{name} of z2")
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit))
    legend(ax, [f"{name}s", prior], note)
    return ax


def learning_curves(
    histories: Mapping[str, Sequence[Step]], *, reference: float | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the objective per observation against the seconds since the start of each fit.

    The objectives need not be the same quantity: an ELBO is a lower bound of the log-likelihood. The
    vertical axis shows the ends well and cuts off the first steps.

    Parameters
    ----------
    histories : mapping of str to sequence of Step
        By the label in the legend; each with at least one step.
    reference : float, optional
        The truth's log-likelihood per observation, as a horizontal line.
    ax : Axes, optional
        Where to draw; None makes a new figure.

    Raises
    ------
    ImportError
        If ax is None and matplotlib is missing.
    TypeError, ValueError
        If there is no history, one has no steps, or the reference is not a finite number.
    """
    for label, history in histories.items():
        if not history:
            raise ValueError(f"each history must have at least one step, got none for {label!r}")
    if not histories:
        raise ValueError("histories must be one or more, by label, got none")
    lines = [] if reference is None else [check_number("reference", reference)]
    ax = axes_for(ax)
    curves = [np.array([[step.seconds, step.objective] for step in steps]) for steps in histories.values()]
    for label, curve, style in zip(histories, curves, styles(histories), strict=True):
        # The mark tells where a fit ended, and shows a history of one step at all.
        ax.plot(
            curve[:, 0],
            curve[:, 1],
            color=style.colour,
            linestyle=style.line,
            linewidth=1.6,
            marker=style.marker,
            markevery=[-1],
            label=label,
        )
    for line in lines:
        ax.axhline(line, color=TRUTH.colour, linestyle=TRUTH.line, linewidth=TRUTH.width, label="truth")
    ends = [float(curve[-1, 0]) for curve in curves]
    if min(ends) > 0.0 and max(ends) > LOGARITHMIC * min(ends):
        _log_seconds(ax)
    ax.set(xlabel="time (s)", ylabel="objective per observation (nats)", ylim=_legible(curves, lines))
    legend(ax, [*histories, *(["truth"] if lines else [])])
    return ax


def _log_seconds(ax: Axes) -> None:
    """A logarithmic axis marked at 1, 2, 5, 10, ...: matplotlib's own labels overlap within a decade."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def _legible(curves: Sequence[Array], lines: Sequence[float]) -> tuple[float, float]:
    """Limits of the objective: all that each curve shows in the last nine tenths of its steps."""
    shown = np.concatenate([*(curve[len(curve) // 10 :, 1] for curve in curves), lines])
    shown = shown[np.isfinite(shown)]
    if not len(shown):
        return 0.0, 1.0
    margin = 0.06 * float(np.ptp(shown)) or 0.1
    return float(shown.min()) - margin, float(shown.max()) + margin
