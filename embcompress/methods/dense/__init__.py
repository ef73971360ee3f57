"""Tables stored unchanged: what ``screen`` wraps if no other method is named. Not in the registry."""
