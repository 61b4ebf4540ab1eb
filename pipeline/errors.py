"""The two ways in which a person's input can fail; each message is one line that names the thing and the fix."""


class _OneLine(Exception):
    def __init__(self, message: str):
        super().__init__(one_line(message))


class Refused(_OneLine):
    """The input cannot be worked on: a job prints the one line, leaves nothing behind and exits with 2."""


class Unreadable(_OneLine):
    """A window of a scene could not be read or inferred: it becomes named nodata, never zeros."""


def one_line(text: object) -> str:
    """Text for a terminal: names out of files and buckets may hold line breaks, escape sequences and half characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text).replace("\n", " "))
