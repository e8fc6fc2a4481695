import errno
import io
import json
import math
import os
import re
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import refica
from refica.files import (
    DataError,
    OutputError,
    csv_files,
    prepare_folder,
    read_csv,
    read_json,
    to_json,
    write_csv,
    write_json,
    write_text_atomically,
    writing,
)

IRIS = Path(refica.__file__).parent / "data" / "iris.csv"
MEASURES = ("sepal_length_cm", "sepal_width_cm", "petal_length_cm", "petal_width_cm")

finite = st.floats(allow_nan=False, allow_infinity=False)
tables = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=finite)

needs_permissions = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)


def bits(values):
    """The bytes of the numbers: tells -0.0 from 0.0, which == does not."""
    return np.asarray(values, dtype=np.float64).tobytes()


def csv_file(folder, content):
    path = folder / "data.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def error_of(error, call, *args, **kwargs):
    """The message of the error raised, after checking that it is one line."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Writing, whole or not at all


def test_text_is_written_as_it_is(tmp_path):
    path = tmp_path / "new" / "folder" / "note.txt"
    write_text_atomically(path, "θ\r\nσ²\n")
    assert path.read_bytes() == "θ\r\nσ²\n".encode()
    assert os.listdir(path.parent) == ["note.txt"]


def test_paths_may_be_str(tmp_path):
    write_text_atomically(str(tmp_path / "a.txt"), "a")
    write_json(str(tmp_path / "a.json"), {"schema": "s", "version": 1})
    write_csv(str(tmp_path / "a.csv"), [[1.0]])
    assert read_json(str(tmp_path / "a.json"), "s", [1])["version"] == 1
    assert read_csv(str(tmp_path / "a.csv")).values.tolist() == [[1.0]]


class Crash(BaseException):
    """As a kill or Ctrl-C: not an Exception, so that no `except Exception` can hide the damage."""


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("fault", [Crash(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, step, fault, before):
    path = tmp_path / "model.json"
    if before is not None:
        path.write_text(before)

    def fail(*_args):
        raise fault

    monkeypatch.setattr(writing.os, step, fail)
    with pytest.raises((Crash, OutputError)) as caught:
        write_text_atomically(path, "new")
    monkeypatch.undo()
    assert (path.read_text() if path.exists() else None) == before
    assert os.listdir(tmp_path) == ([] if before is None else ["model.json"])
    if isinstance(fault, OSError):
        assert str(caught.value) == (
            f"cannot write {path}: no space left on device; free some space or choose another disk"
        )


def test_the_content_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    """A planted kill between any two steps is survived only if they come in this order."""
    steps = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            writing.os, name, lambda *args, real=real, name=name: (steps.append(name), real(*args))[1]
        )
    write_text_atomically(tmp_path / "a", "a")
    assert steps == ["fsync", "replace"]


def test_text_that_cannot_be_encoded_writes_nothing(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(tmp_path / "a", "\ud800")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="no permission bits")
def test_permissions_are_those_of_any_file_or_of_the_old_one(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text_atomically(tmp_path / "new", "")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "new").chmod(0o640)
    write_text_atomically(tmp_path / "new", "again")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_a_link_keeps_its_target(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_a_folder_in_the_way(tmp_path):
    message = error_of(OutputError, write_text_atomically, tmp_path, "a")
    assert message == (
        f"cannot write {tmp_path}: is a directory; a folder of that name is in the way; choose another name"
    )


def test_a_file_in_the_way_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for call in (lambda p: write_text_atomically(p / "a", "a"), prepare_folder):
        message = error_of(OutputError, call, tmp_path / "file" / "folder")
        assert "a part of that path is a file; choose another name" in message
    assert "a file of that name is in the way" in error_of(OutputError, prepare_folder, tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no devices")
def test_a_device_is_not_replaced():
    message = error_of(OutputError, write_text_atomically, "/dev/null", "a")
    assert message == "cannot write /dev/null: not a regular file; choose another place"
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_name_that_is_too_long(tmp_path):
    message = error_of(OutputError, write_text_atomically, tmp_path / ("a" * 300), "a")
    assert message.endswith("choose a shorter name")
    write_text_atomically(tmp_path / ("a" * 250), "a")  # the temporary name is not made from it


@needs_permissions
def test_a_folder_that_may_not_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    for call in (lambda p: write_text_atomically(p / "a", "a"), prepare_folder):
        assert "choose a folder that you may write to" in error_of(OutputError, call, tmp_path)
    tmp_path.chmod(0o700)


@needs_permissions
def test_a_file_made_read_only_is_kept(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o400)
    assert "read-only" in error_of(OutputError, write_text_atomically, tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("step", ["touch", "mkdir"])
def test_refused_permission_is_reported(tmp_path, monkeypatch, step):
    """The same as above where the tests run as root, whom no permission stops."""

    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, step, refuse)
    assert error_of(OutputError, prepare_folder, tmp_path / "out") == (
        f"cannot write to the folder {tmp_path / 'out'}: permission denied; "
        "choose a folder that you may write to"
    )


def test_a_read_only_file_is_reported(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(writing.os, "access", lambda *_args: False)
    assert "existing file is read-only" in error_of(OutputError, write_text_atomically, tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"


def test_prepare_folder_creates_it_and_leaves_nothing(tmp_path):
    folder = tmp_path / "a" / "b"
    assert prepare_folder(folder) == folder
    assert prepare_folder(str(folder)) == folder
    assert folder.is_dir()
    assert os.listdir(folder) == []


def test_an_output_error_is_an_os_error_and_keeps_its_cause(tmp_path):
    with pytest.raises(OSError, match="cannot write") as caught:
        write_text_atomically(tmp_path, "a")
    assert isinstance(caught.value.__cause__, IsADirectoryError)


# JSON

plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)


@given(data=plain_data)
def test_json_round_trip(data):
    assert repr(json.loads(to_json(data))) == repr(data)  # repr tells -0.0 from 0.0 and 1 from True


@given(values=arrays(np.float64, array_shapes(max_dims=3, max_side=4), elements=finite))
def test_arrays_read_back_bit_for_bit(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "arrays.json"
    write_json(path, {"schema": "s", "version": 1, "values": values})
    read = np.array(read_json(path, "s", [1])["values"])
    assert read.shape == values.shape
    assert bits(read) == bits(values)


def test_numpy_scalars_and_other_arrays():
    data = {
        "float32": np.float32(0.1),
        "int": np.int64(3),
        "bool": np.bool_(True),
        "ints": np.arange(2),
        "words": np.array(["a", "b"]),
        "tuple": (1, [2.0]),
        "zero_dim": np.array(1.5),
    }
    assert json.loads(to_json(data)) == {
        "float32": float(np.float32(0.1)),
        "int": 3,
        "bool": True,
        "ints": [0, 1],
        "words": ["a", "b"],
        "tuple": [1, [2.0]],
        "zero_dim": 1.5,
    }


def test_json_layout():
    assert to_json({}) == "{}\n"
    assert to_json([1, 2.5]) == "[1, 2.5]\n"
    assert to_json({"a": 0.1, "b": {"c": [1]}}) == '{\n  "a": 0.1,\n  "b": {"c": [1]}\n}\n'
    assert to_json({"σ²": "σ²"}).isascii()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float64("nan"), np.float32("inf")])
def test_non_finite_numbers(tmp_path, bad):
    data = {"schema": "s", "version": 1, "fit": {"theta": [0.0, bad], "error": np.array([[1.0, bad]])}}
    message = error_of(ValueError, write_json, tmp_path / "a.json", data)
    assert message == f"fit.theta[1] must be finite to be written, got {float(bad)}"
    assert os.listdir(tmp_path) == []
    write_json(tmp_path / "a.json", data, non_finite="null")
    read = read_json(tmp_path / "a.json", "s", [1])
    assert read["fit"] == {"theta": [0.0, None], "error": [[1.0, None]]}


def test_an_unknown_policy_for_non_finite_numbers():
    with pytest.raises(ValueError, match="non_finite must be 'reject' or 'null', got 'zero'"):
        to_json({}, non_finite="zero")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": [1, {2}]}, "a[1] cannot be written as JSON: set"),
        ({"a": 1j}, "a cannot be written as JSON: complex"),
        (object(), "the data cannot be written as JSON: object"),
        ({"a": {1: 2}}, "a cannot be written as JSON: the key 1 is not a str"),
        ({1: 2}, "the data cannot be written as JSON: the key 1 is not a str"),
        ({"a": np.array([1j])}, "a cannot be written as JSON: an array of dtype complex128"),
        ({"a": np.array([None])}, "a cannot be written as JSON: an array of dtype object"),
    ],
)
def test_what_json_cannot_hold(data, message):
    assert error_of(TypeError, to_json, data) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "b" 2}', "{path} is not JSON: Expecting ':' delimiter at line 2, column 6; is it the"),
        ("", "{path} is not JSON: Expecting value at line 1, column 1"),
        ("[1]", "{path} must hold a JSON object of schema 's', got a list"),
        ('{"version": 1}', "{path} must be of schema 's', got no schema; is it the right file?"),
        ('{"schema": "t", "version": 1}', "{path} must be of schema 's', got schema 't'"),
        ('{"schema": "s"}', "{path} must have an integer 'version', got None"),
        ('{"schema": "s", "version": true}', "{path} must have an integer 'version', got True"),
        ('{"schema": "s", "version": 1.0}', "{path} must have an integer 'version', got 1.0"),
        (
            '{"schema": "s", "version": 4}',
            "{path} has version 4 of schema 's', expected 2, 3; it was made by a newer refica: upgrade",
        ),
        (
            '{"schema": "s", "version": 1}',
            "{path} has version 1 of schema 's', expected 2, 3; write it anew",
        ),
        ('{"schema": "s", "a": NaN}', "{path} cannot be read: the number 'NaN' is not finite"),
        ('{"schema": "s", "a": -Infinity}', "{path} cannot be read: the number '-Infinity' is not finite"),
        ('{"schema": "s", "a": 1e999}', "{path} cannot be read: the number '1e999' is not finite"),
        ('{"a": 1, "b": 2, "a": 3}', "{path} cannot be read: the key 'a' is repeated"),
        ("[" * 200_000, "{path} cannot be read: it is nested too deeply"),
        ("1" * 5_000, "{path} cannot be read: Exceeds the limit"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "model.json"
    path.write_text(text)
    got = error_of(DataError, read_json, path, "s", (2, 3))
    assert got.startswith(message.format(path=path))


def test_json_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"schema": "s", "version": 1}')
    assert read_json(path, "s", {1}) == {"schema": "s", "version": 1}


# What both readers say of a file that cannot be read


@pytest.mark.parametrize("read", [read_csv, lambda path: read_json(path, "s", [1])])
def test_files_that_cannot_be_read(tmp_path, monkeypatch, read):
    assert error_of(DataError, read, tmp_path / "none") == (
        f"cannot read {tmp_path / 'none'}: no such file; check the path"
    )
    assert "it is a folder; give a file in it" in error_of(DataError, read, tmp_path)
    assert "null" in error_of(DataError, read, "a\0b")
    path = tmp_path / "a"
    for content, message in {
        "a,é\n1,2\n".encode("latin-1"): "is not UTF-8 text: byte 0xe9 in line 1; save it as UTF-8",
        b"a\n1\n\xff\n": "is not UTF-8 text: byte 0xff in line 3; save it as UTF-8",
        "a\n1\n".encode("utf-16"): "is UTF-16 text, expected UTF-8; save it as UTF-8",
        b"a\n1\0\n": "is not text: a NUL character in line 2",
    }.items():
        path.write_bytes(content)
        assert error_of(DataError, read, path) == f"{path} {message}"

    def refuse(_self):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert error_of(DataError, read, path) == f"cannot read {path}: permission denied"


def test_a_path_that_would_break_the_line_is_escaped(tmp_path):
    assert "'no\\nsuch'" in error_of(DataError, read_csv, "no\nsuch")


def test_a_data_error_is_a_value_error():
    assert issubclass(DataError, ValueError)


# CSV


@given(values=tables, header=st.booleans())
def test_csv_round_trip(tmp_path_factory, values, header):
    path = tmp_path_factory.getbasetemp() / "round.csv"
    columns = tuple(f"x{i + 1}" for i in range(values.shape[1]))
    write_csv(path, values, columns if header else None)
    table = read_csv(path)
    assert table.columns == columns
    assert table.values.shape == values.shape
    assert bits(table.values) == bits(values)


# Any name that is not blank at its ends, not a number and not a way of writing "no value".
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=8).filter(
    lambda name: name == name.strip() and csv_files._kind(name) == "text"
)


@given(columns=st.lists(names, min_size=1, max_size=5, unique=True), data=st.data())
def test_any_names_read_back(tmp_path_factory, columns, data):
    path = tmp_path_factory.getbasetemp() / "names.csv"
    values = data.draw(arrays(np.float64, (3, len(columns)), elements=finite))
    write_csv(path, values, columns)
    table = read_csv(path)
    assert table.columns == tuple(columns)
    assert bits(table.values) == bits(values)
    wanted = data.draw(st.permutations(range(len(columns))))
    for asked in ([columns[i] for i in wanted], [i + 1 for i in wanted]):
        table = read_csv(path, asked)
        assert table.columns == tuple(columns[i] for i in wanted)
        assert bits(table.values) == bits(values[:, wanted])


@given(content=st.text() | st.text(alphabet='1.e,;\t\n\r" ax-_'))
def test_any_text_is_read_or_refused_in_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    message = None
    try:
        table = read_csv(path)
    except DataError as error:
        message = str(error)
    if message is None:
        assert np.isfinite(table.values).all()
        assert table.values.shape[1] == len(table.columns)
    else:
        assert "\n" not in message


def test_the_values_are_the_caller_s_own(tmp_path):
    values = read_csv(csv_file(tmp_path, "1,2\n3,4\n")).values
    assert values.dtype == np.float64
    assert values.flags.c_contiguous
    assert values.flags.writeable
    assert values.flags.owndata


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("1,2\n3,4\n", ("x1", "x2")),
        ("1,2\n3,4", ("x1", "x2")),
        ("a,b\n1,2\n3,4\n", ("a", "b")),
        ("\ufeffa,b\n1,2\n3,4\n", ("a", "b")),
        ("\ufeff1,2\n3,4\n", ("x1", "x2")),
        ("a,b\r\n1,2\r\n3,4\r\n", ("a", "b")),
        ("a,b\r1,2\r3,4\r", ("a", "b")),
        ("a;b\n1;2\n3;4\n", ("a", "b")),
        ("1;2\n3;4\n", ("x1", "x2")),
        ("a\tb\n1\t2\n3\t4\n", ("a", "b")),
        ("a, b\n 1, 2\n 3,\t4 \n", ("a", "b")),
        ('"a","b"\n"1","2"\n"3","4"\n', ("a", "b")),
        ('"a, in cm", "b ""x"""\n1,2\n3,4\n', ("a, in cm", 'b "x"')),
        ('"a;b";c\n1;2\n3;4\n', ("a;b", "c")),
        ("a;b,c\n1,2\n3,4\n", ("a;b", "c")),
        ("\n\na,b\n1,2\n3,4\n\n  \n\n", ("a", "b")),
        (",b\n1,2\n3,4\n", ("column_1", "b")),
        ("a,NA\n1,2\n3,4\n", ("a", "NA")),
        ("a,b\n1.0e0,+2\n3.,.4e1\n", ("a", "b")),
    ],
)
def test_ways_to_write_one_table(tmp_path, content, columns):
    table = read_csv(csv_file(tmp_path, content))
    assert table.columns == columns
    assert table.values.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_one_column_and_one_row(tmp_path):
    assert read_csv(csv_file(tmp_path, "a\n1.5\n")).values.tolist() == [[1.5]]
    assert read_csv(csv_file(tmp_path, "7\n")).values.tolist() == [[7.0]]


