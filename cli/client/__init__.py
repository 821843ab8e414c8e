"""The commands that speak to a server: on the public REST API alone, so with any server of it."""
