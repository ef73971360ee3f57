"""Rows that share one."""
