"""Fits that are interrupted: what is on disk, going on bit for bit, and what is refused."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import fitting
import numpy as np
import pytest

import refica as ri
from refica.files import DataError, OutputError, read_json
from refica.fit import checkpoint, elbo_ascent, stochastic
from refica.fit.checkpoint import decode, encode
from refica.fit.result import Step
from refica.validation import Array

RUNS = {
    "l-bfgs": {"max_iter": 170},
    "em": {"max_iter": 75},
    "gradient-ascent": {"max_iter": 50},
    "adam": {"max_iter": 70, "batch_size": 15},
    "sgd": {"max_iter": 70, "schedule": "inverse-time", "objective": "density-sum", "fresh_nodes": 50},
}
"""Each method for a few rounds after the trials of two starts."""


@pytest.fixture(autouse=True)
def _listens_to_ctrl_c():
    """Started in the background by a shell, a process ignores SIGINT from its birth; so would these fits."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    """A checkpoint after every round, and short rounds."""
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(stochastic, "ROUND", 20)
    monkeypatch.setattr(elbo_ascent, "ROUND", 50)


def interrupting(after):
    """A callback that presses Ctrl-C at some call."""
    calls = []

    def callback(step):
        calls.append(step)
        if len(calls) == after:
            signal.raise_signal(signal.SIGINT)

    return callback


def fit(method, path=None, resume=None, callback=None, **changed):
    truth, x = fitting.curve()
    arguments = {"method": method, "n_starts": 2, "tol": 1e-9, "rng": 5, **RUNS[method], **changed}
    integrator = None if method == "adam" else fitting.GRID  # refreshed with σ², or the same in all rounds
    return ri.fit_mle(truth, x, integrator, checkpoint=path, resume=resume, callback=callback, **arguments)


def fit_a_vae(path=None, resume=None, callback=None, **changed):
    truth, x = fitting.curve()
    vae = ri.initial_vae(truth, x, 3)
    arguments = {"max_iter": 230, "rng": np.random.Generator(np.random.MT19937(1)), **changed}
    return ri.fit_vae(vae, x, checkpoint=path, resume=resume, callback=callback, **arguments)


@pytest.mark.parametrize("method", RUNS)
def test_a_resumed_fit_is_the_uninterrupted_one_bit_for_bit(method, tmp_path):
    path = tmp_path / "state.json"
    whole = fit(method)
    calls = len(whole.history)
    for after in (1, max(calls // 2, 2), calls - 1):
        first = fit(method, path, callback=interrupting(after))
        assert first.status == "interrupted"
        assert not fitting.same_fit(first, whole)
        # and once more, in the middle of what is left
        resumed = fit(method, path, path, interrupting(2))
        if resumed.status == "interrupted":
            resumed = fit(method, resume=path)
        assert fitting.same_fit(resumed, whole)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_starts": 3, "sigma2_update": "closed-form", "schedule": "inverse-time"},
        {"kl_warmup": 120, "validation_fraction": 0.3, "patience": 1, "n_samples": 2},
    ],
)
def test_a_resumed_vae_is_the_uninterrupted_one_bit_for_bit(options, tmp_path):
    path = tmp_path / "state.json"
    whole = fit_a_vae(**options)
    assert [step.iteration for step in whole.history] == [0, 50, 100, 150, 200, 230]
    for after in (1, 3, 6):
        first = fit_a_vae(path, callback=interrupting(after), **options)
        assert first.status == "interrupted"
        assert f"resume='{path}'" in first.message
        resumed = fit_a_vae(resume=path, **options)
        assert fitting.same_fit(resumed, whole)
        assert resumed.vae.phi.tobytes() == whole.vae.phi.tobytes()


def test_a_lost_generator_would_be_noticed(tmp_path):
    """Plant a resume that forgets the generator's state: the fit is another one then."""
    path = tmp_path / "state.json"
    whole = fit("adam")
    fit("adam", path, callback=interrupting(2))
    content = json.loads(path.read_text())
    content["rng"] = np.random.default_rng(5).bit_generator.state
    path.write_text(json.dumps(content))
    assert not fitting.same_fit(fit("adam", resume=path), whole)


def test_a_finished_fit_resumes_to_itself_and_goes_on_with_a_larger_limit(tmp_path):
    path = tmp_path / "state.json"
    whole = fit("em", path)
    assert whole.status == "iteration limit"
    assert fitting.same_fit(fit("em", resume=path), whole)
    further = fit("em", resume=path, max_iter=100)
    assert further.history[: len(whole.history)] == whole.history
    assert further.history[-1].iteration > 75
    assert further.history[-1].seconds > whole.history[-1].seconds


def test_a_fit_stopped_by_its_callback_goes_on(tmp_path):
    path = tmp_path / "state.json"
    whole = fit("l-bfgs")
    stopped = fit("l-bfgs", path, callback=lambda step: step.iteration == 70)
    assert stopped.status == "stopped by callback"
    assert stopped.history[-1].iteration == 70
    assert fitting.same_fit(fit("l-bfgs", resume=path), whole)