def test_choosing_columns(tmp_path):
    path = csv_file(tmp_path, "a,b,species,d\n1,2,x,\n3,4,y,nan\n")
    assert read_csv(path, ["b", "a"]).columns == ("b", "a")
    for asked in (["b", "a"], [2, 1], ["2", "1"], ["b", 1], (" b ", np.int64(1))):
        assert read_csv(path, asked).values.tolist() == [[2.0, 1.0], [4.0, 3.0]]
    path = csv_file(tmp_path, "5,6\n7,8\n")
    for asked in ("x2", 2):
        table = read_csv(path, [asked])
        assert table.columns == ("x2",)
        assert table.values.tolist() == [[6.0], [8.0]]


def test_a_sniffed_file_may_be_long(tmp_path):
    rows = "1;2\n" * 50_000
    assert read_csv(csv_file(tmp_path, "a;b\n" + rows)).values.shape == (50_000, 2)
    wide = ";".join(["1.25"] * 40_000)
    assert read_csv(csv_file(tmp_path, f"{wide}\n{wide}\n")).values.shape == (2, 40_000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "{path} is empty; expected rows of numbers, with or without a header"),
        ("\n \n\n", "{path} is empty; expected rows of numbers, with or without a header"),
        ("a,b\n", "{path} holds a header and no data; expected rows of numbers below it"),
        ("a,b\n\n", "{path} holds a header and no data; expected rows of numbers below it"),
        (
            "a,b\n1,2\n3,4,5\n",
            "{path}, row 3, must have as many cells as row 1, 2, got 3; complete or remove it",
        ),
        ("1,2\n3\n", "{path}, row 2, must have as many cells as row 1, 2, got 1; complete or remove it"),
        (
            "a;b\n1;2\n3;4;5\n",
            "{path}, row 3, must have as many cells as row 1, 2, got 3; complete or remove it",
        ),
        ("a\n1\n\n2\n", "{path}, row 3, is blank, with data below it; remove it"),
        ("a,b,a\n1,2,3\n", "{path} has two columns 'a' (1 and 3); rename one"),
        (
            "5.1,3.5,setosa\n4.9,3,setosa\n",
            (
                "{path}, row 1, holds both a name ('setosa') and a number ('5.1'): it may be a header or "
                "data; give every column a name that is not a number, or add a row of names above"
            ),
        ),
        (
            "a,b,species\n1,2,setosa\n",
            (
                "{path}: column 'species' (3) is not numeric: row 2 holds 'setosa'; "
                "leave it out with --columns a,b"
            ),
        ),
        (
            'a b,"b,c",x\n1,2,3\n1,2,1_000\n',
            "{path}: column 'x' (3) is not numeric: row 3 holds '1_000'; leave it out with --columns 1,2",
        ),
        ("a\nx\n", "{path}: column 'a' (1) is not numeric: row 2 holds 'x'; no column is numeric"),
        (
            "a;b\n1,5;2,5\n",
            "{path}: column 'a' (1) has a decimal comma: row 2 holds '1,5'; use points",
        ),
        (
            "a,b\n1,2\n3,\n",
            "{path}: column 'b' (2) has a missing cell: row 3 holds nothing; fill it in or remove the row",
        ),
        (
            "1,NA\n3,4\n",
            "{path}: column 'x2' (2) has a missing cell: row 1 holds 'NA'; fill it in or remove the row",
        ),
        (
            "a,b\n1,nan\n3,4\n",
            "{path}: column 'b' (2) must be finite: row 2 holds 'nan'; correct it or remove the row",
        ),
        (
            "a,b\n1,2\n-inf,1e999\n",
            "{path}: column 'a' (1) must be finite: row 3 holds '-inf'; correct it or remove the row",
        ),
        (
            "a\n1e999\n",
            "{path}: column 'a' (1) must be finite: row 2 holds '1e999'; correct it or remove the row",
        ),
        # What a column is is said of the whole of it: one missing cell above does not hide the text.
        ("a\nNA\nx\n", "{path}: column 'a' (1) is not numeric: row 3 holds 'x'"),
        # Rows are counted as an editor counts lines.
        ('"a\nb",c\n1,2\n3\n', "{path}, row 4, must have as many cells as row 1, 2, got 1"),
        ('a,b\n1,"2\n', "{path}, row 2, is not CSV: unexpected end of data; check its quotes"),
        ('a,b\n1,"2"3\n', "{path}, row 2, is not CSV: ',' expected after '\"'; check its quotes"),
        (
            "a\n" + "x" * 100 + "\n",
            "{path}: column 'a' (1) is not numeric: row 2 holds 'xxxxxxxxxxxxxxxxxxxxxx",
        ),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, content, message):
    path = csv_file(tmp_path, content)
    assert error_of(DataError, read_csv, path).startswith(message.format(path=path))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["petal"], "{path} has no column 'petal'; known: 'sepal_length', 'width', 'species'"),
        (["sepal_lenght"], "{path} has no column 'sepal_lenght'; did you mean 'sepal_length'?"),
        ([4], "{path} has columns 1 to 3, got 4; they are counted from 1"),
        ([0], "{path} has columns 1 to 3, got 0; they are counted from 1"),
        (["-1"], "{path} has columns 1 to 3, got -1; they are counted from 1"),
        ([True], "{path} has no column True; known: 'sepal_length', 'width', 'species'"),
        ([], "columns must name at least one column of {path}, got none"),
        (["width", 2], "columns must be different, got 'width' (2) twice"),
        (
            ["species", "width"],
            "{path}: column 'species' (3) is not numeric: row 2 holds 'x'; leave it out with --columns width",
        ),
    ],
)
def test_columns_that_cannot_be_chosen(tmp_path, columns, message):
    path = csv_file(tmp_path, "sepal_length,width,species\n1,2,x\n")
    assert error_of(DataError, read_csv, path, columns) == message.format(path=path)


