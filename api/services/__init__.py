"""The use cases, one function each. They know no HTTP."""
