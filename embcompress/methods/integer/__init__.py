"""The methods int8, int4 …: rows of scaled integers."""
