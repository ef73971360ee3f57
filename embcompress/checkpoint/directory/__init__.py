"""Hugging Face directories: weight files with configuration, tokenizer and model card."""
