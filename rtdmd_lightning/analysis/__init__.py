"""Problems small enough to be solved exactly, on which the method's estimators are measured against the truth."""
