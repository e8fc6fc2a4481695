"""The conformance kit: its cases are well made, verdicts are right, its entrances refuse what they must."""

import json
import re
import sys
import tomllib
from collections import Counter
from importlib import resources
from pathlib import Path
from unittest import SkipTest

import numpy as np
import pytest

from refica.cli import main
from refica.files import DataError
from refica.testing import conformance
from refica.testing.conformance import LEVELS, Adapter, AnswersFile, Command, cases
from refica.testing.conformance.case import KINDS
from refica.testing.conformance.formulas import RIGHT, answer

QUICK = [case for case in cases() if case.level not in ("log-marginal", "gradient", "density", "posterior")]
ONE = cases("log-joint")[0]
FILES = resources.files("refica.testing.conformance").joinpath("cases", "v1")


def read(name):
    return json.loads(FILES.joinpath(f"{name}.json").read_text(encoding="utf-8"))


# -- the cases -----------------------------------------------------------------------------------------------


def test_there_are_enough_cases_of_every_level_and_kind():
    found = cases()
    assert len(found) >= 200
    assert set(Counter(case.level for case in found)) == set(LEVELS)
    assert {case.kind for case in found} == set(KINDS)
    assert len({case.id for case in found}) == len(found)
    assert all(case.id.startswith(f"{case.level}/") for case in found)


def test_both_routes_agree_and_errors_are_below_tolerances():
    for case in cases():
        provenance, error = case.document["provenance"], case.document["error"]
        assert len(provenance["routes"]) == 2
        assert set(error) == set(case.expected) == set(case.tolerance)
        for name, expected in case.expected.items():
            tolerance = case.tolerance[name].around(expected)
            assert error[name] <= 0.1 * np.max(tolerance), (case.id, name)
        assert provenance["tolerance"] in read(case.level)["tolerances"]


def conforms(value, schema, defs):
    """A validator of the words that the schema uses, and of no others."""
    if "$ref" in schema and not conforms(value, defs[schema["$ref"].rpartition("/")[2]], defs):
        return False
    known = {
        *("$schema", "title", "description", "$ref", "$defs", "type", "const", "enum", "required"),
        *("properties", "additionalProperties", "items", "minItems", "minimum", "exclusiveMinimum"),
        *("minProperties", "anyOf", "oneOf"),
    }
    assert set(schema) <= known, set(schema) - known
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_type = {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "number": number,
        "integer": number and value == int(value),
    }
    checks = [
        "type" not in schema or is_type[schema["type"]],
        "const" not in schema or value == schema["const"],
        "enum" not in schema or value in schema["enum"],
        "anyOf" not in schema or any(conforms(value, each, defs) for each in schema["anyOf"]),
        "oneOf" not in schema or sum(conforms(value, each, defs) for each in schema["oneOf"]) == 1,
    ]
    if number:
        checks += [value >= schema.get("minimum", -np.inf), value > schema.get("exclusiveMinimum", -np.inf)]
    if isinstance(value, list):
        checks.append(len(value) >= schema.get("minItems", 0))
        checks += [conforms(entry, schema["items"], defs) for entry in value if "items" in schema]
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        checks += [
            set(schema.get("required", ())) <= set(value),
            len(value) >= schema.get("minProperties", 0),
        ]
        for key, entry in value.items():
            if key in properties:
                checks.append(conforms(entry, properties[key], defs))
            else:
                checks.append(others if isinstance(others, bool) else conforms(entry, others, defs))
    return all(checks)


@pytest.mark.parametrize("level", LEVELS)
def test_every_file_is_as_the_schema_says(level):
    schema = read("schema")
    assert conforms(read(level), schema, schema["$defs"])


def planted_into(document):
    """Files that the schema must refuse."""
    for change in (
        lambda d: d.update(version=2),
        lambda d: d["cases"][0].pop("tolerance"),
        lambda d: d["cases"][0].update(comment="no such key"),
        lambda d: d["cases"][0]["model"].update(sigma2=0.0),
        lambda d: d["cases"][0]["model"]["decoder"]["layers"][0].update(activation="swish"),
        lambda d: d["cases"][0]["model"]["decoder"]["layers"][0].update(weight=[1.0, 2.0]),
        lambda d: d["cases"][0]["expected"].update(log_joint="large"),
    ):
        wrong = json.loads(json.dumps(document))
        change(wrong)
        yield wrong


def test_the_schema_refuses_wrong_files():
    schema = read("schema")
    for wrong in planted_into(read("log-joint")):
        assert not conforms(wrong, schema, schema["$defs"])


def test_levels_and_kinds_of_the_schema_are_those_of_the_kit():
    defs = read("schema")["$defs"]
    assert defs["level"]["enum"] == list(LEVELS)
    assert defs["case"]["properties"]["kind"]["enum"] == list(KINDS)


def test_a_request_does_not_hold_the_answer():
    for case in cases():
        assert not {"expected", "error", "tolerance", "provenance"} & set(case.request())


