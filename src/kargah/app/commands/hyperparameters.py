"""`--set name=value`, nested by dots, as the `config` of a run."""

import json
import math
from typing import Any

import typer

from kargah.app.commands.console import say
from kargah.text.digits import to_latin_digits

TEXT_GROUPS = ("columns",)
"""Groups whose values are names, even where they look like numbers."""


def config_of(pairs: list[str]) -> dict[str, Any]:
    """`["epochs=3", "lora.rank=8"]` → `{"epochs": 3, "lora": {"rank": 8}}`. A value is JSON where it can be, else text.

    Ends the command for what is not of that form, and where one name is both a value and a group.
    """
    config: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        *groups, key = name.split(".")
        if not separator or not key or not all(groups):
            raise typer.BadParameter(say("badPair", pair=pair), param_hint="--set")
        place = config
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise typer.BadParameter(say("valueAndGroup", name=group), param_hint="--set")
        if isinstance(place.get(key), dict):
            raise typer.BadParameter(say("valueAndGroup", name=key), param_hint="--set")
        place[key] = text if groups and groups[0] in TEXT_GROUPS else _value(text)
    return config


def _value(text: str) -> Any:
    for spelling in (text, to_latin_digits(text).replace("٫", ".")):
        try:
            value = json.loads(spelling)
        except ValueError:
            continue
        # JSON has no NaN and no infinity, though Python reads them: the server is to see what was written.
        return text if isinstance(value, float) and not math.isfinite(value) else value
    return text