def test_ctrl_c_returns_the_best_model_and_says_where_the_rest_is(tmp_path):
    path = tmp_path / "folder" / "state.json"
    first = fit("l-bfgs", path, callback=interrupting(130))
    assert first.status == "interrupted"
    assert not first.converged
    assert first.message.startswith("interrupted by Ctrl-C: the state after the last round is in ")
    assert f"resume='{path}' goes on from it" in first.message
    truth, x = fitting.curve()
    again = ri.log_likelihood(first.model, x, gradient=False)
    assert first.log_likelihood.total == again.total > ri.log_likelihood(truth, x).total
    best = read_json(path, checkpoint.SCHEMA, [checkpoint.VERSION])["state"]["best"]["model"]
    assert best["theta"] == first.model.theta.tolist()
    unsaved = fit("l-bfgs", callback=interrupting(1))
    assert "no checkpoint was asked for" in unsaved.message
    assert unsaved.model.theta.tobytes() == truth.theta.tobytes()  # no round was finished
    assert unsaved.history == ()


class _Falls:
    """An executor whose workers Ctrl-C has ended too."""

    def __init__(self):
        self.calls = 0

    def map(self, work, blocks):
        self.calls += 1
        if self.calls == 30:
            raise KeyboardInterrupt
        assert self.calls < 30
        return map(work, blocks)


def test_ctrl_c_inside_an_executor_needs_it_no_more():
    assert fit("em", executor=_Falls()).status == "interrupted"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tol": 1e-3}, "tol"),
        ({"n_starts": 3}, "n_starts"),
        ({"method": "em"}, "method"),
        ({"objective": "density-sum"}, "objective"),
        ({"fixed_sigma2": True}, "fixed_sigma2"),
        ({"rng": 6}, "rng"),
        ({"learning_rate": 0.1, "batch_size": 7}, "batch_size, learning_rate"),
        ({"integrator": ri.Quadrature(ri.uniform_grid(101, 6.0))}, "integrator"),
    ],
)
def test_the_checkpoint_of_other_arguments_is_refused(change, named, tmp_path):
    path = tmp_path / "state.json"
    fit("l-bfgs", path, max_iter=2)
    with pytest.raises(
        DataError, match=rf"state.json is the checkpoint of another fit, with other {named} \("
    ):
        ri.fit_mle(
            *fitting.curve(),
            **{
                "integrator": fitting.GRID,
                "method": "l-bfgs",
                "n_starts": 2,
                "tol": 1e-9,
                "rng": 5,
                "resume": path,
                **change,
            },
        )


def test_the_checkpoint_of_another_model_or_other_data_is_refused(tmp_path):
    path = tmp_path / "state.json"
    truth, x = fitting.curve()
    ri.fit_mle(truth, x, n_starts=1, max_iter=1, checkpoint=path)
    for model, data, named in [
        (truth, x + 1e-15, "data"),
        (truth, x[:-1], "data"),
        (truth.replace(sigma2=0.051), x, "model"),
        (ri.NonlinearICA(ri.MLP((1, 3, 2), "sin"), truth.theta, truth.sigma2), x, "decoder"),
    ]:
        with pytest.raises(DataError, match=f"of another fit, with other {named}[ ,]"):
            ri.fit_mle(model, data, n_starts=1, resume=path)
    vae = ri.initial_vae(truth, x, 3)
    with pytest.raises(DataError, match="of another fit, with other kind"):
        ri.fit_vae(vae, x, resume=path)
    ri.fit_vae(vae, x, max_iter=1, checkpoint=path)
    with pytest.raises(DataError, match=r"with other vae \("):
        ri.fit_vae(vae.replace(phi=2.0 * vae.phi), x, max_iter=1, resume=path)
    with pytest.raises(DataError, match=r"with other kl_warmup \(kl_warmup 0 there"):
        ri.fit_vae(vae, x, max_iter=1, kl_warmup=5, resume=path)


