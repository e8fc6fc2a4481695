"""Every line of the documents' derivation checked, as a report.

`verify` runs the checks; `as_text`, `to_dict` and `page` show what they found.
"""

from refica.verify.run import MODELS, Report, results, verify
from refica.verify.shown import as_text, page, to_dict
from refica.verify.users import load_decoder

__all__ = ["MODELS", "Report", "as_text", "load_decoder", "page", "results", "to_dict", "verify"]
