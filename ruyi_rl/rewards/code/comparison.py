"""Whether what a program gave is what was expected. Only plain data comes in: no method of the program's runs here."""

import json
import math
import re
from typing import Any

RELATIVE, ABSOLUTE = 1e-9, 1e-12
"""Tolerances of a float in returned data."""
PRINTED = 1e-6
"""Relative and absolute tolerance of a decimal in printed output, the usual one of programming contests."""

_NUMBER = re.compile(r"[+-]?(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})(?:[eE][+-]?\d{1,3})?")


def same_value(expected: Any, given: Any) -> bool:
    """Equality of plain data that knows types.

    True is not 1, but 1 is 1.0; an expected float is met by numbers within `RELATIVE` or `ABSOLUTE` of it, and nan by
    nan; an expected integer by an equal number only. Since expected values come out of JSON, a tuple may be given for a
    list, and a dict with keys that JSON writes as texts for one with texts.
    """
    if isinstance(expected, bool) or isinstance(given, bool) or expected is None or given is None:
        return type(expected) is type(given) and expected == given
    if isinstance(expected, int | float) and isinstance(given, int | float):
        return _same_number(expected, given)
    if isinstance(expected, complex) and isinstance(given, complex):
        return _same_number(expected.real, given.real) and _same_number(expected.imag, given.imag)
    if isinstance(expected, list) and isinstance(given, tuple):
        given = list(given)
    if isinstance(expected, list | tuple) and type(expected) is type(given):
        return len(expected) == len(given) and all(map(same_value, expected, given))
    if isinstance(expected, dict) and isinstance(given, dict):
        return _same_dict(expected, given)
    return type(expected) is type(given) and expected == given


def _same_number(expected: float, given: float) -> bool:
    if isinstance(expected, int):
        return expected == given
    try:
        if math.isnan(expected) or math.isnan(given):
            return math.isnan(expected) and math.isnan(given)
        return math.isclose(expected, given, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    except OverflowError:  # an integer beyond all floats
        return False


def _same_dict(expected: dict, given: dict) -> bool:
    if len(expected) != len(given):
        return False
    if not all(isinstance(key, str) for key in given) and all(isinstance(key, str) for key in expected):
        given = {_json_key(key): value for key, value in given.items()}
    keys = {(type(key), key) for key in given}
    return len(keys) == len(expected) and all(
        (type(key), key) in keys and same_value(value, given[key]) for key, value in expected.items()
    )


def _json_key(key: Any) -> Any:
    return json.dumps(key) if isinstance(key, bool | int | float) or key is None else key


def same_output(expected: str, given: str) -> bool:
    """Equality of printed text: the same number of lines, each the same but for space at its end; line breaks at the
    end do not count.

    Where an expected token is a decimal (`0.5`, `1e-3`), a number within `PRINTED` of it is as good. Integers and words
    must be the same text.
    """
    wanted, found = _lines(expected), _lines(given)
    return len(wanted) == len(found) and all(map(_same_line, wanted, found))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _same_line(expected: str, given: str) -> bool:
    if expected == given:
        return True
    wanted, found = re.split(r"(\s+)", expected), re.split(r"(\s+)", given)
    return len(wanted) == len(found) and all(map(_same_token, wanted, found))


def _same_token(expected: str, given: str) -> bool:
    if expected == given:
        return True
    if not _NUMBER.fullmatch(expected) or not _NUMBER.fullmatch(given) or re.fullmatch(r"[+-]?\d+", expected):
        return False
    return math.isclose(float(expected), float(given), rel_tol=PRINTED, abs_tol=PRINTED)
