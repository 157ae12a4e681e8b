"""The one exception that users are meant to read."""


class PdlabError(Exception):
    """Something the user can put right: its message is one line that says what is wrong and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """
