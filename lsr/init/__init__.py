"""How factors start: one initialization a file, what examples say about a layer, and what a start holds."""
