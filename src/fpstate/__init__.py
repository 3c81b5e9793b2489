"""fpstate: the floating-point and vector state of a context as an object."""
