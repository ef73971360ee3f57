"""Linear algebra on tables that are seen one block of rows at a time: arrays in, arrays out."""
