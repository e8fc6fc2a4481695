"""The conformance kit names what is wrong: refica's catalogue of faults planted into refica, and the slips of
the best-known earlier program for the source documents."""

import dataclasses
import functools
import math

import numpy as np
import pytest
from scipy import special

import refica as ri
from refica.testing import conformance, faults
from refica.testing.conformance import LEVELS, SLIPS, Adapter, Refica, cases, diagnose
from refica.testing.conformance.diagnosis import _Level
from refica.testing.conformance.judging import asked


@dataclasses.dataclass(frozen=True)
class OnPrior:
    """A rule's nodes on the prior, as somebody else would place them."""

    rule: object

    def nodes(self, model, x):
        t, log_w = self.rule.points(model.latent_dim)
        return t, log_w + 0.5 * (t * t).sum(axis=1) + 0.5 * t.shape[1] * math.log(2 * math.pi)


@pytest.fixture(autouse=True, scope="module")
def predictions_are_made_once():
    """What slips would answer depends on them and on the case: a fault planted in refica does not change the
    formulas that say it."""
    predicted = functools.cache(functools.partial(_Level.predicted, _Level("any", (), ())))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Level, "predicted", lambda level, slips, *rest: predicted(tuple(slips), *rest))
        yield


REFICA = Refica()
SHORT = Refica(OnPrior(ri.uniform_grid(20001, 10.0)))  # its end counts by a whole step
GRID = Refica(ri.Quadrature(ri.uniform_grid(2001, 10.0)))
HERMITE = Refica(ri.Quadrature(ri.gauss_hermite(200)))
DRAWS = Refica(ri.Quadrature(ri.monte_carlo(1000, seed=0)))
INTEGRALS = ("log-marginal", "gradient", "density", "posterior")

OTHERS = {
    "hermite-nodes": HERMITE,
    "hermite-weights": HERMITE,
    "short-grid": SHORT,
    "prior-in-the-weights": GRID,
    "forgotten-1/K": DRAWS,
    "wrong-sign": GRID,
    "lost-sigma2": GRID,
}
"""Faults of integrators that `Reference` does without."""

SEEN = (
    *("tanh-slope", "sigmoid-slope", "leaky-slope", "gelu-slope", "softplus-overflow", "transposed-weights"),
    *("bias-first", "forgotten-bias", "output-activation", "averaged-bias", "lost-output-slope"),
    *("mixed-rows", "lost-exponent", "absolute-distance", "cancelling-distance", "lost-constant"),
    *("lost-log-sigma2", "sigma-for-sigma2", "missing-half", "mean-for-sum", "one-dimension"),
    *("forgotten-prior", "prior-twice", "lost-prior-constant", *OTHERS, "divisor-n-1", "lost-shift"),
    *("floored-density", "lost-log-weights", "log-sigma2-gradient"),
    *("sigma-gradient", "n-observations", "lost-n", "log-for-density"),
    *("averaged-total", "moments-about-zero", "kl-without-half", "kl-without-one", "kl-log-s"),
    *("kl-reversed", "log-standard-deviation", "variance-for-deviation", "shared-noise", "kl-added"),
    *("summed-draws", "no-way-through-z", "kl-gradient-without-half", "mean-of-logs"),
    *("iwae-forgotten-1/K", "weights-without-q", "weights-without-log-s"),
)
"""Faults that answers to cases can show. Of the others nothing is asked: sampling, scores, jvp, proposals,
the quadrature ELBO, gradients of IWAE, the ledger."""


def few(level):
    """A dozen cases of a level; of integrals those that any rule with some hundred nodes can do."""
    some = cases(level)
    if level in INTEGRALS:
        some = [
            case
            for case in some
            if case.model.latent_dim == 1
            and case.model.sigma2 >= 0.05
            and case.kind in ("smooth", "polynomial", "two-modes", "affine")
        ]
    by_kind = {}
    for case in some:
        by_kind.setdefault(case.kind, []).append(case)
    kinds = [by_kind[kind][: 4 if level not in INTEGRALS else 5] for kind in by_kind]
    return [case for kind in kinds for case in kind]


