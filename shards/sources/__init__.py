"""One module per raw layout."""