def test_integrators_are_told_apart_and_the_same_in_every_process():
    class Foreign:
        pass

    assert checkpoint.name_of(Foreign()) == checkpoint.name_of(Foreign())
    one, other = (ri.FixedNodes([[0.0], [value]], [0.0, 0.0]) for value in (1.0, 1.5))
    assert checkpoint.name_of(one) != checkpoint.name_of(other)
    one, other = (
        ri.Quadrature(
            ri.gauss_hermite(2), ri.EncoderProposal(ri.MLP((2, 300, 2)), np.append(np.zeros(1501), values))
        )
        for values in (np.full(1, 0.1), np.full(1, 0.1 + 1e-16))
    )
    assert checkpoint.name_of(one) != checkpoint.name_of(other)
    assert len(checkpoint.name_of(one)) <= checkpoint.LONGEST_NAME
    assert checkpoint.digest(np.zeros((2, 3))) != checkpoint.digest(np.zeros((3, 2)))
    assert checkpoint.digest(np.array(0.0)) != checkpoint.digest(np.array(-0.0))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:-30], "is not JSON"),
        (lambda text: "", "is not JSON"),
        (lambda text: text.replace("refica-checkpoint", "refica-model"), "must be of schema"),
        (lambda text: text.replace('"version": 3', '"version": 4'), "newer refica"),
        (lambda text: text.replace('"version": 3', '"version": 2'), "version"),
        (lambda text: text.replace('"best"', '"worst"'), "no complete checkpoint"),
        (lambda text: text.replace('"theta": [', '"theta": [1.0, '), "no complete checkpoint"),
        (lambda text: text.replace('"tried": 1', '"tried": "1"'), "no complete checkpoint.*expected int"),
        (
            lambda text: text.replace('"rng": {"bit_generator": "PCG', '"rng": {"bit_generator": "MT'),
            "no complete",
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_words(damage, words, tmp_path):
    path = tmp_path / "state.json"
    truth, x = fitting.curve()
    ri.fit_mle(truth, x, n_starts=1, max_iter=1, checkpoint=path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(DataError, match=words):
        ri.fit_mle(truth, x, n_starts=1, max_iter=1, resume=path)


def test_paths_that_cannot_be_used_are_refused_before_anything_is_computed(tmp_path):
    truth, x = fitting.curve()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to the folder"):
        ri.fit_mle(truth, x, checkpoint=tmp_path / "file" / "state.json", callback=pytest.fail)
    with pytest.raises(DataError, match="no such file"):
        ri.fit_mle(truth, x, resume=tmp_path / "none.json", callback=pytest.fail)


class _Inner(NamedTuple):
    numbers: tuple[float, ...]
    array: Array
    step: Step | None


class _Outer(NamedTuple):
    inner: _Inner
    model: ri.NonlinearICA
    flag: bool
    words: str


def test_states_are_read_back_bit_for_bit():
    truth, _ = fitting.curve()
    numbers = (0.1, -0.0, math.pi * 1e-310, 1.7e308, math.inf, -math.inf, math.nan, 3.0)
    inner = _Inner(numbers, np.random.default_rng(0).standard_normal((3, 2)), Step(1, -math.inf, 0.1, 2.0))
    state = _Outer(inner, truth, True, "words")
    text = json.dumps(encode(state), allow_nan=False)
    back = decode(_Outer, json.loads(text), truth.replace(sigma2=1.0))
    assert np.array(back.inner.numbers).tobytes() == np.array(numbers).tobytes()
    assert back.inner.array.tobytes() == inner.array.tobytes()
    assert back.inner.array.shape == (3, 2)
    assert back.inner.step == inner.step
    assert back.model.theta.tobytes() == truth.theta.tobytes()
    assert (back.model.sigma2, back.flag, back.words) == (truth.sigma2, True, "words")
    assert decode(_Inner, encode(inner._replace(step=None)), truth).step is None


KILLS = 50

KILLED = """
import os, random, signal, sys, time
import fitting
import refica as ri
from refica.files import json_files
from refica.fit import checkpoint, stochastic
checkpoint.SECONDS_BETWEEN = 0.0
stochastic.ROUND = 2
path, kills, planted = sys.argv[1], int(sys.argv[2]), len(sys.argv) > 3
random.seed(0)
def in_two_halves(path, text):
    with open(path, "w") as stream:
        stream.write(text[:100])
        stream.flush()
        time.sleep(0.002)
        stream.write(text[100:])
if planted:
    json_files.write_text_atomically = in_two_halves
truth, x = fitting.curve(10)
def fit(checkpoint, resume):
    return ri.fit_mle(truth, x, fitting.GRID, method="adam", n_starts=1, tol=1e-9, schedule="inverse-time",
                      max_iter=400, checkpoint=checkpoint, resume=resume)
began = time.monotonic()
fit(None, None)
seconds = time.monotonic() - began
dead = 0
for _ in range(kills):
    child = os.fork()
    if child == 0:
        fit(path, path if os.path.exists(path) else None)
        os._exit(0)
    time.sleep(random.uniform(0.0, 4.0 * seconds / kills))
    os.kill(child, signal.SIGKILL)
    dead += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if os.path.exists(path):  # readable, and of this fit
        checkpoint.read_json(path, checkpoint.SCHEMA, [checkpoint.VERSION])
whole, resumed = fit(None, None), fit(None, path)
assert fitting.same_fit(whole, resumed)
print(dead, len(resumed.history))
"""


def killed_again_and_again(path, *planted):
    """Run `KILLED`: children forked from one process that has imported everything: kills are then cheap."""
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(KILLS), *planted],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(Path(ri.__file__).parents[1])},
        check=False,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills children that it forks")
def test_fifty_kills_never_leave_an_unreadable_checkpoint(tmp_path):
    """Each child goes on from what the last one left; at the end the fit is the uninterrupted one."""
    done = killed_again_and_again(tmp_path / "state.json")
    assert done.returncode == 0, done.stderr
    dead, rounds = map(int, done.stdout.split())
    assert dead > KILLS // 2  # the others had come to their end
    assert rounds > 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills children that it forks")
def test_a_checkpoint_written_in_place_would_be_caught(tmp_path):
    done = killed_again_and_again(tmp_path / "state.json", "planted")
    assert done.returncode != 0
    assert "DataError" in done.stderr
    assert "is not JSON" in done.stderr
