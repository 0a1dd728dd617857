"""The method's formulas as pure functions of tensors. "METHOD section N" is section N of README.md beside this file."""