def test_unknown_levels_and_kinds_are_refused():
    with pytest.raises(ValueError, match="did you mean 'log-joint'"):
        cases("log-joints")
    with pytest.raises(ValueError, match="kind must be one of"):
        cases(kind="hard")
    assert {case.level for case in cases(["iwae", "elbo"])} == {"elbo", "iwae"}
    assert all(case.kind == "sharp" for case in cases(kind="sharp"))


# -- refica and the plain formulas ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_refica_conforms_to_closed_formulas(case):
    conformance.check(conformance.Refica(), case)


@pytest.mark.parametrize("level", ["log-marginal", "gradient", "density", "posterior"])
def test_refica_conforms_to_integrals(level):
    some = [case for case in cases(level) if case.model.latent_dim < 3]
    report = conformance.run(conformance.Refica(), some)
    assert report.passed, conformance.as_text(report)


def test_the_formulas_that_slips_replace_are_right():
    """Their grids are coarse across kinks, but of slips it is only the difference that counts."""
    for case in cases():
        if case.level == "optimum" or (case.hint and case.kind in ("sharp", "outlier")):
            continue
        found = answer(RIGHT, case)
        for name, expected in case.expected.items():
            off, size = np.max(np.abs(found[name] - expected)), max(1.0, np.max(np.abs(expected)))
            assert off <= 3e-3 * size, f"{case} {name}"


# -- verdicts ------------------------------------------------------------------------------------------------


def test_an_answer_is_judged_entry_by_entry():
    right = np.array(ONE.expected["log_joint"])
    assert conformance.judge(ONE, right).status == "passed"
    assert conformance.judge(ONE, {"log_joint": right.tolist()}).status == "passed"
    right[1, 2] += 1e-6
    outcome = conformance.judge(ONE, right)
    assert outcome.status == "failed"
    assert outcome.ratio > 1e3
    assert "log_joint[1, 2] is" in outcome.message
    right[1, 2] = np.nan
    assert conformance.judge(ONE, right).status == "failed"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([[1.0]], r"log_joint must have shape \(2, 3\), got \(1, 1\)"),
        ({"log_p": [1.0]}, "the answer lacks log_joint"),
        ([["a", "b"]], "not made of real numbers"),
        ([[1.0], [1.0, 2.0]], "cannot be read"),
        (1j * np.ones((2, 3)), "not made of real numbers"),
    ],
)
def test_an_answer_that_cannot_be_compared_is_an_error(wrong, words):
    outcome = conformance.judge(ONE, wrong)
    assert outcome.status == "error"
    assert re.search(words, outcome.message)


def test_parameters_may_be_flat_or_in_layers():
    case = next(c for c in cases("decoder-gradient") if c.kind == "smooth")
    flat = {name: np.array(value) for name, value in case.expected.items()}
    layers = case.document["expected"]
    assert isinstance(layers["theta"][0], dict)
    assert conformance.judge(case, flat).status == conformance.judge(case, layers).status == "passed"
    layer = dict(layers["theta"][0], weight=np.transpose(layers["theta"][0]["weight"]).tolist())
    outcome = conformance.judge(case, {**layers, "theta": [layer, *layers["theta"][1:]]})
    assert outcome.status == "error"
    assert "parameters must have shapes" in outcome.message
    assert "weight and bias" in conformance.judge(case, {**layers, "theta": [{"W": [1.0]}]}).message


# -- Python adapters -----------------------------------------------------------------------------------------


class Mine:
    def log_joint(self, case):
        z = np.asarray(case.z)
        g = z
        for layer in case.model.decoder.layers:
            g = {"tanh": np.tanh, "identity": np.asarray}[layer.activation](g @ layer.weight.T + layer.bias)
        s2 = case.model.sigma2
        squared = ((case.x[:, None] - g) ** 2).sum(-1)
        log_x = -0.5 * (squared / s2 + case.model.data_dim * np.log(2 * np.pi * s2))
        return log_x - 0.5 * ((z**2).sum(-1) + case.model.latent_dim * np.log(2 * np.pi))


@pytest.mark.parametrize("case", cases("log-joint", kind="smooth")[:4], ids=str)
def test_ten_lines_conform(case):
    conformance.check(Mine(), case)


def test_what_is_not_offered_is_skipped():
    with pytest.raises(SkipTest):
        conformance.check(Mine(), cases("elbo")[0])

    class Refuses(Mine):
        def elbo(self, case):
            raise NotImplementedError

    some = [ONE, cases("elbo")[0], cases("decoder")[0]]
    report = conformance.run(Refuses(), some)
    assert [o.status for o in report.outcomes] == ["passed", "skipped", "skipped"]
    assert report.passed
    assert not conformance.run(Refuses(), some[1:]).passed  # nothing was answered
    assert "nothing was answered" in conformance.as_text(conformance.run(Refuses(), some[1:]))


def test_an_adapter_may_be_a_dict_and_must_offer_something():
    assert conformance.run({"log_joint": Mine().log_joint}, [ONE]).passed
    with pytest.raises(TypeError, match="an adapter must offer some of decoder, decoder_gradient"):
        Adapter(object())


