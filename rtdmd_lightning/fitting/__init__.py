"""The command line of a training run: its help, what it refuses early, and Lightning's parser."""
