"""The error of what is wrong with a folder of graphs."""


class GraphError(ValueError):
    """A mistake that the user can fix: one line that says where, what, and what is needed."""
