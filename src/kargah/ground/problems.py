"""What pydantic says of a value, in our sentences: of a request's body, and of an entry in a file."""

from typing import Any

from kargah.ground.errors import ValidationFailed
from kargah.text.messages import has

# Kinds of pydantic's problems that have a sentence of their own; every other kind is "invalid".
_SENTENCES = {
    "missing": "problem.missing",
    "extra_forbidden": "problem.unknown",
    "json_invalid": "problem.json",
    "greater_than": "problem.greaterThan",
    "greater_than_equal": "problem.atLeast",
    "less_than": "problem.lessThan",
    "less_than_equal": "problem.atMost",
    "finite_number": "problem.finite",
    "string_too_short": "problem.tooShort",
    "string_too_long": "problem.tooLong",
    "too_short": "problem.tooFew",
    "too_long": "problem.tooMany",
    "literal_error": "problem.oneOf",
    "enum": "problem.oneOf",
    "string_type": "problem.string",
    "int_type": "problem.integer",
    "int_parsing": "problem.integer",
    "int_from_float": "problem.integer",
    "float_type": "problem.number",
    "float_parsing": "problem.number",
    "bool_type": "problem.boolean",
    "bool_parsing": "problem.boolean",
    "list_type": "problem.list",
    "model_type": "problem.object",
    "model_attributes_type": "problem.object",
    "dict_type": "problem.object",
}
_PARAMS = {"gt": "bound", "ge": "bound", "lt": "bound", "le": "bound", "expected": "expected"}
_LENGTHS = ("min_length", "max_length")


def problems_of(errors: list[Any], skip: int = 1) -> ValidationFailed:
    """Pydantic's list of errors as ours; `skip` drops the leading `body` or `query` of each place."""
    found = []
    for error in errors:
        place = ".".join(str(part) for part in error["loc"][skip:]) or str(error["loc"][0] if error["loc"] else "body")
        key = _SENTENCES.get(error["type"], "problem.invalid")
        context = error.get("ctx") or {}
        params = {_PARAMS[name]: value for name, value in context.items() if name in _PARAMS}
        for name in _LENGTHS:
            if name in context:
                params["bound"] = context[name]
        found.append((place, key if has(key, "en") else "problem.invalid", params))
    return ValidationFailed(*found)
