"""Numerical functions from arrays to arrays; tables come as blocks of rows."""
