"""Serve a bank of adapters over HTTP: `lsr serve BANK`, with the extra `server`."""