FEW = {level: few(level) for level in LEVELS} | {"decoder-gradient": cases("decoder-gradient")}


@functools.cache
def within_reach(adapter, level):
    """The cases that an adapter passes without a fault; for Monte Carlo, which passes none, all."""
    if adapter is DRAWS:
        return FEW[level]
    return [case for case in FEW[level] if asked(Adapter(adapter).answers_to, case).status == "passed"]


def diagnosed(adapter, levels=LEVELS, some=None):
    """What the kit says of the first level with wrong answers; None if there is none."""
    for level in levels:
        chosen = FEW[level] if some is None else some[level]
        outcomes = [asked(Adapter(adapter).answers_to, case) for case in chosen]
        if any(outcome.status in ("failed", "error") for outcome in outcomes):
            found = diagnose(outcomes)
            return found[0] if found else None
    return None


def test_without_a_fault_nothing_is_wrong():
    assert diagnosed(Refica()) is None
    for level in INTEGRALS:
        assert len(within_reach(GRID, level)) >= 4
    assert len(within_reach(HERMITE, "log-marginal")) >= 4


@pytest.mark.filterwarnings("ignore")  # a planted fault may overflow
@pytest.mark.parametrize("name", SEEN)
def test_a_planted_fault_is_named(name):
    adapter, levels = OTHERS.get(name, REFICA), INTEGRALS if name in OTHERS else LEVELS
    some = {level: within_reach(adapter, level) for level in levels}
    with faults.plant(name) as fault:
        found = diagnosed(adapter, levels, some)
    assert found is not None, f"{fault.sentence}: every case is passed"
    assert name in found.names, f"{fault.sentence}: {found}"
    assert len(found.names) <= 2
    assert found.explained == found.failed


def test_at_least_the_faults_that_were_promised_are_named():
    assert len(set(SEEN)) >= 25
    assert set(SEEN) <= set(faults.CATALOGUE)


def test_slips_have_names_and_sentences():
    sentences = [slip.sentence for slip in SLIPS]
    assert all(sentence and not sentence.endswith(".") for sentence in sentences)
    assert all(set(slip.levels) <= set(LEVELS) for slip in SLIPS)
    assert set(SEEN) <= {slip.name for slip in SLIPS}


# -- the earlier program -------------------------------------------------------------------------------------


class Earlier:
    """log p(x) by summing p(x | z_k), with each of three slips as asked for."""

    def __init__(self, forgets=False, truncates=False, clamps=False, draws=False):
        self.forgets, self.truncates, self.clamps, self.draws = forgets, truncates, clamps, draws

    def nodes(self):
        """Nodes and log weights for N(0, 1)."""
        if self.draws:
            z = np.random.default_rng(0).standard_normal(1000)
            z = z[np.abs(z) <= 2.5] if self.truncates else z
            return z[:, None], np.full(len(z), 0.0 if self.forgets else -math.log(len(z)))
        radius = 2.5 if self.truncates else 9.0
        z = np.linspace(-radius, radius, 4001)
        log_w = -0.5 * z * z - 0.5 * math.log(2 * math.pi) + math.log(2 * radius / 4000)
        return z[:, None], log_w + (math.log(1000) if self.forgets else 0.0)

    def log_marginal(self, case):
        z, log_w = self.nodes()
        g = Refica().decoder(dataclasses.replace(case, z=z))
        squared = ((case.x[:, None] - g) ** 2).sum(-1)
        log_x = -0.5 * (
            squared / case.model.sigma2 + case.model.data_dim * np.log(2 * np.pi * case.model.sigma2)
        )
        if not self.clamps:
            return special.logsumexp(log_x + log_w, axis=1)
        return np.log(np.maximum(np.exp(log_x + log_w).sum(axis=1), np.finfo(float).tiny))


