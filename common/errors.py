"""Errors a user can act on."""


class UserError(Exception):
    """Something outside the program is wrong: one line that says what, and what to do about it."""
