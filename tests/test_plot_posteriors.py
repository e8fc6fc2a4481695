"""Posterior figures: curves are densities, contours enclose the probability they say, and all is labelled."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import integrate
from test_vae import exact_posterior_vae

import refica as ri
from refica import plot
from refica.encoder import encode
from refica.plot import posteriors
from refica.posterior import posterior

AREA = 5e-3  # of a density on some 3000 points, cut off at a thousandth of its peak
SHARE = 0.02  # of 4000 draws inside a contour: 4 standard errors at 0.9
LEVEL = 0.02  # of a contour on a grid of 220 points per axis


def saddle(sigma2=0.3):
    """m = 2: a bent surface with an encoder that is off."""
    decoder, encoder = ri.MLP((2, 4, 3)), ri.MLP((3, 4))
    model = ri.NonlinearICA(decoder, decoder.init(1), sigma2)
    return ri.VAE(model, encoder, 0.3 * encoder.init(2)), model.sample(1, 3)[1]


def square(sigma2=1e-3):
    """m = 1: z² = 1, a posterior with narrow peaks at ±1, of which q has one."""
    model = ri.NonlinearICA(ri.Polynomial(1, 1, 2), [0.0, 0.0, 1.0], sigma2)
    return ri.VAE(model, ri.MLP((1, 2)), [0.0, 0.0, 1.0, 2.0 * math.log(0.02)]), [[1.0]]


def area(line):
    z, density = line.get_data()
    return integrate.trapezoid(density, z)


def test_both_curves_are_densities(monkeypatch):
    ax = plot.posterior(*square())
    true, q = ax.get_lines()
    assert [line.get_label() for line in (true, q)] == [posteriors.TRUE, posteriors.APPROXIMATE]
    assert area(true) == pytest.approx(1.0, abs=AREA)
    assert area(q) == pytest.approx(1.0, abs=AREA)
    z, density = true.get_data()
    left = z < 0
    assert integrate.trapezoid(density[left], z[left]) == pytest.approx(0.5, abs=AREA)
    low, high = ax.get_xlim()
    assert -1.2 < low < -1.0 < 1.0 < high < 1.2  # both peaks, and no more
    assert ax.get_ylim()[1] > max(density)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z", "density")
    # p(x, z) in place of p(z | x) would be seen
    zero = SimpleNamespace(per_observation=np.zeros(1))
    monkeypatch.setattr(posteriors, "log_likelihood", lambda *_, **__: zero)
    assert abs(area(plot.posterior(*square()).get_lines()[0]) - 1.0) > 0.1


def inside(path, points):
    return path.contains_points(points).mean()


def test_contours_enclose_the_probability_they_say():
    vae, x = saddle()
    ax = plot.posterior(vae, x)
    drawn = posterior(vae.model, x).sample(4000, 0)[:, 0]
    lines = next(c for c in ax.collections if len(c.get_paths()) == 2)
    for path, mass in zip(lines.get_paths(), (0.9, 0.5), strict=True):
        assert inside(path, drawn) == pytest.approx(mass, abs=SHARE)
    mu, log_s2 = (part[0] for part in encode(vae.encoder, vae.phi, x))
    q = mu + np.exp(0.5 * log_s2) * np.random.default_rng(0).standard_normal((4000, 2))
    for ellipse, mass in zip(ax.get_lines(), posteriors.MASSES, strict=False):
        assert inside(ellipse.get_path(), q) == pytest.approx(mass, abs=SHARE)
    assert "lines enclose 50% and 90% of each" in ax.get_legend().get_title().get_text()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z1", "z2")


def test_contours_coincide_where_q_is_the_posterior():
    W = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 2)))[0] * [2.0, 1.0]
    vae, _ = exact_posterior_vae(W, np.zeros(4), 0.1)
    ax = plot.posterior(vae, np.ones(4))
    lines = next(c for c in ax.collections if len(c.get_paths()) == 2)
    inner, outer = (line.get_xydata() for line in ax.get_lines()[:2])
    scale = np.ptp(outer, axis=0)
    for path, ellipse in zip(lines.get_paths(), (outer, inner), strict=True):
        apart = np.linalg.norm((path.vertices[:, None] - ellipse) / scale, axis=2).min(axis=1)
        assert apart.max() <= LEVEL


@pytest.mark.parametrize(("case", "labels"), [(square, ("z", "density")), (saddle, ("z1", "z2"))])
def test_panels_have_their_titles_and_labels(case, labels):
    vae, x = case()
    x = np.repeat(x, 4, axis=0)
    titles = [f"gap {k}" for k in range(4)]
    figure = plot.posterior_panels(vae, x, titles)
    assert [ax.get_title() for ax in figure.axes] == titles
    assert (figure.get_supxlabel(), figure.get_supylabel()) == labels
    words = " ".join(text.get_text() for text in figure.legends[0].get_texts())
    assert posteriors.TRUE in words
    assert posteriors.APPROXIMATE in words
    assert plot.figure_png(figure, dpi=40).startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_refused():
    vae, x = saddle()
    with pytest.raises(ValueError, match="x must be one observation, got 2"):
        plot.posterior(vae, np.repeat(x, 2, axis=0))
    with pytest.raises(ValueError, match="titles must be 1, one for each observation, got 2"):
        plot.posterior_panels(vae, x, ["a", "b"])
    decoder, encoder = ri.MLP((3, 3)), ri.MLP((3, 6))
    three = ri.VAE(ri.NonlinearICA(decoder, decoder.init(0), 1.0), encoder, encoder.init(0))
    with pytest.raises(ValueError, match="drawn for latent_dim 1 and 2, got 3"):
        plot.posterior(three, np.ones(3))
