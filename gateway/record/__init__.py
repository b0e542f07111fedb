"""The record: an append-only chain of commits, refusals and other entries, whose heads are published.

An entry has a number, a content and a hash over the previous hash and the content. A head is the number and hash of the
last entry of a gateway. ``chain`` is pure; ``table`` has the statements; ``book`` appends to the record.
"""
