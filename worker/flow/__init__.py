"""How fast a model server may be called: lanes, their limits, and how the processes agree on them.

`controller` finds the limit of calls in flight, with the `search` for the throughput's knee and the
`sample`s it compares; `exchange` shares the limit out over the processes through Redis; `lane` is what
a process keeps for one server and model, out of slots, pauses, `breaker`, learned `latency` and the
rate that headers tell (`hinted_rate`).
"""
