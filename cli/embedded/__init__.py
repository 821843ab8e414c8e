"""A real Postgres and a real Valkey from wheels, as children of `overnight up`.

Promises: nothing listens on the network, only on Unix sockets in a private folder; servers that a
killed predecessor left behind are stopped before new ones start.
"""
