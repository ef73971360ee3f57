"""Reports: the record of what a checkpoint holds, its costs, and how they are shown."""
