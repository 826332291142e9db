"""The data sets by name, each as the files that are found become pieces of arrays."""
