"""Training with torch: the loop, learning-rate schedules, optimizers, distillation and snapshots."""
