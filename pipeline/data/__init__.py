"""From a row of data to tokenized splits."""
