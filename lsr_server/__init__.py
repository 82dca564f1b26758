"""The HTTP server of `lsr serve`, with the extra `server`: for a bank in torch, and for graphs without torch."""
