"""Transform coding with trellis-coded coefficients."""
