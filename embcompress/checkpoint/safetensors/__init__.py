"""The safetensors format: headers, aliases, and files copied byte for byte around an edit."""
