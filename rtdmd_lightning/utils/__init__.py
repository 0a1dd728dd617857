"""What everything else stands on: errors, files, configs, randomness, processes."""
