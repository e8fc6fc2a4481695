"""The command line: results on stdout, words on stderr, exit codes, one-line errors, files."""

import functools
import json
import subprocess
import sys

import numpy as np
import pytest

import refica as ri
from refica import compare as compare_module
from refica.cli import BAD_DATA, NOT_CONVERGED, OK, USAGE, main
from refica.cli import compare as compare_command
from refica.cli.options import integrator
from refica.datasets import Dataset
from refica.files import read_csv
from refica.fit import fit_mle, fit_vae
from refica.model_files import load_model, save_model


@functools.cache
def compared(x, shape, columns, settings):
    """A comparison, and what was told meanwhile; the same data are compared once."""
    told = []
    data = Dataset("points", columns, np.frombuffer(x).reshape(shape))
    return compare_module.compare(data, settings, told.append), told


def compare_once(data, settings, progress, executor):
    result, told = compared(data.x.tobytes(), data.x.shape, data.columns, settings)
    for words in told:
        progress(words)
    return result


@pytest.fixture
def short_fits(monkeypatch):
    monkeypatch.setattr(compare_command, "compare", compare_once)
    monkeypatch.setattr(compare_module, "fit_vae", functools.partial(fit_vae, max_iter=200))
    monkeypatch.setattr(compare_module, "fit_mle", functools.partial(fit_mle, max_iter=10))
    monkeypatch.setattr(compare_module, "FOLDS", 2)
    monkeypatch.setattr(compare_module, "SCORED", 0)


