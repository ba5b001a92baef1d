"""The console's pages: what the index holds, as views in a browser."""
