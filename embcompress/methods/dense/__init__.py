"""Tables as they are: what is stored where a method only chooses rows. Not in the registry."""
