"""What goes with a published result."""