def test_one_str_is_not_a_sequence_of_names(tmp_path):
    path = csv_file(tmp_path, "a,b\n1,2\n")
    assert error_of(TypeError, read_csv, path, "ab") == (
        "columns must be a sequence of names or numbers, got the single str 'ab'"
    )


def test_messages_about_many_columns_stay_short(tmp_path):
    header = ",".join(f"column{i}" for i in range(1000))
    path = csv_file(tmp_path, f"{header}\n" + "1," * 999 + "x\n")
    assert error_of(DataError, read_csv, path).endswith(",column18,column19,...")
    assert error_of(DataError, read_csv, path, ["zzz"]).endswith("'column19' and 980 more")


def test_the_measurements_that_ship_with_the_package():
    message = error_of(DataError, read_csv, IRIS)
    assert message == (
        f"{IRIS}: column 'species' (5) is not numeric: row 2 holds 'setosa'; "
        f"leave it out with --columns {','.join(MEASURES)}"
    )
    # The advice works as it stands.
    table = read_csv(IRIS, re.search(r"--columns (\S+)", message)[1].split(","))
    assert table.columns == MEASURES
    assert table.values.shape == (150, 4)
    # Fisher (1936): the means of the measurements.
    np.testing.assert_allclose(
        table.values.mean(axis=0), [5.843333, 3.057333, 3.758, 1.199333], atol=5e-7, rtol=0
    )


