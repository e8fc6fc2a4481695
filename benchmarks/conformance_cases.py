"""The cases of the conformance kit, made: answers to 60 digits, each confirmed by refica in float64.

``python -m benchmarks conformance_cases [LEVEL...]`` (ten minutes on one core) writes a file for each level.
Route one is `_conformance_oracle`: ball arithmetic of python-flint, integrals by panels, lattices or closed
forms, derivatives by differences. Route two is refica in float64: hand-written derivatives, `Reference`,
the exact integrators. A case on which they differ by more than 1e-12 of its size is not written. Hints are
tried out: on a uniform grid of so many points every answer is within a tenth of its tolerance.
"""

# notation: N observations, n data, m latent, K nodes

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import flint
import mpmath
import numpy as np

import refica as ri
from benchmarks import _conformance_oracle as oracle
from benchmarks._conformance_problems import problems
from benchmarks._conformance_truths import OWN, TRUTHS, Truth, is_kinked, rough_log_joint, widths
from benchmarks._results import FOLDER
from refica.testing.conformance.case import LEVELS, VERSION, Case, case_from
from refica.testing.conformance.own import Refica, model_of
from refica.validation import Array

PLACE = FOLDER.parent.parent / "refica" / "testing" / "conformance" / "cases" / f"v{VERSION}"

AGREE = 1e-12
"""The two routes, relative to the size of the answer or of the terms that it sums."""

UNIT = 2.0**-53

CLOSED = 1e-11
"""Tolerance of closed formulas, relative to the answer: float64 loses a few thousand roundings at most."""

INTEGRAL = {"smooth": 1e-8, "kinked": 1e-6}
"""Tolerance of log p(x) in nats. Smooth integrands converge exponentially in the number of nodes; across a
kink a uniform rule's error falls with its square only. The slips that are looked for are 1e-4 and more."""

DERIVED = {"smooth": 10.0, "kinked": 100.0}
"""Gradients and moments, relative to the terms that they sum, are given so many times that tolerance: they
weigh the tails of the integrand more, and across a kink theirs jumps, so that a uniform rule's error falls
with the number of its nodes only."""

OFFSET = 1e-7
"""Tolerance where data lie 300 from 0 and σ = 1e-3: rounding of g alone moves the answer by 1e-10 near the
data, and the cancelling form of ‖x - g‖² by 1e-5. Far from them the answer is large: a relative one too."""

OPTIMUM = 1e-5
"""Tolerance of a maximiser, relative: there the maximum is flat to 1e-11."""

MOST = {1: 2**19 + 1, 2: 1025, 3: 129}
"""Points per axis that a hint may ask for, by m."""

REASONS = {
    "closed": f"a closed formula: {CLOSED:g} of the largest entry, a few thousand roundings of float64",
    "integral": (
        f"an integral: {INTEGRAL['smooth']:g} nats, {INTEGRAL['kinked']:g} across kinks; gradients and "
        f"moments {DERIVED['smooth']:g} times that, across kinks {DERIVED['kinked']:g} times, of the terms "
        "that they sum; a uniform grid with the points of the hint is ten times better"
    ),
    "offset": f"data far from 0: {OFFSET:g}, a thousand times what rounding of g(z) does",
    "optimum": f"a maximum: its value to {INTEGRAL['smooth']:g} nats, where it is to {OPTIMUM:g}",
}


