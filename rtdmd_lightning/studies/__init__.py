"""Studies: variants compared, learning curves, noise of gradients, a problem with a known answer."""
