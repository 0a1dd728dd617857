"""The parts of `python -m rtdmd_lightning.evaluate`: what is drawn, drawing and scoring it, and telling what came out."""
