"""A comparison as a table of text, as plain data for JSON, and as one HTML page with figures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refica import plot, report
from refica.compare import Certainty, Comparison, Entry, Score, stream
from refica.encoder import encode
from refica.model import NonlinearICA
from refica.posterior import posterior
from refica.vae import Gaps
from refica.validation import Array

__all__ = ["as_text", "page", "to_dict"]

COLUMNS = (
    "model",
    "train",
    "ELBO",
    "held-out",
    "difference (s.e.)",
    "error",
    "sigma2",
    "latents R²",
    "time",
    "status",
)

GAP_COLUMNS = (
    "gap of the bound",
    "observations",
    "log p(x) - ELBO",
    "approximation",
    "amortisation",
    "error",
)

SHOWN_GAPS = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Quantiles of the gap at which posteriors are drawn."""

PLOTTED = 2000
"""Most observations drawn in a figure."""

MANIFOLDS = "Data with the fitted manifolds and their noise bands of two standard deviations."
DENSITIES = "Histogram of the data with the marginal densities p(x) of the fitted models."
LATENT = "Posterior means of the latents under direct maximum likelihood."
ENCODED = "Means of q(z | x), as the encoder of the VAE gives them."
POSTERIORS = (
    "The VAE's true posterior p(z | x) and its encoder's q(z | x), for observations from the smallest gap "
    "log p(x) - ELBO = KL(q ‖ posterior) of {count} to the largest, at the {quantiles} % quantiles."
)
GENERATED = "As many draws from the model fitted by direct maximum likelihood as observations."
LEARNING = (
    "What each optimiser saw, per observation: of direct MLE log p(x) on its own nodes, of the VAE the "
    "ELBO at noise that stays the same throughout."
)


def as_text(comparison: Comparison) -> str:
    """Return the tables that `refica compare` prints."""
    lines = _lines(COLUMNS, _rows(comparison), left=(0, len(COLUMNS) - 1))
    gaps = _gap_rows(comparison)
    if gaps:
        lines += ["", *_lines(GAP_COLUMNS, gaps, left=(0,))]
    return "\n".join([_title(comparison), "", *lines, "", *_notes(comparison)])


