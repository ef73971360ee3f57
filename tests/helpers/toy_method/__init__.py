"""A method that only the tests have: one folder, as ``examples/reference/extending.md`` shows it."""