def test_an_adapter_that_raises_is_an_error_of_its_own():
    def log_joint(case):
        raise ZeroDivisionError("by zero")

    outcome = conformance.run({"log_joint": log_joint}, [ONE]).outcomes[0]
    assert (outcome.status, outcome.message) == ("error", "ZeroDivisionError: by zero")


# -- programs and files --------------------------------------------------------------------------------------


def program(folder, text):
    path = folder / "program.py"
    path.write_text(f"import json, sys, time\ncase = json.load(sys.stdin)\n{text}\n", encoding="utf-8")
    return Command([sys.executable, "-I", str(path)], timeout=20.0)


def test_a_program_is_asked_and_judged(tmp_path):
    right = ONE.document["expected"]["log_joint"]
    text = (
        f"if case['level'] == 'log-joint': print(json.dumps(dict(answer={right!r})))\n"
        "else: print(json.dumps(dict(unsupported=True)))"
    )
    report = conformance.run(program(tmp_path, text), [ONE, cases("decoder")[0]])
    assert [o.status for o in report.outcomes] == ["passed", "skipped"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("print('hello')", "its output is not JSON: 'hello'"),
        ("print(json.dumps([1]))", 'its output must be an object with "answer"'),
        ("sys.exit('cannot do this')", "exit code 1: cannot do this"),
        ("print(json.dumps(dict(answer='x')))", "not made of real numbers"),
    ],
)
def test_a_program_that_fails_is_said_how(tmp_path, text, words):
    outcome = conformance.run(program(tmp_path, text), [ONE]).outcomes[0]
    assert outcome.status == "error"
    assert words in outcome.message


def test_a_program_that_hangs_is_stopped(tmp_path):
    slow = Command(program(tmp_path, "time.sleep(60)").words, timeout=0.2)
    assert "no answer within 0.2 s" in conformance.run(slow, [ONE]).outcomes[0].message


def test_a_program_that_is_not_there_stops_the_run():
    with pytest.raises(DataError, match="cannot be started"):
        conformance.run(Command("no-such-program-here --x"), [ONE])
    with pytest.raises(ValueError, match="must not be empty"):
        Command("")
    with pytest.raises(ValueError, match="timeout"):
        Command("x", timeout=0.0)


def answers_file(folder, **changes):
    path = folder / "answers.json"
    answers = {case.id: case.document["expected"] for case in cases("optimum")}
    document = {"schema": "refica-conformance-answers", "version": 1, "answers": answers}
    path.write_text(json.dumps({**document, **changes}), encoding="utf-8")
    return path


def test_a_file_of_answers_is_judged(tmp_path):
    path = answers_file(tmp_path, implementation="by hand")
    report = conformance.run(AnswersFile(path))
    assert report.passed
    assert report.name == "by hand"
    assert sum(o.status == "skipped" for o in report.outcomes) == len(cases()) - len(cases("optimum"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answers": {}}, "must hold an object 'answers'"),
        ({"answers": {"decoder/none": [1.0]}}, "which is no case"),
        ({"version": 7}, "version 7"),
        ({"schema": "other"}, "must be of schema"),
    ],
)
def test_a_wrong_file_of_answers_is_refused(tmp_path, change, words):
    with pytest.raises(DataError, match=words):
        AnswersFile(answers_file(tmp_path, **change))


# -- the command ---------------------------------------------------------------------------------------------


def test_the_command_judges_an_adapter(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_to_judge.py").write_text(
        "from refica.testing.conformance import Refica as Right\n"
        "class Wrong(Right):\n"
        "    def log_joint(self, case):\n"
        "        return super().log_joint(case) + 0.9189385332046727 * case.model.data_dim\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = ["conform", "--level", "log-joint", "--adapter"]
    assert main([*arguments, "mine_to_judge:Right", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"]
    assert found["levels"][0]["passed"] == len(cases("log-joint"))
    assert main([*arguments, "mine_to_judge:Wrong"]) == 1
    out = capsys.readouterr().out
    assert "DOES NOT CONFORM" in out
    assert "lost-constant: n/2 log 2π is left out" in out
    sys.modules.pop("mine_to_judge")


def test_the_command_exports_and_refuses(tmp_path, capsys):
    path = tmp_path / "cases.json"
    assert main(["conform", "--export", str(path), "--level", "iwae"]) == 0
    exported = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert [case["id"] for case in exported] == [case.id for case in cases("iwae")]
    assert main(["conform", "--adapter", "no.such:thing"]) == 2
    assert main(["conform", "--answers", str(tmp_path / "none.json")]) == 3
    assert main(["conform", "--command", "no-such-program-here", "--level", "decoder"]) == 3
    assert "cannot be started" in capsys.readouterr().err


def test_the_cases_are_part_of_the_package():
    root = Path(__file__).parent.parent
    data = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert data["package-data"]["refica.testing.conformance"] == ["cases/v1/*.json"]
