"""Bytes in, records out: parsers that know no socket, no clock and no file."""
