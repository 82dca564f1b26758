"""Load and tokenize the splits of a data set entry."""
