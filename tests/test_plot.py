"""Figures say what they show: labels, legends, limits and shapes; and leave nothing behind."""

import builtins
import io
import struct
import subprocess
import sys

import numpy as np
import pytest

from refica import plot
from refica.decoders import MLP, Polynomial
from refica.exact import probabilistic_pca
from refica.examples import example
from refica.fit.result import Step
from refica.marginal import log_likelihood
from refica.model import NonlinearICA
from refica.plot import canvas
from refica.plot.data import _swept_disc

DIMENSIONS = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4), (3, 4)]  # m, n


def a_model(m, n, sigma2=0.01, seed=0):
    decoder = MLP((m, 4, n))
    return NonlinearICA(decoder, decoder.init(seed), sigma2)


def a_sample(m, n, size=60):
    """A model, its latents and data: read-only, so that a figure that writes to them fails."""
    model = a_model(m, n)
    z, x = model.sample(size, 1)
    z.setflags(write=False)
    x.setflags(write=False)
    return model, z, x


def histories():
    """Two fits: one quick, one slow and from far below."""
    quick = [Step(i, -1.5 - 0.5**i, 0.01, 0.1 * (i + 1)) for i in range(10)]
    slow = [Step(i, -2.0 - 1e6 * 0.1**i, 0.01, 1.0 + i) for i in range(100)]
    return {"direct MLE": quick, "VAE": slow}


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def note_of(ax):
    return ax.get_legend().get_title().get_text()


