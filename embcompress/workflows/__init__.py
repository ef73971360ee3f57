"""One module a command: what it does, top to bottom, without its terminal."""
