"""Python peers. None is imported here: each is run by the Python of its own environment."""
