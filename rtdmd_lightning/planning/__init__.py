"""What a run will need of memory, told from shapes alone: behind `rtdmd_lightning.plan`."""