def _lines(columns: tuple[str, ...], rows: list[tuple[str, ...]], left: tuple[int, ...]) -> list[str]:
    """Return a table as lines, with the columns ``left`` aligned left."""
    cells = [columns, *rows]
    widths = [max(len(row[j]) for row in cells) for j in range(len(columns))]
    lines = [
        "  ".join(
            cell.ljust(width) if j in left else cell.rjust(width)
            for j, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Return the results as plain values (schema "refica-comparison", version 1)."""
    data, settings = comparison.data, comparison.settings
    return {
        "schema": "refica-comparison",
        "version": 1,
        "data": {
            "name": data.name,
            "columns": list(data.columns),
            "observations": len(data.x),
            "simulated": data.truth is not None,
        },
        "settings": {name: getattr(settings, name) for name in settings.__dataclass_fields__},
        "held_out": comparison.held_out_kind,
        "baseline": baseline(comparison),
        "entries": [_entry_dict(comparison, entry) for entry in comparison.entries],
    }


def page(comparison: Comparison) -> str:
    """Return the report as one self-contained HTML page.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    blocks = [
        report.paragraph(_title(comparison)),
        report.table(COLUMNS, _rows(comparison), left=(0, len(COLUMNS) - 1)),
        *([report.table(GAP_COLUMNS, gaps, left=(0,))] if (gaps := _gap_rows(comparison)) else []),
        report.paragraph(" ".join(_notes(comparison))),
        *_figures(comparison),
        *_certainties(comparison),
        report.heading("How it ended"),
        *(
            report.paragraph(": ".join(filter(None, (entry.name, entry.status, entry.message))))
            for entry in comparison.entries
        ),
        report.heading("How the likelihoods were integrated"),
        *(
            report.paragraph(f"{entry.name}: {entry.train.message}")
            for entry in comparison.entries
            if entry.train
        ),
        *(
            report.paragraph(f"ELBO and gaps of the {entry.name}: {words}")
            for entry in comparison.entries
            if entry.tightness
            for words in dict.fromkeys((entry.tightness.elbo.message, entry.tightness.ledger.message))
        ),
    ]
    return report.render(report.Page(f"refica compare: {comparison.data.name}", tuple(blocks)))


def baseline(comparison: Comparison) -> str:
    """Return the entry that differences are taken to: the truth where there is one, else linear."""
    return "truth" if comparison.data.truth is not None else "linear"


def _title(comparison: Comparison) -> str:
    data, settings = comparison.data, comparison.settings
    return (
        f"{data.name}: {len(data.x)} observations of dimension {data.x.shape[1]}; decoder with "
        f"{settings.latent_dim} latent dimension{'s' if settings.latent_dim > 1 else ''}, "
        f"{settings.hidden} hidden units, {settings.activation}; seed {settings.seed}"
    )


def _notes(comparison: Comparison) -> list[str]:
    scores = f"train, held-out: log p(x) per observation in nats, held-out {comparison.held_out_kind};"
    difference = (
        f"difference: of held-out log p(x) to {baseline(comparison)}, paired, and its standard error;"
    )
    error = "error: mean estimated integration error, of log p(x) or of the gaps, in nats;"
    others = "sigma2: noise variance, in squared units of the data"
    if comparison.data.z is not None:
        others += "; latents R²: of posterior means, after the best orthogonal map"
    unsure = [
        f"{entry.name}: {len(score.per_observation) - score.converged} of {len(score.per_observation)} "
        "integrals are not to be trusted."
        for entry in comparison.entries
        for score in (entry.train, entry.held_out)
        if score is not None and score.converged < len(score.per_observation)
    ]
    starts = "direct MLE has the VAE's solution among its starts; its time is without the VAE's."
    undefined = [f"{entry.name}: {entry.message}." for entry in comparison.entries if entry.model is None]
    return [scores, *_bound_notes(comparison), difference, error, others + ";", starts, *undefined, *unsure]


def _bound_notes(comparison: Comparison) -> list[str]:
    """What the ELBO and its gaps are, and of which observations."""
    found = next((entry.tightness for entry in comparison.entries if entry.tightness), None)
    if found is None:
        return []
    N = max(len(entry.train.per_observation) for entry in comparison.entries if entry.train)
    count, gaps = len(found.elbo.per_observation), len(found.x)
    elbo = "the training data" if count == N else f"{count} of the training data, evenly spaced"
    rows = "" if gaps == N else f" ({gaps} of {N}, evenly spaced)"
    unsure = [] if found.converged else ["some ELBOs or gaps are not to be trusted;"]
    return [
        f"ELBO: the VAE's bound on log p(x) of {elbo};",
        f"gap of the bound: mean over training observations{rows} and its standard error;",
        "approximation: what the best diagonal Gaussian q of each x leaves; amortisation: the encoder's;",
        *unsure,
    ]


def _gap_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """The gaps of each VAE: means and standard errors."""
    found = [(entry.name, entry.tightness.ledger) for entry in comparison.entries if entry.tightness]
    return [
        (
            name,
            str(len(ledger.log_p)),
            *(f"{mean:.4f} ({error:.4f})" for mean, error in _gap_means(ledger).values()),
            f"{ledger.error.mean():.0e}",
        )
        for name, ledger in found
    ]


def _gap_means(ledger: Gaps) -> dict[str, tuple[float, float]]:
    """Means and standard errors of log p(x) - ELBO and of its two parts."""
    parts = {
        "total": ledger.log_p - ledger.elbo,
        "approximation": ledger.approximation,
        "amortisation": ledger.amortisation,
    }
    root = math.sqrt(len(ledger.log_p))
    return {name: (float(d.mean()), float(d.std(ddof=1) / root)) for name, d in parts.items()}


def _rows(comparison: Comparison) -> list[tuple[str, ...]]:
    return [_row(comparison, entry) for entry in comparison.entries]


def _row(comparison: Comparison, entry: Entry) -> tuple[str, ...]:
    difference = comparison.difference(entry, baseline(comparison))
    errors = [score.error for score in (entry.train, entry.held_out) if score]
    return (
        entry.name,
        _mean(entry.train),
        _mean(entry.tightness.elbo if entry.tightness else None),
        _mean(entry.held_out),
        "" if difference is None else f"{difference[0]:+.4f} ({difference[1]:.4f})",
        f"{max(errors):.0e}" if errors else "",
        f"{entry.model.sigma2:.4g}" if entry.model else "",
        f"{entry.recovery.procrustes_r2:.4f}" if entry.recovery else "",
        f"{entry.seconds:.1f} s" if math.isfinite(entry.seconds) else "",
        entry.status,
    )


def _mean(score: Score | None) -> str:
    return "" if score is None else f"{score.mean:.4f}"


def _entry_dict(comparison: Comparison, entry: Entry) -> dict[str, Any]:
    difference = comparison.difference(entry, baseline(comparison))
    return {
        "name": entry.name,
        "status": entry.status,
        "message": entry.message,
        "seconds": entry.seconds,
        "sigma2": entry.model.sigma2 if entry.model else None,
        "train": _score_dict(entry.train),
        "elbo": _score_dict(entry.tightness.elbo if entry.tightness else None),
        "gaps": _gaps_dict(entry.tightness.ledger) if entry.tightness else None,
        "held_out": _score_dict(entry.held_out),
        "held_out_difference": None
        if difference is None
        else {"mean": difference[0], "standard_error": difference[1]},
        "certainty": _certainty_dict(entry.certainty),
        "recovery": entry.recovery.to_dict() if entry.recovery else None,
        "history": [step._asdict() for step in entry.fit.history] if entry.fit else [],
    }


def _score_dict(score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    return {
        "mean": score.mean,
        "standard_error": score.standard_error,
        "mean_integration_error": score.error,
        "observations": len(score.per_observation),
        "converged": score.converged,
        "integrator": score.message,
    }


def _certainties(comparison: Comparison) -> list[report.Block]:
    """Standard errors and the score-centrality test, in words."""
    return [
        block
        for entry in comparison.entries
        if entry.certainty and entry.model
        for block in (
            report.heading("How sure"),
            report.paragraph(
                f"{entry.name}: log sigma2 = {math.log(entry.model.sigma2):.3f}, standard error "
                f"{entry.certainty.errors.log_sigma2:.3g}; {entry.certainty.errors.message}."
            ),
            report.paragraph(
                f"The score-centrality test of simulator, likelihood and gradient "
                f"{'is passed' if entry.certainty.centrality.passed() else 'FAILS'}: "
                f"{entry.certainty.centrality.message}."
            ),
        )
    ]


def _certainty_dict(found: Certainty | None) -> dict[str, Any] | None:
    if found is None:
        return None
    test = found.centrality.test
    return {
        "log_sigma2_standard_error": found.errors.log_sigma2,
        "rank": found.errors.rank,
        "score_centrality": {
            "passed": found.centrality.passed(),
            "p_value": test.p_value,
            "slope_error": found.centrality.slope_error,
            "observations": found.centrality.size,
        },
    }


def _gaps_dict(ledger: Gaps) -> dict[str, Any]:
    means = {
        name: {"mean": mean, "standard_error": error} for name, (mean, error) in _gap_means(ledger).items()
    }
    return {
        **means,
        "observations": len(ledger.log_p),
        "mean_error": float(ledger.error.mean()),
        "converged": int(ledger.converged.sum()),
        "integrator": ledger.message,
    }


def _figures(comparison: Comparison) -> list[report.Block]:
    """The data with the fitted manifolds, the latent space, generated data, learning curves."""
    data = comparison.data
    x = data.x[:PLOTTED]
    known = data.z is not None and data.z.shape[1] == comparison.settings.latent_dim
    z = data.z[:PLOTTED] if known and data.z is not None else None
    models = {entry.name: entry.model for entry in comparison.entries if entry.model is not None}
    histories = {entry.name: entry.fit.history for entry in comparison.entries if entry.fit}
    truth = next((e.train.mean for e in comparison.entries if e.name == "truth" and e.train), None)
    rng = stream(comparison.settings.seed, "generated")
    chosen = models["direct MLE"]
    return [
        report.heading("The data and the fitted manifolds"),
        _manifolds(models, x, data.columns),
        report.heading("The latent space"),
        _figure(plot.latent(posterior(chosen, x).mean, truth=z), LATENT),
        *_encoded(comparison, x, z),
        report.heading("Generated against observed data"),
        _figure(plot.generated(chosen, x, rng, names=data.columns), GENERATED),
        report.heading("Learning curves"),
        _figure(plot.learning_curves(histories, reference=truth), LEARNING),
    ]


def _encoded(comparison: Comparison, x: Array, z: Array | None) -> list[report.Block]:
    """The latent space as the VAE's encoder sees it, and how its q differ from the posteriors."""
    entry = next((entry for entry in comparison.entries if entry.tightness), None)
    if entry is None or entry.tightness is None or entry.fit is None or entry.fit.vae is None:
        return []
    vae, tightness = entry.fit.vae, entry.tightness
    blocks = [_figure(plot.latent(encode(vae.encoder, vae.phi, x)[0], truth=z, name="encoder mean"), ENCODED)]
    if vae.model.latent_dim <= 2:
        gap = tightness.ledger.log_p - tightness.ledger.elbo
        rank = np.unique(np.round(np.array(SHOWN_GAPS) * (len(gap) - 1)).astype(int))
        rows = np.argsort(gap)[rank]
        titles = [f"gap {gap[row]:.2g} nats" for row in rows]
        quantiles = ", ".join(f"{100 * each:.0f}" for each in SHOWN_GAPS)
        png = plot.figure_png(plot.posterior_panels(vae, tightness.x[rows], titles))
        caption = POSTERIORS.format(count=len(gap), quantiles=quantiles)
        blocks += [report.heading("Posteriors"), report.figure(png, alt=caption, caption=caption)]
    return blocks


def _manifolds(models: dict[str, NonlinearICA], x: Array, names: tuple[str, ...]) -> report.Block:
    """All curves in one figure; surfaces in a panel each, where they would hide one another."""
    if x.shape[1] == 1:
        return _figure(plot.manifold(models, x, names=names), DENSITIES)
    if max(model.latent_dim for model in models.values()) == 1:
        return _figure(plot.manifold(models, x, names=names), MANIFOLDS)
    png = plot.figure_png(plot.manifold_panels(models, x, names=names))
    return report.figure(png, alt=MANIFOLDS, caption=MANIFOLDS)


def _figure(axes: Any, caption: str) -> report.Block:
    return report.figure(plot.figure_png(axes.figure), alt=caption, caption=caption)
