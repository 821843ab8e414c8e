"""How an unforeseen error is put into a log: its kind and its place, never its words.

The message of an exception may hold what it was raised over: a row, a prompt, a key.
"""

import traceback


def describe(error: BaseException) -> str:
    """The kind of an exception and the last place in this code that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    place = f" at {ours[-1].filename}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__}{place}"