@pytest.fixture
def table(tmp_path):
    """A CSV of 40 points about a line, with a column that is not numeric."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 1)) @ [[1.0, -0.5]] + 0.2 * rng.standard_normal((40, 2))
    path = tmp_path / "points.csv"
    lines = ["a,b,kind", *(f"{p!r},{q!r},blue" for p, q in x.tolist())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_simulate_writes_csv_to_stdout_and_words_to_stderr(capsys, tmp_path):
    assert main(["simulate", "--example", "relu", "--size", "5", "--latents"]) == OK
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "x1,x2,z1"
    assert len(out.splitlines()) == 6
    assert "5 observations of relu" in err
    path = tmp_path / "x.csv"
    assert main(["simulate", "--size", "7", "--out", str(path)]) == OK
    np.testing.assert_array_equal(read_csv(path).values, ri.example("tanh").simulate(7)[1])


def test_fit_writes_a_model_that_evaluate_reads(capsys, table, tmp_path):
    folder = tmp_path / "fit"
    code = main(["fit", str(table), "--columns", "a,b", "--hidden", "2", "--out", str(folder)])
    out, err = capsys.readouterr()
    assert code == OK
    summary = json.loads((folder / "fit.json").read_text(encoding="utf-8"))
    assert f"sigma2\t{summary['sigma2']}" in out
    assert summary["status"] == "converged"
    assert "converged" in err

    assert main(["evaluate", str(folder / "model.json"), str(table)]) == OK  # of the columns a and b
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "log_p,error,converged"
    total = sum(float(line.split(",")[0]) for line in lines[1:])
    assert total == pytest.approx(summary["log_likelihood"], abs=1e-9)
    assert "per observation" in err


def test_a_fit_goes_on_where_it_was_cut_short(capsys, table, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ["fit", str(table), "--columns", "a,b", "--hidden", "2", "--method", "adam", "--starts", "1"]
    assert main([*arguments, "--max-iter", "800", "--out", str(whole)]) == NOT_CONVERGED
    assert main([*arguments, "--max-iter", "800", "--out", str(parts), "--resume"]) == BAD_DATA
    assert "checkpoint.json" in capsys.readouterr().err
    assert main([*arguments, "--max-iter", "400", "--out", str(parts)]) == NOT_CONVERGED
    assert main([*arguments, "--max-iter", "800", "--out", str(parts), "--resume"]) == NOT_CONVERGED
    first, second = (load_model(folder / "model.json") for folder in (whole, parts))
    assert first.theta.tobytes() == second.theta.tobytes()
    assert "iteration" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("auto", None),
        ("gauss-hermite:20", ri.Quadrature(ri.gauss_hermite(20))),
        ("gauss-hermite:7@laplace", ri.Quadrature(ri.gauss_hermite(7), "laplace")),
        ("uniform-grid:401:8.5", ri.Quadrature(ri.uniform_grid(401, 8.5))),
        ("monte-carlo:1000:3", ri.Quadrature(ri.monte_carlo(1000, 3))),
    ],
)
def test_integrators_by_their_words(words, named):
    assert integrator(words) == named


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("gauss-hermit:20", "did you mean 'gauss-hermite'"),
        ("gauss-hermite", "gauss-hermite:int"),
        ("uniform-grid:5", "uniform-grid:int:float"),
        ("gauss-hermite:7@lapalce", "did you mean 'laplace'"),
        ("gauss-hermite:0", "order must be an integer >= 1"),
    ],
)
def test_integrators_that_are_misspelt(words, message):
    with pytest.raises(ValueError, match=message):
        integrator(words)


def test_an_integrator_that_is_too_coarse_ends_with_4(capsys, tmp_path):
    model = ri.example("tanh").model.replace(sigma2=1e-4)
    save_model(tmp_path / "m.json", model)
    main(["simulate", "--size", "20", "--out", str(tmp_path / "x.csv")])
    arguments = ["evaluate", str(tmp_path / "m.json"), str(tmp_path / "x.csv")]
    assert main([*arguments, "--integrator", "auto:3"]) == USAGE
    assert main([*arguments, "--integrator", "gauss-hermite:20"]) == NOT_CONVERGED
    assert "not converged for" in capsys.readouterr().err
    assert main(arguments) == OK


def test_compare_writes_report_results_and_models(capsys, table, tmp_path, short_fits):
    folder = tmp_path / "out"
    arguments = ["compare", "--data", str(table), "--columns", "a,b", "--hidden", "2", "--out", str(folder)]
    assert main(arguments) == OK
    out, err = capsys.readouterr()
    assert "direct MLE" in out
    assert "fold 2 of 2 fitted" in err
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "report.html",
        "results.json",
        "model-linear.json",
        "model-direct-mle.json",
        "model-vae.json",
    }
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 6
    assert "http://" not in page
    assert "https://" not in page
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    vae = load_model(folder / "model-vae.json")
    assert vae.model.sigma2 == results["entries"][2]["sigma2"]


def test_compare_prints_json(capsys, table, tmp_path, short_fits):
    arguments = ["compare", "--data", str(table), "--columns", "1,2", "--hidden", "2", "--json"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == OK
    assert json.loads(capsys.readouterr().out)["schema"] == "refica-comparison"


def test_compare_without_matplotlib_still_gives_the_tables(capsys, table, tmp_path, short_fits, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = ["compare", "--data", str(table), "--columns", "a,b", "--hidden", "2"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == OK
    out, err = capsys.readouterr()
    assert "direct MLE" in out
    assert "refica[plot]" in err
    assert (tmp_path / "out" / "results.json").exists()
    assert not (tmp_path / "out" / "report.html").exists()


def test_bad_data_ends_with_3_and_one_line(capsys, table, tmp_path):
    cases = {
        "missing.csv": (["--data", str(tmp_path / "missing.csv")], "missing.csv"),
        "a column of text": (["--data", str(table)], "column 'kind'"),
        "an unknown column": (["--data", str(table), "--columns", "a,c"], "'c'"),
        "an unknown iris column": (["--data", "iris", "--columns", "sepal"], "sepal_length_cm"),
        "a folder that is a file": (["--data", "iris", "--out", str(table)], "points.csv"),
    }
    for name, (arguments, words) in cases.items():
        extra = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
        assert main(["compare", *arguments, *extra]) == BAD_DATA, name
        out, err = capsys.readouterr()
        assert out == ""
        assert words in err
        assert err.count("\n") == 1, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--example", "tanj"], "did you mean 'tanh'"),
        (["--activation", "rleu"], "did you mean 'relu'"),
        (["--method", "lbfgs"], "did you mean 'l-bfgs'"),
        (["--latent-dim", "0"], "latent_dim must be an integer >= 1"),
        (["--hidden", "-3"], "hidden must be an integer >= 1"),
        (["--data", "iris", "--seed", "-1"], "seed must be an integer >= 0"),
        (["--example", "relu", "--data", "iris"], "not both"),
        (["--columns", "a"], "--columns needs --data"),
    ],
)
def test_usage_errors_end_with_2_and_one_line(capsys, tmp_path, arguments, words):
    assert main(["compare", *arguments, "--out", str(tmp_path / "out")]) == USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_constant_data_are_refused_in_one_line(capsys, tmp_path):
    path = tmp_path / "constant.csv"
    path.write_text("a,b\n1,2\n1,2\n1,2\n", encoding="utf-8")
    for command in (["fit", str(path)], ["compare", "--data", str(path)]):
        assert main([*command, "--out", str(tmp_path / "out")]) == USAGE
        assert "must not be constant" in capsys.readouterr().err


def test_more_than_memory_holds_is_an_error_in_one_line(capsys):
    assert main(["simulate", "--size", str(10**13)]) == BAD_DATA
    assert capsys.readouterr().err.count("\n") == 1


def test_evaluate_refuses_data_of_another_dimension(capsys, table, tmp_path):
    save_model(tmp_path / "m.json", ri.example("tanh").model)
    arguments = ["evaluate", str(tmp_path / "m.json"), str(table), "--columns", "a"]
    assert main(arguments) == BAD_DATA
    assert "has 1 columns, expected 2" in capsys.readouterr().err
    (tmp_path / "m.json").write_text('{"schema": "refica-model", "version": 1}', encoding="utf-8")
    assert main(arguments) == BAD_DATA
    assert "not a complete refica-model file" in capsys.readouterr().err


def test_models_load_back_bit_for_bit(tmp_path):
    model = ri.NonlinearICA(ri.MLP((1, 3, 2), ri.leaky_relu(0.1)), ri.MLP((1, 3, 2)).init(0), 0.1 + 0.2)
    save_model(tmp_path / "m.json", model)
    loaded = load_model(tmp_path / "m.json")
    assert loaded.theta.tobytes() == model.theta.tobytes()
    assert (loaded.sigma2, loaded.decoder) == (model.sigma2, model.decoder)


def test_version_and_help_name_an_example(capsys):
    for arguments in (["--version"], ["compare", "--help"], ["simulate", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    assert "example: refica simulate" in capsys.readouterr().out


def test_the_reader_may_close_the_pipe():
    """As in `refica simulate | head -1`: no traceback."""
    code = "import sys; from refica.cli import main; sys.exit(main(['simulate', '--size', '200000']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    process.wait()
    assert "Traceback" not in err
