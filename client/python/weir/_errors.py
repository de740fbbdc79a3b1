"""What keeps a query from being asked at all, by who must act."""


class WeirError(Exception):
    """Any of them."""


class Unreachable(WeirError):
    """No coordinator or node answers: start one, or name another."""


class Refused(WeirError):
    """The token opens nothing there: name another."""


class NotFound(WeirError):
    """There is no endpoint of that name, or the token does not cover it."""


class BadInput(WeirError):
    """An array, a name or an option that no query can have."""
