"""Errors a user can act on."""

STOPPED = 75  # exit code (EX_TEMPFAIL) of a run that saved its state because it was asked to stop


class UserError(Exception):
    """Something outside the program is wrong: one line that says what, and what to do about it."""


class Stopped(Exception):
    """SIGTERM or SIGUSR1 asked a run to stop; what it had is saved."""
