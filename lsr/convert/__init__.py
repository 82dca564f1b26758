"""From and to files: loading, exports, reports, and the commands of `python -m lsr`."""
