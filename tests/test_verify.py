"""`refica verify`: every formula holds, by routes that are independent; a fault turns the right line red; the
report as text, JSON and a page that stands alone."""

import html.parser
import json
import math

import numpy as np
import pytest

import refica as ri
from refica.cli import CHECK_FAILED, OK, USAGE, main
from refica.cli import verify as verify_command
from refica.report import POLICY
from refica.testing import faults
from refica.verify import as_text, page, results, to_dict
from refica.verify import cases as cases_module
from refica.verify.findings import (
    Check,
    Comparison,
    Note,
    Observed,
    Tolerance,
    relative,
    slope_of,
    summarised,
)
from refica.verify.integrators import GRADIENT, LOG_P
from refica.verify.remarks import remarks
from refica.verify.routes import WITHOUT_AUTOGRAD
from refica.verify.run import CHECKS, _run

FORMULAS = {
    *("sampling", "joint", "marginal", "integrates-to-one", "objective"),
    *("theta-1", "theta-2", "theta-3", "theta-4", "theta-in-refica"),
    *("sigma2-1", "sigma2-2", "sigma2-3", "sigma2-in-refica"),
    *("logarithm", "fisher", "lower-bound", "kl", "elbo", "reparameterised"),
}
"""What the documents state, and what must be among the checks."""


@pytest.fixture(scope="module")
def report():
    """With every kind of decoder but some activations, and another seed than the command line takes."""
    return ri.verify(models=9, seed=7)


@pytest.fixture(scope="module")
def broken():
    with faults.plant("log-sigma2-gradient"):
        return ri.verify(models=1)


# -- what is checked -----------------------------------------------------------------------------------


def test_every_formula_of_the_documents_holds(report):
    assert report.passed, as_text(report)
    assert {finding.check.name for finding in report.findings} >= FORMULAS
    assert len({check.name for check in CHECKS}) == len(CHECKS)


@pytest.mark.parametrize("name", sorted(FORMULAS - {"sampling", "integrates-to-one"}))
def test_each_is_checked_by_two_routes_at_least(report, name):
    finding = next(each for each in report.findings if each.check.name == name)
    assert len({(each.left, each.right) for each in finding.comparisons}) >= 2


def test_each_says_where_it_stands_and_how_it_was_compared(report):
    for finding in report.findings:
        check = finding.check
        assert check.formula
        assert check.source
        assert check.code
        assert check.tex.startswith("$")
        assert check.tex.endswith("$")
        for each in finding.comparisons:
            assert each.tolerance.reason
            assert 0.0 <= each.discrepancy <= each.tolerance.value
            assert each.cases >= 1


def test_the_remarks_are_those_of_mathematics_section_2():
    found = {remark.name: remark for remark in remarks()}
    wanted = {"unbounded", "another-maximiser", "descent", "sigma", "clash-of-n", "exchange"}
    assert set(found) >= wanted | {"orthogonal", "nonlinear", "distributions"}
    assert all(remark.confirmed for remark in found.values())
    assert [float(row[1]) for row in found["unbounded"].rows][1:] == [1592.0, 1.592e7]


def test_the_numbers_of_the_worked_example_are_proved_ones():
    """Against the digits in the tests' oracles, which were proved elsewhere."""
    import oracles

    for name, values in LOG_P.items():
        for sigma2, digits in values.items():
            assert digits == oracles.DIGITS[name][oracles.SIGMA2.index(sigma2)]
    assert GRADIENT[12] == pytest.approx(-1.339655317087982, rel=1e-15)
    assert GRADIENT[0] == pytest.approx(-0.3230903496488192, rel=1e-15)


# -- what a checker must do ----------------------------------------------------------------------------


def test_relative_error_sees_shapes_scales_and_nan():
    assert relative([1.0, 2.0], [1.0, 2.5]) == pytest.approx(0.2)
    assert relative([0.1], [0.0], 10.0) == pytest.approx(0.01)
    assert relative(np.zeros(2), np.zeros(3)) == math.inf
    assert relative(0.0, 0.0) == 0.0
    assert math.isnan(relative([math.nan], [1.0]))


def test_a_comparison_with_nan_fails():
    assert not Comparison("a", "b", math.nan, Tolerance(1.0, "why"), 1).passed


def test_cases_are_put_together_by_their_routes():
    why = Tolerance(1.0, "why")
    found = summarised(
        [Observed("a", "b", 0.1, why), Observed("a", "b", 0.3, why), Observed("a", "c", 0.2, why)]
    )
    assert [(each.right, each.discrepancy, each.cases) for each in found] == [("b", 0.3, 2), ("c", 0.2, 1)]
    assert math.isnan(
        summarised([Observed("a", "b", 0.1, why), Observed("a", "b", math.nan, why)])[0].discrepancy
    )