EASY = [
    case
    for case in cases("log-marginal")
    if case.model.latent_dim == 1 and (case.model.sigma2 >= 0.05 or case.id.endswith("worked-far"))
]


def judged(program):
    return conformance.run(program, [case for case in EASY if case.kind != "kinked"])


def test_the_earlier_program_without_slips_conforms():
    assert judged(Earlier()).passed


@pytest.mark.parametrize(
    ("slips", "name"),
    [
        ({"forgets": True, "draws": True}, "forgotten-1/K"),
        ({"forgets": True}, "forgotten-1/K"),
        ({"truncates": True}, "short-grid"),
        ({"clamps": True}, "floored-density"),
    ],
)
def test_each_slip_of_the_earlier_program_is_named(slips, name):
    report = judged(Earlier(**slips))
    assert not report.passed
    assert name in report.names, conformance.as_text(report)


@pytest.mark.parametrize("draws", [True, False])
def test_together_at_least_one_slip_is_named(draws):
    report = judged(Earlier(True, True, True, draws))
    assert not report.passed
    assert {"forgotten-1/K", "short-grid", "floored-density"} & set(report.names), conformance.as_text(report)


def test_the_number_of_draws_is_told():
    report = judged(Earlier(forgets=True))
    assert any("K = 1000" in slip.sentence for each in report.diagnoses for slip in each.slips)


# -- slips that the catalogue does not have ------------------------------------------------------------------


def changed(level, change):
    """refica with its answers of a level changed."""
    right = getattr(Refica(), level.replace("-", "_"))
    return {level.replace("-", "_"): lambda case: change(case, right(case))}


@pytest.mark.parametrize(
    ("level", "change", "name"),
    [
        ("log-joint", lambda case, a: a.astype(np.float32), "single-precision"),
        ("decoder", lambda case, a: a.astype(np.float32), "single-precision"),
        ("log-marginal", lambda case, a: a / math.log(10.0), "base-10"),
        ("log-marginal", lambda case, a: a / math.log(2.0), "base-2"),
        ("log-marginal", lambda case, a: np.exp(a), "density-for-log"),
        ("log-marginal", lambda case, a: -a, "negated"),
        ("log-marginal", lambda case, a: a + 0.3, "constant-offset"),
        ("gradient", lambda case, a: {k: -v for k, v in a.items()}, "descent"),
        ("gradient", lambda case, a: {k: v / len(case.x) for k, v in a.items()}, "averaged-total"),
        ("elbo", lambda case, a: a + 0.5 * case.model.data_dim * math.log(2 * math.pi), "lost-constant"),
    ],
)
def test_a_slip_of_the_answer_is_named(level, change, name):
    found = diagnosed(changed(level, change), [level])
    assert name in found.names, found
    assert found.explained == found.failed


def test_two_slips_at_once_are_named():
    def wrong(case, log_joint):
        n, m = case.model.data_dim, case.model.latent_dim
        return log_joint + 0.5 * (n + m) * math.log(2 * math.pi)

    found = diagnosed(changed("log-joint", wrong), ["log-joint"])
    assert set(found.names) == {"lost-constant", "lost-prior-constant"}


def test_noise_is_not_called_a_slip():
    rng = np.random.default_rng(0)
    found = diagnosed(changed("log-joint", lambda case, a: a + rng.normal(size=a.shape)), ["log-joint"])
    assert found.names == ()
    assert found.explained == 0


def test_what_was_found_below_explains_what_is_above():
    def wrong(case, values):
        return values + 0.5 * case.model.data_dim * math.log(2 * math.pi)

    adapter = {**changed("log-joint", wrong), **changed("elbo", wrong)}
    report = conformance.run(adapter, [*FEW["log-joint"], *FEW["elbo"]])
    assert [each.level for each in report.diagnoses] == ["log-joint", "elbo"]
    assert report.diagnoses[0].names == ("lost-constant",)
    assert report.diagnoses[1].inherited
    assert "what was found before explains" in conformance.as_text(report)
