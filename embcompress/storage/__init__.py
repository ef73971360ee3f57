"""Raw bytes on disk: reading and copying them, and staged outputs that appear whole or not at all."""
