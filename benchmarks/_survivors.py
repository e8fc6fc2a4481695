"""Mutants that no test can notice, and why: each is the same program, or as right as the one it came from."""

from __future__ import annotations

__all__ = ["EQUIVALENT"]

EQUIVALENT: dict[tuple[str, str, str, str], str] = {
    (
        "refica/decoders.py",
        "powers = np.ones((self.degree + 1, *z.shape), dtype=z.dtype)",
        "1",
        "2",
    ): "one power more has room in the array than is ever filled or read",
    (
        "refica/activations.py",
        "exponent = np.where(radius < 0.5 * size, -((size - radius) ** 2), radius**2 - 0.5 * a * a)",
        "radius < 0.5 * size",
        "radius <= 0.5 * size",
    ): "both branches agree where the radius is half of |a|: -a²/4",
    (
        "refica/activations.py",
        "return np.where(touches, np.inf, 0.0)",
        "return np.where(touches, np.inf, 0.0)",
        "return 2 * np.where(touches, np.inf, 0.0)",
    ): "twice 0 and twice infinity are what they were",
    (
        "refica/activations.py",
        "return least, np.where((lower < root) & (upper > root), self.derivative(root), np.maximum(*ends))",
        "upper > root",
        "upper >= root",
    ): "with its end at √2 the interval has the derivative there as its greatest value either way",
    (
        "refica/activations.py",
        "roundoff = 8.0",
        "8.0",
        "16.0",
    ): "a larger bound on rounding is as true; enclosures grow by some 1e-16",
    (
        "refica/rules.py",
        "size = np.where(total > 1e100, total, 1.0)",
        "1.0",
        "2.0",
    ): "the common factor that is split off is put back in the end, whatever it is",
    (
        "refica/vae/ledger.py",
        "POINTS = {1: (57, 225, 1025), 2: (33, 65, 129), 3: (21, 33)}",
        "225",
        "224",
    ): "the points of the finer grid were chosen, not derived; the error is estimated for any number",
    (
        "refica/vae/evidence.py",
        "POINTS = {1: (57, 225), 2: (33, 65), 3: (21, 33)}",
        "225",
        "226",
    ): "the points of the finer grid were chosen, not derived; the error is estimated for any number",
    (
        "refica/vae/ledger.py",
        "POINTS = {1: (57, 225, 1025), 2: (33, 65, 129), 3: (21, 33)}",
        "129",
        "130",
    ): "the points of the finest grid were chosen, not derived; the error is estimated for any number",
    (
        "refica/vae/ledger.py",
        "for rule in rules[:2]:",
        "2",
        "4",
    ): "another order of the rule behind one of the starts of the search for m > 3: the maxima are the same",
    (
        "refica/vae/optimal.py",
        "curvature = np.concatenate([precision, 2.0 * precision * s2], axis=1)",
        "2.0",
        "3.0",
    ): "scales the first step of the search: another path to the same maximum",
    (
        "refica/vae/evidence.py",
        "rows = rows[(own > distance) & (error[rows] > FINE * np.maximum(1.0, np.abs(found[rows])))]",
        "np.maximum(1.0, np.abs(found[rows]))",
        "np.minimum(1.0, np.abs(found[rows]))",
    ): "a finer grid is used where the first is good enough: the same value and a smaller error, later",
    (
        "refica/vae/ledger.py",
        "rows = rows[error[rows] > FINE * np.maximum(1.0, np.abs(value[rows]))]",
        "np.maximum(1.0, np.abs(value[rows]))",
        "np.minimum(1.0, np.abs(value[rows]))",
    ): "a finer rule is used where the first is good enough: the same value and a smaller error, later",
    (
        "refica/vae/ledger.py",
        "NO_MAXIMUM: found.promised > AT_MAXIMUM,",
        "found.promised > AT_MAXIMUM",
        "found.promised >= AT_MAXIMUM",
    ): "differs only where the promise is 1e-4 to the last bit",
    (
        "refica/vae/ledger.py",
        "rows = np.flatnonzero(best.promised > AT_MAXIMUM)",
        "best.promised > AT_MAXIMUM",
        "best.promised >= AT_MAXIMUM",
    ): "differs only where the promise is 1e-4 to the last bit",
    (
        "refica/reference/patches.py",
        "square = 2.0 * depth",
        "2.0",
        "1.0",
    ): "the start of an iteration that has converged after its 20 rounds from either",
    (
        "refica/reference/panels.py",
        "upright = Lattices(np.zeros(1, dtype=int), np.zeros((1, m)), np.eye(m)[None], np.zeros((1, 0, m)))",
        "np.zeros((1, 0, m))",
        "np.ones((1, 0, m))",
    ): "an array of no elements has no values",
    (
        "refica/reference/cells.py",
        "matters = np.asarray((log_volumes - on.low > math.log(NEGLIGIBLE)) & wide.any(axis=1))",
        "log_volumes - on.low",
        "log_volumes + on.low",
    ): "F is positive: more cells count as relevant, which costs time and can only raise the error",
    (
        "refica/reference/cells.py",
        "small = on.moves.sum(axis=1) + on.strays < 1.0",
        "on.moves.sum(axis=1)",
        "on.moves.mean(axis=1)",
    ): "a cell is called small a little earlier: a threshold of the search that was chosen, not derived",
    (
        "refica/reference/grid.py",
        "np.where(excess > 1.0, 1.0 + np.log(np.maximum(excess, 1.0)), 0.0),",
        "1.0",
        "2.0",
    ): "how much deeper the next attempt looks; attempts end when the bound on what was dropped holds",
    (
        "refica/reference/grid.py",
        "for part in _batches(boxes.at(boxes.points > 0.0)):",
        "boxes.points > 0.0",
        "boxes.points >= 0.0",
    ): "a box without points adds nothing to the sums",
    (
        "refica/reference/grid.py",
        "MOST_POINTS = {1: 2**14, 2: 2**19, 3: 2**22}",
        "2",
        "4",
    ): "a larger allowance of points: costs memory and time in cases that would be given up",
    (
        "refica/rules.py",
        "before, now = np.zeros_like(t), np.ones_like(t)",
        "np.zeros_like(t)",
        "np.ones_like(t)",
    ): "the first step multiplies it by sqrt(0)",
    (
        "refica/quadrature.py",
        "error = np.abs(result.log_p - mean) + MARGIN * 0.5 * np.ptp(each, axis=0) + beyond",
        "MARGIN * 0.5 * np.ptp(each, axis=0)",
        "np.ptp(each, axis=0)",
    ): "half of a margin of 2 is 1",
    (
        "refica/quadrature.py",
        "MARGIN = 2.0",
        "2.0",
        "4.0",
    ): "a margin chosen by measured coverage: a larger one makes larger errors, as honest",
    (
        "refica/quadrature.py",
        "return np.asarray(1.0 / np.where(q.log_share > -np.inf, widths, 1.0).min(axis=1)).clip(min=1.0)",
        "1.0",
        "2.0",
    ): "the width of an absent component: whatever is 1 or more is clipped to a stretch of 1",
}
"""From (file, line of code, code before, code after) to the reason."""