def pixels(figure):
    """The drawn figure as an array (height, width, 4) of bytes."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


def drawn(ax):
    """The axes, drawn, with a figure that pyplot has not seen and that makes a PNG image."""
    image = plot.figure_png(ax.figure, dpi=40)
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    return ax


@pytest.mark.parametrize(("m", "n"), DIMENSIONS)
def test_the_manifold_in_every_dimension(m, n):
    model, _z, x = a_sample(m, n)
    models = {"truth": model, "direct MLE": a_model(m, n, 0.02, seed=2)}
    if n > m:
        models["linear"] = probabilistic_pca(x, m)
    ax = drawn(plot.manifold(models, x))
    assert legend_of(ax) == ["observed", *models]
    if n == 1:
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("x1", "density")
    elif n == 2:
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("x1", "x2")
    else:
        assert ax.get_xlabel().startswith("PC 1 (")
        assert ax.get_ylabel().startswith("PC 2 (")
    assert ("2σ of the curve" in note_of(ax)) == (m == 1 and n > 1)
    assert ("2σ of g(0)" in note_of(ax)) == (m > 1 and n > 1)
    assert ("other coordinates 0" in note_of(ax)) == (m > 2)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 2), (2, 4)])
def test_the_panels_have_one_model_each(m, n):
    model, _z, x = a_sample(m, n)
    models = {f"fit {k}": a_model(m, n, seed=k) for k in range(3)}
    figure = plot.manifold_panels(models, x)
    assert plot.figure_png(figure, dpi=40)
    assert [ax.get_title() for ax in figure.axes] == list(models)
    assert figure.get_supxlabel()
    assert figure.get_supylabel()
    assert "observed" in figure.get_suptitle()
    assert len({ax.get_xlim() + ax.get_ylim() for ax in figure.axes}) == 1
    assert len(plot.manifold_panels({"a": model}, x).axes) == 1


@pytest.mark.parametrize(("m", "n"), DIMENSIONS)
def test_generated_data_in_every_dimension(m, n):
    model, _z, x = a_sample(m, n)
    ax = drawn(plot.generated(model, x, 0))
    assert legend_of(ax) == ["observed", "generated"]
    if n > 1:
        observed, generated = (collection.get_offsets() for collection in ax.collections)
        assert len(observed) == len(generated) == len(x)
        assert not np.array_equal(observed, generated)
        low, high = np.array([ax.get_xlim(), ax.get_ylim()]).T
        for points in (observed, generated):
            assert (points > low).all()
            assert (points < high).all()


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("known", [False, True])
def test_the_latent_space_in_every_dimension(m, known):
    _model, z, _x = a_sample(m, 2)
    ax = drawn(plot.latent(0.9 * z, truth=z if known else None))
    if m > 1:
        assert legend_of(ax) == ["posterior means", "prior: 1, 2, 3 standard deviations"]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("posterior mean of z1", "posterior mean of z2")
        for radius, circle in zip((1.0, 2.0, 3.0), ax.lines, strict=True):
            assert np.allclose(np.hypot(*circle.get_data()), radius)
        assert ("true z1" in [other.get_ylabel() for other in ax.figure.axes]) == known
    elif known:
        assert legend_of(ax) == ["observations", "mean = truth"]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("true z", "posterior mean of z")
    else:
        assert legend_of(ax) == ["posterior means", "prior N(0, 1)"]
    assert ("R² = 0.9" in note_of(ax)) == known


@pytest.mark.parametrize("m", [1, 2, 3])
def test_the_orthogonal_ambiguity_is_removed(m):
    _model, z, _x = a_sample(m, 2)
    Q, _R = np.linalg.qr(np.random.default_rng(3).standard_normal((m, m)))
    ax = plot.latent(-z @ Q, truth=z)
    assert "R² = 1.0000" in note_of(ax)
    shown = ax.collections[0].get_offsets()
    assert np.allclose(shown, z[:, [0, 0]] if m == 1 else z[:, :2])
    assert "R² = 1.0000" not in note_of(plot.latent(-z @ Q + 0.1, truth=z))


def test_learning_curves_show_their_ends():
    ax = drawn(plot.learning_curves(histories(), reference=-1.4))
    assert legend_of(ax) == ["direct MLE", "VAE", "truth"]
    assert "(s)" in ax.get_xlabel()
    assert "(nats)" in ax.get_ylabel()
    low, high = ax.get_ylim()
    assert low < -2.0  # where the slow one ends ...
    assert low > -5.0  # ... and not where it came from
    assert high > -1.4
    assert ax.get_xscale() == "log"  # 1 s against 100 s
    assert len(plot.learning_curves({"VAE": histories()["VAE"]}).lines) == 1


def test_learning_curves_of_odd_histories():
    for objective in (-1.0, np.nan, -np.inf):
        ax = drawn(plot.learning_curves({"a": [Step(0, objective, 0.01, 0.0)]}))
        assert np.isfinite(ax.get_ylim()).all()
    partly = [Step(i, value, 0.01, 1.0 * i) for i, value in enumerate([-3.0, np.nan, -2.0, -np.inf])]
    low, high = plot.learning_curves({"a": partly}).get_ylim()
    assert -4.0 < low < -3.0
    assert -2.0 < high < -1.0
    linear = {"a": partly, "b": [Step(0, -1.0, 0.01, 2.0)]}
    assert plot.learning_curves(linear).get_xscale() == "linear"


def test_the_marks_of_a_curve_lie_where_z_is_an_integer():
    model, _z, x = a_sample(1, 2)
    (line,) = plot.manifold({"truth": model}, x).lines
    marked = np.column_stack(line.get_data())[line.get_markevery()]
    assert np.allclose(marked, model.decoder(model.theta, np.arange(-2.0, 3.0)[:, None]), atol=1e-12)


def test_the_density_is_that_of_the_model():
    model, _z, x = a_sample(1, 1)
    (line,) = plot.manifold({"truth": model}, x).lines
    grid, p = line.get_data()
    assert np.allclose(p, np.exp(log_likelihood(model, grid[:, None]).per_observation))


def test_the_projection_is_on_principal_components():
    x = np.random.default_rng(0).standard_normal((500, 4)) * [0.1, 3.0, 0.2, 1.0] + 5.0
    view = canvas.view_of(x, ["a", "b", "c", "d"])
    # Not exactly the axes, since the sample's covariance is not quite diagonal.
    assert np.allclose(view.axes, [[0, 0], [1, 0], [0, 0], [0, 1]], atol=0.1)
    assert np.allclose(view.axes.T @ view.axes, np.eye(2))
    shares = np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1][:2] / np.trace(np.cov(x.T))
    assert view.labels == tuple(f"PC {j + 1} ({shares[j]:.0%} of the variance)" for j in range(2))
    identity = canvas.view_of(x[:, :2], ["a", "b"])
    assert np.array_equal(identity(x[:, :2]), x[:, :2])
    assert identity.labels == ("a", "b")


def test_coordinates_have_their_names():
    model, _z, x = a_sample(1, 2)
    for ax in (
        plot.manifold({"a": model}, x, names=("u (cm)", "v")),
        plot.generated(model, x, 0, names=("u (cm)", "v")),
    ):
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("u (cm)", "v")
    assert plot.manifold_panels({"a": model}, x, names=["u (cm)", "v"]).get_supxlabel() == "u (cm)"
    single, _z, x = a_sample(1, 1)
    assert plot.manifold({"a": single}, x, names=["u (cm)"]).get_xlabel() == "u (cm)"


# ---------------------------------------------------------------------------------------------------
# The band
# ---------------------------------------------------------------------------------------------------

FOLDED = np.array([[-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.5, 0.0], [0.0, 0.0], [0.0, 0.0]])


def coverage(path, alpha):
    """Share of [-2, 2]² that a filled path covers, and how many levels of opacity it has inside."""
    from matplotlib.patches import PathPatch

    figure = canvas.new_figure(4.0, 4.0)
    figure.set_layout_engine("none")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-2, 2), ylim=(-2, 2))
    ax.set_axis_off()
    ax.add_patch(PathPatch(path, facecolor="black", edgecolor="none", alpha=alpha, antialiased=False))
    grey = pixels(figure)[..., 0]
    return np.mean(grey < 255), len(np.unique(grey[grey < 255]))


def test_the_band_of_a_folded_curve_is_a_union():
    # Back and forth on a segment of length 2: a stadium of area 2 · 2r + π r², evenly tinted.
    for points in (FOLDED, FOLDED[::-1], FOLDED[:, ::-1]):
        covered, levels = coverage(_swept_disc(points, 0.5), alpha=0.2)
        assert covered == pytest.approx((2.0 + np.pi * 0.25) / 16.0, rel=0.01)
        assert levels == 1


def test_planted_faults_of_the_band_are_noticed():
    from matplotlib.path import Path

    area = (2.0 + np.pi * 0.25) / 16.0
    good = _swept_disc(FOLDED, 0.5)
    # Rectangles the other way round cancel the discs; without rectangles the curve has gaps.
    sides = good.vertices[: 5 * (len(FOLDED) - 1)].reshape(-1, 5, 2)
    turned = np.concatenate([sides[:, ::-1].reshape(-1, 2), good.vertices[sides.size // 2 :]])
    assert coverage(Path(turned, good.codes), 0.2)[0] < 0.95 * area
    discs = Path(good.vertices[sides.size // 2 :], good.codes[sides.size // 2 :])
    assert coverage(discs, 0.2)[0] < 0.95 * area


def test_the_band_is_two_sigma_wide():
    decoder = MLP((1, 2))
    model = NonlinearICA(decoder, [1.0, 0.0, 0.0, 0.0], sigma2=0.04)  # the line x2 = 0
    ax = plot.manifold({"a": model}, model.sample(50, 0)[1])
    (band,) = ax.patches
    low, high = band.get_path().get_extents().get_points()
    assert (low[1], high[1]) == pytest.approx((-0.4, 0.4))
    assert (low[0], high[0]) == pytest.approx((-3.9, 3.9))


# ---------------------------------------------------------------------------------------------------
# Odd data, bad arguments, nothing left behind
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 20])
def test_constant_data_can_be_drawn(n, size):
    model = a_model(1, n)
    x = np.full((size, n), 3.0)
    axes = [drawn(plot.manifold({"a": model}, x)), drawn(plot.generated(model, x, 0))]
    if n < 3:
        axes.append(drawn(plot.latent(np.zeros((size, n)))))
    for ax in axes:  # an axis of no length could not be drawn
        for low, high in (ax.get_xlim(), ax.get_ylim()):
            assert -np.inf < low < high < np.inf


def test_a_far_outlier_takes_neither_bins_nor_shape():
    x = np.append(np.random.default_rng(0).standard_normal(999), 1e9)
    assert len(canvas.bins(x)) <= canvas.MOST_BINS + 1
    assert len(canvas.bins(x[:-1])) < 60
    drawn(plot.manifold({"a": a_model(1, 1)}, x[:-1, None]))
    wide = np.column_stack([x, np.arange(1000.0)])
    ax = drawn(plot.manifold({"a": a_model(1, 2)}, wide))
    assert ax.get_aspect() == "auto"  # 1e9 : 1e3 on equal scales would be a line
    assert plot.manifold({"a": a_model(1, 2)}, a_sample(1, 2)[2]).get_aspect() == 1.0


def test_the_given_axes_are_used():
    model, z, x = a_sample(2, 2)
    figure = canvas.new_figure(9.0, 6.0)
    axes = figure.subplots(2, 2).ravel()
    assert plot.manifold({"a": model}, x, ax=axes[0]) is axes[0]
    assert plot.generated(model, x, 0, ax=axes[1]) is axes[1]
    assert plot.latent(z, truth=z, ax=axes[2]) is axes[2]
    assert plot.learning_curves(histories(), ax=axes[3]) is axes[3]
    assert len(figure.axes) == 5  # and one for the colour bar
    assert plot.figure_png(figure, dpi=40)


def test_a_figure_makes_the_same_png_each_time():
    model, _z, x = a_sample(1, 2)
    ax = plot.manifold({"a": model}, x)
    images = [plot.figure_png(ax.figure), plot.figure_png(ax.figure)]
    images += [plot.figure_png(plot.generated(model, x, rng).figure) for rng in (0, np.random.default_rng(0))]
    assert images[0] == images[1]
    assert images[2] == images[3]
    width, height = struct.unpack(">II", images[0][16:24])
    assert 600 < width < 1200  # about 6.4 inches of 150 pixels
    assert height > 300
    assert len(plot.figure_png(plot.manifold({"a": model}, x).figure, dpi=50)) < len(images[0])


def test_bad_arguments_are_refused():
    model, z, x = a_sample(1, 2)
    with pytest.raises(ValueError, match="models must be one or more"):
        plot.manifold({}, x)
    with pytest.raises(ValueError, match=r"models must have the same data_dim, got \{'a': 2, 'b': 4\}"):
        plot.manifold({"a": model, "b": a_model(1, 4)}, x)
    with pytest.raises(ValueError, match=r"x must have shape \(N, 2\)"):
        plot.manifold({"a": model}, x[:, :1])
    with pytest.raises(ValueError, match="names must be 2, one for each coordinate, got 1"):
        plot.generated(model, x, 0, names=["u"])
    with pytest.raises(TypeError, match="rng must be"):
        plot.generated(model, x, None)
    with pytest.raises(ValueError, match="x must be finite"):
        plot.manifold_panels({"a": model}, x * np.nan)
    with pytest.raises(ValueError, match=r"truth must have shape \(60, 1\), got \(60, 2\)"):
        plot.latent(z, truth=x)
    with pytest.raises(ValueError, match="histories must be one or more"):
        plot.learning_curves({})
    with pytest.raises(ValueError, match="at least one step, got none for 'VAE'"):
        plot.learning_curves({"VAE": []})
    with pytest.raises(ValueError, match="reference must be a finite number"):
        plot.learning_curves(histories(), reference=np.nan)


def test_styles_tell_models_apart_without_colour():
    every = [*canvas.NAMED.values(), *canvas.SPARE]
    assert len({(style.line, style.marker) for style in every}) == len(every)
    assert canvas.styles(["VAE", "mine", "truth", "other"]) == [
        canvas.NAMED["VAE"],
        canvas.SPARE[0],
        canvas.NAMED["truth"],
        canvas.SPARE[1],
    ]
    assert len(canvas.styles(map(str, range(20)))) == 20


def test_long_legends_take_more_lines():
    model, _z, x = a_sample(1, 2)
    short = plot.manifold({"a": model, "b": model}, x).get_legend()
    long = plot.manifold({word * 10: model for word in ("abc", "def", "ghi")}, x).get_legend()
    assert (short._ncols, long._ncols) == (3, 2)


def test_the_legend_covers_no_data():
    for ax in (
        plot.manifold({"a": example("tanh").model}, example("tanh").simulate()[1]),
        plot.learning_curves(histories()),
    ):
        ax.figure.canvas.draw()
        assert ax.get_legend().get_window_extent().y0 >= ax.get_window_extent().y1


def test_matplotlib_is_asked_for_by_name_if_it_is_missing(monkeypatch):
    model, z, x = a_sample(1, 2)
    plain = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for draw in (
        lambda: plot.manifold({"a": model}, x),
        lambda: plot.manifold_panels({"a": model}, x),
        lambda: plot.generated(model, x, 0),
        lambda: plot.latent(z),
        lambda: plot.learning_curves(histories()),
    ):
        with pytest.raises(ImportError, match=r'pip install "refica\[plot\]"'):
            draw()


def test_neither_matplotlib_on_import_nor_pyplot_ever():
    """A fresh interpreter shows what comes along."""
    code = """
