"""The error for invalid folders of graphs."""


class GraphError(ValueError):
    """A mistake that the user can fix: one line that says where, what, and what is needed."""
