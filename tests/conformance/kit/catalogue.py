"""All cases, in the order of their numbers."""

from importlib import import_module

from tests.conformance.kit.case import Case, in_order

_MODULES = (
    "grammar",
    "queries",
    "access",
    "files",
    "paging",
    "batches",
    "validation",
    "lifecycle",
    "results",
    "uploads",
    "webhooks",
    "tenants",
)
# A case's number counts in the order of registration, which is this one and no other.
for _name in _MODULES:
    import_module(f"tests.conformance.kit.cases.{_name}")

ALL: list[Case] = list(in_order())