def test_csv_goes_to_a_stream():
    stream = io.StringIO()
    write_csv(stream, np.array([[0.1, -0.0], [5e-324, 1e22]]), ["a", "b, c"])
    assert stream.getvalue() == '"a","b, c"\n0.1,-0.0\n5e-324,1e+22\n'
    assert not stream.closed


def test_csv_of_other_arrays(tmp_path):
    values = np.asfortranarray(np.array([[1, 2], [3, 4]], dtype=np.float32))
    values.flags.writeable = False
    write_csv(tmp_path / "a.csv", values)
    assert (tmp_path / "a.csv").read_text() == "1.0,2.0\n3.0,4.0\n"
    stream = io.StringIO()
    write_csv(stream, [[math.nan, -math.inf]])
    assert stream.getvalue() == "nan,-inf\n"


@pytest.mark.parametrize(
    ("values", "columns", "error", "message"),
    [
        ([1.0], None, ValueError, "values must have shape (N, n), got (1,)"),
        ([[1j]], None, TypeError, "values must be an array of real numbers, got dtype complex128"),
        ([["a"]], None, TypeError, "values must be an array of real numbers, got dtype <U1"),
        (np.ma.masked_array([[1.0]], [[True]]), None, TypeError, "a masked array"),
        ([[1.0, 2.0]], ["a"], ValueError, "columns must be 2 different names, got ['a']"),
        ([[1.0, 2.0]], ["a", "a"], ValueError, "columns must be 2 different names, got ['a', 'a']"),
    ],
)
def test_tables_that_cannot_be_written(tmp_path, values, columns, error, message):
    assert message in error_of(error, write_csv, tmp_path / "a.csv", values, columns)
    assert os.listdir(tmp_path) == []


def test_a_large_table_is_read_in_little_memory(tmp_path):
    """The text and 8 bytes a cell, not an object a cell (which would be five times as much)."""
    import tracemalloc

    path = csv_file(tmp_path, "0.123456789,1.5\n" * 20_000)
    tracemalloc.start()
    read_csv(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = path.stat().st_size
    # bytes, str, the StringIO's four bytes a character; the numbers, twice, with the array's spare room
    assert peak < size * (1 + 1 + 4) + 40_000 * 8 * 3 + 2**18
    assert sys.getsizeof(0.5) * 40_000 > 40_000 * 8 * 2  # what the claim is measured against
