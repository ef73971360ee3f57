"""The record of an output, compared with what the output holds and with what it was made from."""
