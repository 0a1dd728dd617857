"""The parts of `rtdmd evaluate`: what is drawn, drawing and scoring it, and telling what came out."""
