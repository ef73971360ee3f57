"""Training runs: carry one out, interrupt and resume it, and write its output."""
