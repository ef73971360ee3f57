"""Raw bytes on disk: read, copy, and write outputs that appear whole or not at all."""
