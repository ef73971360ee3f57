"""What an output says of itself, compared with what it holds and with what it was made from."""
