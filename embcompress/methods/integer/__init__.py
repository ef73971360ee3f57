"""The methods int8, int4 and int3: rows of scaled integers."""
