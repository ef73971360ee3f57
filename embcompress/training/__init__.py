"""Training: one loop, learning-rate schedules, optimizers; torch only."""
