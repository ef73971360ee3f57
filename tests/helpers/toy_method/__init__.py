"""A method that exists only in the tests: one folder, as in ``examples/reference/extending.md``."""