def test_a_failed_slope_fails():
    from refica.testing import TaylorSlope

    assert slope_of("f", TaylorSlope(3.0, 0.0, True)).discrepancy == 0.0
    observed = slope_of("f", TaylorSlope(1.0, 0.0, False))
    assert observed.discrepancy > observed.tolerance.value


def check_of(run):
    return Check("section", "name", "title", "a = a", "$a = a$", "nowhere", ("model.log_prior",), run)


def test_an_exception_and_an_empty_check_are_failures():
    setting = cases_module.Setting((), None, 0)

    def raises(setting):
        yield Note("before")
        raise ValueError("a shape that does not fit")

    found = _run(check_of(raises), setting)
    assert not found.passed
    assert found.error == "ValueError: a shape that does not fit"
    assert found.notes == ("before",)
    assert not _run(check_of(lambda setting: iter(())), setting).passed
    assert not _run(check_of(raises), RuntimeError("no models")).passed


# -- a fault -------------------------------------------------------------------------------------------


def test_a_fault_turns_the_right_line_red(broken):
    assert not broken.passed
    assert broken.failed[0].check.name == "sigma2-in-refica"
    text = as_text(broken)
    assert "FAIL sigma2-in-refica" in text
    assert "ok   theta-in-refica" in text
    assert "look first at sigma2-in-refica, computed by likelihood._sigma2_derivative" in text
    assert "remarks sigma, clash-of-n" in text


# -- how it is shown -----------------------------------------------------------------------------------


