"""Gates and instruments that are no benchmark; each runs as `python -m tools.NAME`."""
