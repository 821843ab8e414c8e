"""The routes: parse, call one service, return."""
