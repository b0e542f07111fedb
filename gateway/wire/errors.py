"""The one error that leaves this room."""


class WireError(Exception):
    """Bytes that cannot be read.

    From a scale's parser it means that this line is no reading; from a frame reader that the connection
    cannot go on. The text says why, in words for a log line; it never repeats more of the input than one byte.
    """
