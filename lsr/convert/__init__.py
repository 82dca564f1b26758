"""From and to files: loading, exports, compression, reports, and the commands of `python -m lsr`."""