class Visible(html.parser.HTMLParser):
    """The text of a page, its tags, and addresses in it."""

    def __init__(self, source):
        super().__init__()
        self.words, self.tags, self.addresses = [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_stands_alone_and_shows_every_formula(broken):
    source = page(broken)
    visible = Visible(source)
    text = " ".join(visible.words)
    assert POLICY in source
    assert "script" not in visible.tags
    assert visible.addresses
    assert all(address.startswith("data:image/png;base64,") for address in visible.addresses)
    assert visible.tags.count("img") == len(broken.findings)
    for finding in broken.findings:
        assert f"{finding.check.title}: {'holds' if finding.passed else '✗ FAILS'}" in text
        assert finding.check.source in text
    for remark in broken.remarks:
        assert remark.title in text


def test_the_page_without_matplotlib_shows_formulas_as_text(report, monkeypatch):
    from refica.plot import formula

    def missing(*_):
        raise ImportError

    monkeypatch.setattr(formula, "new_figure", missing)
    source = page(report)
    assert "img" not in Visible(source).tags
    assert "∫ p(x) dx = 1" in source
    assert "FAILS" not in source


def test_json_holds_everything(report):
    plain = json.loads(json.dumps(to_dict(report)))
    assert (plain["schema"], plain["version"], plain["passed"]) == ("refica-verify", 1, True)
    assert [entry["name"] for entry in plain["formulas"]] == [check.name for check in CHECKS]
    assert all(entry["comparisons"] for entry in plain["formulas"])
    assert len(plain["remarks"]) == len(report.remarks)


def test_representation_shows_the_verdict(report):
    assert repr(report).startswith(f"Report({len(CHECKS)} formulas, 0 failed")


# -- without autograd, with another decoder ------------------------------------------------------------


def test_without_autograd_the_other_routes_run(monkeypatch):
    import importlib

    true = importlib.import_module

    def without(name, *arguments):
        if name == "refica.verify.differentiable":
            raise ImportError("No module named 'autograd'")
        return true(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", without)
    found = ri.verify(models=1)
    assert found.passed
    assert sum(WITHOUT_AUTOGRAD in finding.notes for finding in found.findings) >= 8
    routes = {each.right for finding in found.findings for each in finding.comparisons}
    assert not any("autograd" in route for route in routes)
    assert "without autograd" in as_text(found)


class Circle:
    """z -> radius (cos z, sin z); complex numbers pass through it unless it is told to refuse them."""

    latent_dim, data_dim, n_params = 1, 2, 1
    wrong, real = 1.0, False

    def init(self, rng):
        return np.ones(1)

    def _unit(self, z):
        return np.hstack([np.cos(z), np.sin(z)])

    def _turn(self, z):
        return np.hstack([-np.sin(z), np.cos(z)])

    def __call__(self, theta, z):
        if self.real:
            theta, z = (np.asarray(each, dtype=float) for each in (theta, z))
        return theta[0] * self._unit(z)

    def vjp(self, theta, z, c):
        theta_bar = self.wrong * np.array([(c * self._unit(z)).sum()])
        return theta_bar, theta[0] * (c * self._turn(z)).sum(axis=1, keepdims=True)

    def jvp(self, theta, z, dtheta, dz):
        return dtheta[0] * self._unit(z) + theta[0] * dz * self._turn(z)


class RealCircle(Circle):
    """One that takes no complex numbers: differences serve."""

    real = True

    def __call__(self, theta, z):
        if np.iscomplexobj(theta) or np.iscomplexobj(z):
            raise TypeError("real numbers only")
        return super().__call__(theta, z)


class WrongCircle(Circle):
    """Its vjp is off by a twentieth of a percent."""

    wrong = 1.0005


@pytest.mark.parametrize("decoder", [ri.MLP((1, 3, 2), "relu"), ri.MLP((2, 2, 2), "leaky_relu")], ids=str)
def test_kinks_are_no_failure(decoder):
    found = list(results(models=1, decoder=decoder))
    assert all(finding.passed for finding in found), [f.check.name for f in found if not f.passed]


@pytest.mark.parametrize(("kind", "route"), [(Circle, "complex step"), (RealCircle, "differences")])
def test_a_decoder_of_the_user(kind, route):
    found = ri.verify(models=1, decoder=kind())
    assert found.passed, as_text(found)
    assert kind.__name__ in found.decoder
    routes = {each.right for each in found.findings[2].comparisons}
    assert route in routes
    assert not any("autograd" in each for each in routes)


def test_a_wrong_decoder_of_the_user():
    found = ri.verify(models=1, decoder=WrongCircle())
    assert found.failed[0].check.name == "decoder-derivative"
    assert "theta-in-refica" in {finding.check.name for finding in found.failed}


def test_many_latent_dimensions_are_compared_without_integrals():
    found = list(results(models=1, decoder=ri.MLP((4, 2, 2))))
    assert all(finding.passed for finding in found)
    assert any("more than two latent dimensions" in note for finding in found for note in finding.notes)


def test_what_is_refused():
    with pytest.raises(TypeError, match="without vjp"):
        ri.verify(models=1, decoder=Half())
    with pytest.raises(ValueError, match="models"):
        ri.verify(models=0)


class Half:
    """No derivative."""

    latent_dim, data_dim, n_params = 1, 1, 1

    def init(self, rng):
        return np.ones(1)

    def __call__(self, theta, z):
        return theta * z


# -- the command line ----------------------------------------------------------------------------------


def test_the_command_passes_and_writes(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(verify_command, "page", lambda found: f"<!doctype html>{found!r}")
    path = tmp_path / "verify.html"
    assert main(["verify", "--models", "1", "--html", str(path)]) == OK
    out, err = capsys.readouterr()
    assert f"All {len(CHECKS)} formulas hold" in out
    assert "wrote" in err
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_command_fails_with_a_fault(capsys):
    assert main(["verify", "--models", "1", "--fault", "kl-without-half", "--json"]) == CHECK_FAILED
    out, err = capsys.readouterr()
    assert json.loads(out)["first_failure"] == "kl"
    assert "KL(q ‖ N(0, I)) lacks its ½ (vae.draws.kl_to_prior)" in err
    assert main(["verify", "--fault", "no-such"]) == USAGE


def test_the_command_lists_the_faults(capsys):
    assert main(["verify", "--list-faults"]) == OK
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(faults.CATALOGUE)
    assert lines[0].split("\t")[:2] == ["tanh-slope", "activations.Tanh.derivative"]


def test_the_command_takes_a_decoder(capsys, tmp_path, monkeypatch):
    (tmp_path / "line_of_mine.py").write_text(
        "import refica\nline = refica.MLP((1, 2))\ndef make():\n    return refica.MLP((1, 3, 1), 'sin')\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "--models", "1", "--decoder", "line_of_mine:line"]) == OK
    assert "the decoder MLP(sizes=(1, 2)" in capsys.readouterr().out
    assert verify_command.load_decoder("line_of_mine:make").sizes == (1, 3, 1)
    for words in ("line_of_mine:nothing", "no_such_module:x", "line_of_mine", "math:pi"):
        assert main(["verify", "--decoder", words]) == USAGE
        assert "MODULE:NAME" in capsys.readouterr().err
