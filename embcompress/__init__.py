"""Make the embedding tables of saved models small."""
