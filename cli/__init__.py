"""How a person talks to Overnight: `up`, `demo`, `run`, `simulate`, and the single processes.

Stands above `api`, `worker` and `models`; nothing imports it.
"""
