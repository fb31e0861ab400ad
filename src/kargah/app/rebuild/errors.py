"""Why a database is not made again."""

from kargah.ground.errors import CannotStart


class DatabaseNotEmpty(CannotStart):
    """A database of a server of its own is filled only when it is empty: nothing there is thrown away."""

    code = "DATABASE_NOT_EMPTY"