def main(levels: Sequence[str] = tuple(LEVELS)) -> None:
    """Make the cases of all levels, or of those that are named; write a file for each."""
    began = time.perf_counter()
    PLACE.mkdir(parents=True, exist_ok=True)
    for level in levels:
        documents = []
        for document in problems():
            if document["level"] == level:
                documents.append(finished(document))
                print(f"{document['id']}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        (PLACE / f"{level}.json").write_text(text(level, documents), encoding="utf-8")
        print(f"{level}: {len(documents)} cases, {time.perf_counter() - began:.0f} s")


def text(level: str, documents: Sequence[dict[str, Any]]) -> str:
    """Return a file of cases, one to a line."""
    head = {
        "schema": "refica-conformance-cases",
        "version": VERSION,
        "level": level,
        "made_by": f"python -m benchmarks conformance_cases (python-flint {flint.__version__}, "
        f"mpmath {mpmath.__version__}, refica {ri.__version__})",
        "tolerances": REASONS,
    }
    lines = [f'"{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in head.items()]
    cases = ",\n".join(json.dumps(document) for document in documents)
    return "{\n" + ",\n".join(lines) + f',\n"cases": [\n{cases}\n]\n}}\n'


def finished(document: dict[str, Any]) -> dict[str, Any]:
    """Return a case with answer, tolerances, hint and provenance.

    Raises
    ------
    ArithmeticError
        If the two routes do not agree, or no grid is fine enough.
    """
    asked = case_from({**document, "expected": {}, "tolerance": {}})
    truth = TRUTHS[asked.level](asked)
    off = differences(asked, truth)
    reason, tolerance = tolerances(asked, truth)
    hint = {}
    if asked.level in ("log-marginal", "gradient", "density", "posterior"):
        hint = {"hint": hint_for(asked, truth, tolerance)}
    elif asked.level == "optimum" and asked.model is not None:
        hint = {"hint": hint_at_optimum(asked, float(truth.value["sigma2"]))}
    maps = {"theta": document.get("model", {}).get("decoder"), "phi": document.get("encoder")}
    return {
        **document,
        **hint,
        "expected": {name: nested(value, maps.get(name)) for name, value in truth.value.items()},
        "error": {
            name: float(f"{off[name] + UNIT * np.max(np.abs(value)):.2g}")
            for name, value in truth.value.items()
        },
        "tolerance": {
            name: {"absolute": float(f"{a:.2g}"), "relative": r} for name, (a, r) in tolerance.items()
        },
        "provenance": {
            "routes": [truth.route, "refica in float64"],
            "largest_difference": float(f"{max(off.values()):.2g}"),
            "tolerance": reason,
        },
    }


def differences(asked: Case, truth: Truth) -> dict[str, float]:
    """Return the largest difference of the two routes in each quantity.

    Raises
    ------
    ArithmeticError
        If they do not agree.
    """
    own = getattr(OWN, asked.level.replace("-", "_"))(asked)
    if not isinstance(own, dict):
        own = {LEVELS[asked.level][0]: own}
    off = {}
    for name, value in truth.value.items():
        off[name] = float(np.max(np.abs(np.asarray(own[name]) - value), initial=0.0))
        size = max(truth.scale.get(name, 0.0), float(np.max(np.abs(value))), 1e-3)
        if not off[name] <= AGREE * size:
            raise ArithmeticError(f"{asked}: the routes differ by {off[name]:.2g} in {name} ({size:.2g})")
    return off


def nested(value: Array, shape: dict[str, Any] | None) -> Any:
    """Return an array as lists; parameters layer by layer."""
    if shape is None:
        return np.asarray(value).tolist()
    if shape["type"] == "polynomial":
        return {"coefficients": np.reshape(value, np.shape(shape["coefficients"])).tolist()}
    layers, start = [], 0
    for layer in shape["layers"]:
        fan_out, fan_in = np.shape(layer["weight"])
        middle, end = start + fan_out * fan_in, start + fan_out * (fan_in + 1)
        weight = np.reshape(value[start:middle], (fan_out, fan_in))
        layers.append({"weight": weight.tolist(), "bias": np.asarray(value[middle:end]).tolist()})
        start = end
    return layers


def tolerances(case: Case, truth: Truth) -> tuple[str, dict[str, tuple[float, float]]]:
    """Return the reason and, for each quantity, the absolute and the relative tolerance."""
    kind = "kinked" if is_kinked(case) else "smooth"
    integral, derived = INTEGRAL[kind], INTEGRAL[kind] * DERIVED[kind]
    found = {}
    for name, value in truth.value.items():
        scale = max(truth.scale.get(name, 0.0), float(np.max(np.abs(value))))
        if case.level == "optimum":
            found[name] = (integral, 0.0) if name == "value" else (OPTIMUM * scale, 0.0)
        elif case.level == "density":
            found[name] = ((integral if name == "value" else derived) * scale, 0.0)
        elif case.level in ("log-marginal", "gradient", "posterior"):
            absolute = integral if name in ("log_p", "value") else derived * scale
            found[name] = (absolute, CLOSED if name in ("log_p", "value") else 0.0)
        elif case.kind == "offset":
            found[name] = (OFFSET, 0.1 * CLOSED)
        else:
            found[name] = (CLOSED * max(scale, 1.0), CLOSED)
    kinds = {"optimum": "optimum", "log-marginal": "integral", "gradient": "integral"}
    kinds |= {"density": "integral", "posterior": "integral"}
    return "offset" if case.kind == "offset" else kinds.get(case.level, "closed"), found


# -- hints -------------------------------------------------------------------------------------------------


def hint_at_optimum(case: Case, best: float) -> dict[str, Any]:
    """Return a grid fine enough for log p and its slope from a quarter of the best σ² to four times it."""

    def at(sigma2: float) -> Case:
        model = {**case.document["model"], "sigma2": sigma2}
        changed = {**case.document, "model": model, "level": "gradient"}
        return case_from({**changed, "expected": {}, "tolerance": {}})

    near = at(0.25 * best)
    found = OWN.gradient(near)
    truth = Truth({name: np.asarray(found[name]) for name in ("value", "sigma2")}, {}, "")
    kind = INTEGRAL["kinked" if is_kinked(case) else "smooth"]
    allowed = {"value": (kind, 0.0), "sigma2": (OPTIMUM * len(case.x) / best, 0.0)}
    hint = hint_for(near, truth, allowed)
    radius = math.ceil(2.0 * max(reach(near), reach(at(4.0 * best)))) / 2.0
    points = 2 * math.ceil(0.5 * (hint["points_per_axis"] - 1) * radius / hint["radius"]) + 1
    return {"points_per_axis": points, "radius": radius}


def hint_for(case: Case, truth: Truth, tolerance: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Return a uniform grid on which every answer is within a tenth of its tolerance.

    Raises
    ------
    ArithmeticError
        If there is none of affordable size.
    """
    model = model_of(case)
    radius = float(math.ceil(2.0 * reach(case)) / 2.0)
    z = np.random.default_rng(0).uniform(-radius, radius, (2**14, model.latent_dim))
    points = 2 * math.ceil(radius / (0.8 * widths(model, z).min())) + 1
    points = max(points, 41)
    while points <= MOST[model.latent_dim]:
        nodes = grid(model.latent_dim, points, radius)
        if _close(case, truth, tolerance, nodes):
            return {"points_per_axis": points, "radius": radius}
        points = 2 * points - 1
    raise ArithmeticError(f"{case}: {MOST[model.latent_dim]} points per axis are not enough")


def reach(case: Case) -> float:
    """The largest coordinate of a latent within 45 nats of the best, of any observation."""
    m = case.model.latent_dim
    points = {1: 2**17 + 1, 2: 513, 3: 129}[m]
    axis = np.linspace(-oracle.RADIUS, oracle.RADIUS, points)
    z = np.stack(np.meshgrid(*[axis] * m, indexing="ij"), axis=-1).reshape(-1, m)
    found = []
    for i in range(len(case.x)):
        value = rough_log_joint(case, i)(z)
        found.append(np.abs(z[value > value.max() - 45.0]).max())
    return max(found) + 2.0 * oracle.RADIUS / (points - 1)


def grid(m: int, points: int, radius: float) -> ri.FixedNodes:
    """Return a uniform grid as nodes for Lebesgue measure."""
    axis = np.linspace(-radius, radius, points)
    z = np.stack(np.meshgrid(*[axis] * m, indexing="ij"), axis=-1).reshape(-1, m)
    return ri.FixedNodes(z, np.full(len(z), m * math.log(2.0 * radius / (points - 1))))


def _close(case: Case, truth: Truth, tolerance: dict[str, tuple[float, float]], nodes: ri.FixedNodes) -> bool:
    own = getattr(Refica(nodes), case.level.replace("-", "_"))(case)
    if not isinstance(own, dict):
        own = {LEVELS[case.level][0]: own}
    return all(
        (np.abs(own[name] - value) <= 0.1 * (tolerance[name][0] + tolerance[name][1] * np.abs(value))).all()
        for name, value in truth.value.items()
    )
