"""Reports: records of what a checkpoint holds and costs, and their output in terminals and plots."""