import sys
from refica import plot
print("matplotlib" in sys.modules)
from refica.examples import example
setting = example("tanh")
z, x = setting.simulate(50)
plot.figure_png(plot.manifold({"a": setting.model}, x).figure)
plot.figure_png(plot.generated(setting.model, x, 0).figure)
plot.figure_png(plot.latent(z, truth=z).figure)
print("matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "True", "False"]


def test_pyplot_knows_no_figure_of_ours():
    from matplotlib import pyplot

    model, z, x = a_sample(1, 2)
    before = pyplot.get_fignums()
    plot.manifold({"a": model}, x)
    plot.latent(z)
    assert pyplot.get_fignums() == before
    figure, ax = pyplot.subplots()  # the caller's own is left to the caller
    assert plot.generated(model, x, 0, ax=ax) is ax
    assert pyplot.get_fignums() == [*before, figure.number]
    pyplot.close(figure)


def test_every_example_can_be_drawn():
    for name in ("tanh", "polynomial-1-1", "sigmoid", "polynomial-2-4"):
        setting = example(name)
        x = setting.simulate(100)[1]
        ax = drawn(plot.manifold({"truth": setting.model}, x))
        assert legend_of(ax) == ["observed", "truth"]
    quadratic = NonlinearICA(Polynomial(1, 2, 2), np.zeros(6), 0.01)  # a curve that stands still
    ax = drawn(plot.manifold({"a": quadratic}, quadratic.sample(20, 0)[1]))
    assert legend_of(ax) == ["observed", "a"]


def test_a_png_can_be_read_back():
    from matplotlib.image import imread

    model, _z, x = a_sample(1, 2)
    image = imread(io.BytesIO(plot.figure_png(plot.manifold({"a": model}, x).figure, dpi=60)))
    assert image.ndim == 3
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 10
