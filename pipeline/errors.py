"""The two ways in which a person's input can fail; each message names the thing and the fix."""


class Refused(Exception):
    """The input cannot be worked on: a job prints the one line, leaves nothing behind and exits with 2."""


class Unreadable(Exception):
    """A window of a scene could not be read or inferred: it becomes named nodata, never zeros."""
