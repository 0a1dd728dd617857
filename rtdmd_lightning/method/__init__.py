"""The method's formulas as pure functions of tensors; README.md has the equations."""
