"""The sign line, one file a paper."""
