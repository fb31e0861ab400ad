"""A group of verbs around one noun, which lists when no verb is named: `kargah runs` is `kargah runs list`."""

import re
from typing import Any

from typer.core import TyperGroup

_STARTS_AN_ID = re.compile("[0-9a-f]{4}", re.IGNORECASE)


class ListingGroup(TyperGroup):
    """Puts `list` in front of options alone, and of an id where the list takes one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments with the verb that was meant."""
        # While the shell completes, a bare noun stays one, so that its verbs are offered.
        bare = not args and not ctx.resilient_parsing
        options = bool(args) and args[0].startswith("-") and args[0] not in ("--help", "-h")
        if bare or options or (args and args[0] not in self.commands and self._listed_by(args[0])):
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def _listed_by(self, argument: str) -> bool:
        takes_one = any(parameter.param_type_name == "argument" for parameter in self.commands["list"].params)
        return takes_one and bool(_STARTS_AN_ID.match(argument))
