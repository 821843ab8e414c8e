"""The measurements of docs/performance.md: Overnight on the machine at hand, beside others on the same.

`run.py` is the command. `scenarios/` says what is measured, one module a subject; `yardsticks/` is what
Overnight is measured against; the rest starts, watches, loads and reports.
"""
