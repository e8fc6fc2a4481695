"""Files in and out: JSON written whole or not at all, CSV read with errors that name the cell.

This room knows no model: plain dicts, lists and arrays come in and go out.
"""

from refica.files.csv_files import Table, read_csv, write_csv
from refica.files.json_files import read_json, to_json, write_json
from refica.files.reading import DataError
from refica.files.writing import OutputError, prepare_folder, write_text_atomically

__all__ = [
    "DataError",
    "OutputError",
    "Table",
    "prepare_folder",
    "read_csv",
    "read_json",
    "to_json",
    "write_csv",
    "write_json",
    "write_text_atomically",
]
