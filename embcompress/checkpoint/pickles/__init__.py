"""Pickles as inert data: read into nodes, and written again; nothing in them is looked up or called."""
