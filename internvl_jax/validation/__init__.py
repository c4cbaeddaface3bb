"""What comes from outside is checked here, once: documents, values, the fields of configs.

Every error is an `InputError` that says where the value stands and what it must be.
"""

from internvl_jax.validation.documents import (
    MAX_DEPTH,
    parse_json,
    read_all_arrays,
    read_arrays,
    read_file,
    read_json,
    read_lines,
)
from internvl_jax.validation.values import (
    Count,
    CountOrZero,
    Fields,
    FilePath,
    Fraction,
    NotNegative,
    Positive,
    all_finite,
    bounds_of,
    build,
    check_fields,
    check_value,
    convert,
    not_null,
    read_text,
)
from internvl_jax.validation.words import describe, differences, first_line, nearest, shown

__all__ = [
    "Count",
    "CountOrZero",
    "Fields",
    "FilePath",
    "Fraction",
    "MAX_DEPTH",
    "NotNegative",
    "Positive",
    "all_finite",
    "bounds_of",
    "build",
    "check_fields",
    "check_value",
    "convert",
    "describe",
    "differences",
    "first_line",
    "nearest",
    "not_null",
    "parse_json",
    "read_all_arrays",
    "read_arrays",
    "read_file",
    "read_json",
    "read_lines",
    "read_text",
    "shown",
]
